//! A group and the topics that it works on: what was done before, under which name, and by whom else.

use std::time::Duration;

use crate::rig::{FLAKY, Rig};

/// The rig's configuration with another group.
fn regroup(rig: &Rig, group: &str) {
    let prefix = &rig.prefix;
    let basics = rig.basics();
    let (before, after) = (format!("group = '{prefix}'"), format!("group = '{group}'"));
    rig.configure(&format!("{}{FLAKY}", basics.replace(&before, &after)));
}

/// What a command that is to fail wrote, on both outputs.
fn refused(rig: &Rig, arguments: &[&str]) -> String {
    let output = rig.retide(arguments);
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(4), "{arguments:?}: {text:?}");
    text.concat()
}

#[test]
fn a_group_that_lost_its_offsets_is_refused_until_it_is_said_where_it_begins() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    // What was produced before anybody has worked is done, and a probe is no work.
    rig.produce(0, [0, 1, 0].into_iter());
    rig.retide(&["doctor", "--write-probe"]);
    let first = rig.run();
    rig.ends(3);
    first.terminate();
    first.wait();
    let called = rig.target.count();
    let renamed = format!("{}-renamed", rig.prefix);
    regroup(&rig, &renamed);

    let run = refused(&rig, &["run"]);
    let doctor = refused(&rig, &["doctor", "--no-targets"]);

    for said in [&run, &doctor] {
        for part in [
            "--from-beginning",
            "--from-now",
            "records of the retry topic",
            &format!("there are offsets of {}", rig.prefix),
            &renamed,
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let from_now = rig.launch(&["run", "--from-now"]);
    from_now.wait_for("shards assigned");
    rig.produce(3, [0].into_iter());
    let ends = rig.ends(4);
    assert_eq!(ends.values().map(Vec::len).sum::<usize>(), 4, "{ends:?}");
    assert_eq!(rig.target.count(), called + 1, "nothing is done again");
    from_now.terminate();
    from_now.wait();
    // It has offsets now, and goes on with them; the other group is worth knowing.
    let again = rig.run();
    assert!(again.log().contains("is not the only one on prefix"));
    again.terminate();
    again.wait();

    regroup(&rig, &format!("{}-third", rig.prefix));
    let all = rig.launch(&["run", "--from-beginning"]);
    all.wait_for("shards assigned");
    rig.target.wait_for(called + 1 + 4);
}

#[test]
fn a_group_is_of_one_prefix_only() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let first = rig.run();
    rig.produce(0, [0].into_iter());
    rig.ends(1);
    let other = format!("{}.other", rig.prefix);
    let prefix = format!("prefix = '{}'", rig.prefix);
    let basics = rig
        .basics()
        .replace(&prefix, &format!("prefix = '{other}'"));
    rig.configure(&format!("{basics}{FLAKY}"));
    assert!(rig.retide(&["init"]).status.success());

    let run = refused(&rig, &["run"]);
    let doctor = refused(&rig, &["doctor", "--no-targets"]);

    for said in [&run, &doctor] {
        assert!(
            said.contains(&format!("has offsets on prefix {}, too", rig.prefix)),
            "{said}"
        );
    }
    drop(first);
}
