//! Who owns which shard: every worker has whole shards, each shard has one worker, and what one has committed the next one starts from.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::Position;
use retide_core::completions::Completions;
use retide_core::saved::Saved;
use retide_core::{LaneId, Source};
use retide_shell::worker::feed::{Assignment, Reading, Request};

use crate::support::{PATIENCE, SHARDS, Worker, bootstrap, config, create, produce_ten, until};

#[test]
fn workers_own_whole_shards_and_every_shard_has_one_owner() {
    let bootstrap = bootstrap();
    let prefix = format!("own-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let all: BTreeSet<i32> = (0..SHARDS).collect();

    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("one worker owns all", &mut [&mut first], |workers| {
        workers[0].shards() == all && workers[0].is_whole(&topics)
    });

    let mut second = Worker::join(&bootstrap, &prefix, &topics);
    until(
        "two workers share all",
        &mut [&mut first, &mut second],
        |workers| {
            let [one, other] = workers else { return false };
            let halves = [one.shards(), other.shards()];
            halves.iter().all(|half| half.len() == 2)
                && halves[0].is_disjoint(&halves[1])
                && one.is_whole(&topics)
                && other.is_whole(&topics)
        },
    );

    first.leave();
    until(
        "the one that stays owns all",
        &mut [&mut second],
        |workers| workers[0].shards() == all && workers[0].is_whole(&topics),
    );
    second.leave();
}

#[test]
fn a_worker_for_which_no_shard_is_left_is_told_so() {
    let bootstrap = bootstrap();
    let prefix = format!("more-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);

    let mut workers: Vec<Worker> = (0..=SHARDS)
        .map(|_| Worker::join(&bootstrap, &prefix, &topics))
        .collect();
    let mut turning: Vec<&mut Worker> = workers.iter_mut().collect();
    until("each has a shard or none", &mut turning, |workers| {
        let shards: usize = workers.iter().map(|worker| worker.shards().len()).sum();
        let one_each = workers.iter().all(|worker| worker.shards().len() <= 1);
        shards == SHARDS as usize && one_each && workers.iter().all(|worker| worker.assignments > 0)
    });

    for worker in workers {
        worker.leave();
    }
}

#[test]
fn the_next_owner_starts_where_the_last_commit_and_its_completions_say() {
    let bootstrap = bootstrap();
    let prefix = format!("next-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    produce_ten(&bootstrap, &topics.tasks, 1);
    let lane = LaneId {
        shard: 1,
        source: Source::Tasks,
    };

    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("ten records", &mut [&mut first], |workers| {
        workers[0].records.len() == 10
    });
    let known = Completions::between(4, 9, [5].into_iter());
    let binding = first.lanes[&lane].binding;
    let mut commit = TopicPartitionList::new();
    commit
        .add_partition_offset(&topics.tasks, 1, Offset::Offset(3))
        .unwrap();
    commit
        .find_partition(&topics.tasks, 1)
        .unwrap()
        .set_metadata(known.encode(binding, 3));
    first
        .feed
        .consumer
        .commit(&commit, CommitMode::Sync)
        .unwrap();
    first.leave();

    let mut second = Worker::join(&bootstrap, &prefix, &topics);
    until("seven records", &mut [&mut second], |workers| {
        workers[0].records.len() == 7
    });
    let assignment = second.lanes.get(&lane).cloned();
    second.leave();

    let expected = Assignment {
        lane,
        start: 3,
        end: 10,
        known,
        saved: Saved::default(),
        binding,
    };
    assert_eq!(assignment, Some(expected));
}

#[test]
fn a_resumed_lane_reads_again_from_the_offset_it_was_paused_at() {
    let bootstrap = bootstrap();
    let prefix = format!("pause-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    produce_ten(&bootstrap, &topics.tiers[1], 0);
    let lane = LaneId {
        shard: 0,
        source: Source::Tier(1),
    };
    let mut worker = Worker::join(&bootstrap, &prefix, &topics);
    until("ten records", &mut [&mut worker], |workers| {
        workers[0].records.len() == 10
    });

    worker.feed.request(Request::Pause { lane });
    let (run, next) = (1, 6);
    worker.feed.request(Request::Resume { lane, run, next });

    until("four more", &mut [&mut worker], |workers| {
        workers[0].records.len() == 14
    });
    let again: Vec<(u64, i64)> = worker.records[10..]
        .iter()
        .map(|position| (position.run, position.offset))
        .collect();
    worker.leave();
    assert_eq!(again, [(1, 6), (1, 7), (1, 8), (1, 9)]);
}

#[test]
fn what_moves_is_read_afresh_and_what_stays_is_read_on() {
    let bootstrap = bootstrap();
    let prefix = format!("afresh-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    for shard in 0..SHARDS {
        produce_ten(&bootstrap, &topics.tiers[1], shard);
    }
    let mut worker = Worker::join(&bootstrap, &prefix, &topics);
    let count = SHARDS as usize;
    until("ten records of each", &mut [&mut worker], |workers| {
        workers[0].records.len() == 10 * count
    });
    let lane = |shard| LaneId {
        shard,
        source: Source::Tier(1),
    };
    let (run, next) = (1, 6);
    for lane in (0..SHARDS).map(lane) {
        worker.feed.request(Request::Pause { lane });
        worker.feed.request(Request::Resume { lane, run, next });
    }
    until("four more of each", &mut [&mut worker], |workers| {
        workers[0].records.len() == 14 * count
    });
    for lane in (0..SHARDS).map(lane) {
        worker.feed.request(Request::Pause { lane });
    }

    // Half of the shards move, and come back.
    let mut other = Worker::join(&bootstrap, &prefix, &topics);
    until(
        "two workers share all",
        &mut [&mut worker, &mut other],
        |workers| workers.iter().all(|worker| worker.shards().len() == 2),
    );
    let moved = other.shards();
    other.leave();

    until("all are back", &mut [&mut worker], |workers| {
        let back = workers[0].records.iter();
        let back = back.filter(|position| moved.contains(&position.lane.shard));
        workers[0].shards().len() == count && back.count() == 10 * moved.len()
    });
    let (back, stayed): (Vec<Position>, Vec<Position>) = worker
        .records
        .iter()
        .partition(|position| moved.contains(&position.lane.shard));
    worker.leave();
    assert!(
        back.iter().all(|position| position.run == 0),
        "records carry the run of an assignment that is over"
    );
    assert_eq!(stayed.len(), 14 * (count - moved.len()), "read again");
}

#[test]
fn a_shard_is_kept_and_others_are_read_until_it_is_let_go_of() {
    let bootstrap = bootstrap();
    let prefix = format!("kept-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("one worker owns all", &mut [&mut first], |workers| {
        workers[0].shards().len() == SHARDS as usize
    });
    let mut second = Worker::join(&bootstrap, &prefix, &topics);
    let start = Instant::now();
    let done = loop {
        assert!(start.elapsed() < PATIENCE, "never asked");
        match first.feed.readings.recv_timeout(PATIENCE).unwrap() {
            Reading::Revoked { done, shards, lost } => {
                assert!(shards.len() < SHARDS as usize && !lost, "{shards:?}");
                break done;
            }
            Reading::Assigned(..)
            | Reading::Gaps(_)
            | Reading::Shards(_)
            | Reading::Deleted(_)
            | Reading::Alerts(_)
            | Reading::Searched(_) => {}
            Reading::Failed(error) => panic!("{error}"),
        }
    };

    // Asked, and not answered: all shards are read on, and nobody else has one. Longer than a member may be silent.
    let start = Instant::now();
    let mut read = 0;
    while start.elapsed() < Duration::from_secs(7) || read == 0 {
        assert!(start.elapsed() < PATIENCE, "nothing is read");
        for shard in 0..SHARDS {
            produce_ten(&bootstrap, &topics.tasks, shard);
        }
        first.turn();
        second.turn();
        let lanes: BTreeSet<i32> = first.records.iter().map(|one| one.lane.shard).collect();
        read = usize::from(lanes.len() == SHARDS as usize);
        assert!(second.shards().is_empty(), "{:?}", second.shards());
    }

    drop(done);
    until("the second has its own", &mut [&mut second], |workers| {
        workers[0].shards().len() == 2
    });
    first.leave();
    second.leave();
}

#[test]
fn a_shard_waits_for_the_transaction_that_changes_its_offsets() {
    let bootstrap = bootstrap();
    let prefix = format!("decided-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    produce_ten(&bootstrap, &topics.tasks, 1);
    let lane = LaneId {
        shard: 1,
        source: Source::Tasks,
    };
    let group: BaseConsumer = config(&bootstrap, &prefix).create().unwrap();
    let producer: BaseProducer = config(&bootstrap, "producer")
        .set("transactional.id", &prefix)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    let send = |next: i64| {
        producer.begin_transaction().unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&topics.tasks, 1, Offset::Offset(next))
            .unwrap();
        producer
            .send_offsets_to_transaction(&offsets, &group.group_metadata().unwrap(), PATIENCE)
            .unwrap();
    };
    send(3);
    producer.commit_transaction(PATIENCE).unwrap();
    // As a former owner that is stopped between the two requests, and goes on after it has lost the shard.
    send(7);

    let mut worker = Worker::join(&bootstrap, &prefix, &topics);
    until("the other shards", &mut [&mut worker], |workers| {
        workers[0].shards().len() as i32 >= SHARDS - 1
    });
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        worker.turn();
    }
    let early = worker.lanes.get(&lane).cloned();
    producer.commit_transaction(PATIENCE).unwrap();
    until("its shard", &mut [&mut worker], |workers| {
        workers[0].lanes.contains_key(&lane)
    });
    let start = worker.lanes.get(&lane).map(|assignment| assignment.start);
    worker.leave();

    assert_eq!(early, None);
    assert_eq!(start, Some(7));
}

#[test]
fn a_worker_that_waits_for_an_open_transaction_can_leave() {
    let bootstrap = bootstrap();
    let prefix = format!("hang-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let group: BaseConsumer = config(&bootstrap, &prefix).create().unwrap();
    let producer: BaseProducer = config(&bootstrap, "producer")
        .set("transactional.id", &prefix)
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset(&topics.tasks, 1, Offset::Offset(0))
        .unwrap();
    producer
        .send_offsets_to_transaction(&offsets, &group.group_metadata().unwrap(), PATIENCE)
        .unwrap();
    let mut worker = Worker::join(&bootstrap, &prefix, &topics);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        worker.turn();
    }

    let start = Instant::now();
    worker.leave();

    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_worker_that_was_asked_for_its_shards_can_leave_without_an_answer() {
    let bootstrap = bootstrap();
    let prefix = format!("asked-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let all: BTreeSet<i32> = (0..SHARDS).collect();
    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("one worker owns all", &mut [&mut first], |workers| {
        workers[0].shards() == all
    });
    let second = Worker::join(&bootstrap, &prefix, &topics);
    let start = Instant::now();
    while first.feed.readings.is_empty() {
        assert!(start.elapsed() < PATIENCE, "never asked");
        std::thread::yield_now();
    }

    let leaving = std::thread::spawn(move || drop(first));

    let start = Instant::now();
    while !leaving.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(10), "still there");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    second.leave();
}
