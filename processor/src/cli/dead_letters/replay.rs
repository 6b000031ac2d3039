//! `retide dead-letters replay`: a campaign is started, which replays the dead letters that are meant.
//!
//! Not how a campaign goes, which workers decide. Invariant: nothing is sent before it was read as workers read it, and somebody has said yes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use retide_avro::control::campaign;
use retide_avro::letter;
use retide_config::Config;
use retide_core::campaign::{Campaign, Edit, Ineligible, Spec, Verb};
use retide_core::ramp::{FAILURE_RATE, STEPS};
use retide_kafka::client::client_config;
use retide_kafka::follow::Follower;
use retide_shell::replayed::Replayed;

use crate::cli::ask;
use crate::cli::campaigns::follow::{self, Asking};
use crate::cli::campaigns::read;
use crate::cli::output::{Exit, Failed, Output, document, print, say};
use crate::cli::reach::topics;
use crate::cli::terminal;

use super::Which;
use super::edit::{self, Difference};
use super::find::{self, Found, Looked, Wanted};
use super::lacking::{self, Lacking, Whole};
use super::line::Line;
use super::republish::{self, Republish};
use super::retarget::{self, Retarget};

/// What `replay` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide dead-letters replay --fingerprint 1f58f9fcb66d76a1 --dry-run
  retide dead-letters replay --fingerprint 1f58f9fcb66d76a1 --name mend \\
      --reason 'the shop is back' --rate 50/s
  retide dead-letters replay --id order-7 --yes
  retide dead-letters replay --id order-7 --edit
  retide dead-letters replay --fingerprint 1f58f9fcb66d76a1 --edit patch.json
  retide dead-letters replay --scene orders --to-scene back --republish
  retide dead-letters replay --scene orders --name trial \\
      --to-url https://staging.example.com/orders

Tasks keep their ids and payloads; their attempts and deadlines begin anew. A
replay is a campaign: it begins slowly, goes faster as long as attempts
succeed, and stops by itself when too many fail. It goes on when this command
ends; `retide campaigns` pauses, resumes and aborts it. No dead letter is
replayed twice. Exit code 3: none was replayed; 4: refused; 6: the campaign
has stopped, or some of its tasks ended badly again.")]
pub(in crate::cli) struct Replay {
    /// Which dead letters.
    #[command(flatten)]
    which: Which,
    /// The name of the campaign [default: a random one]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Dead letters a second in each step; behind the last one, each step is twice as fast [default: 1,5,20,100]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    ramp: Vec<u32>,
    /// Most dead letters a second, such as 50/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<u32>,
    /// Stop where more of the attempts of a step fail, such as 20% [default: 20%]
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    stop_at: Option<f64>,
    /// Let the tasks follow this scene instead of their own
    #[arg(long, value_name = "NAME")]
    to_scene: Option<String>,
    /// Send the tasks to this URL, by a scene campaign-NAME that is made for it
    #[arg(long, value_name = "URL", conflicts_with = "to_scene")]
    to_url: Option<String>,
    /// Produce them to the topic of that scene's Kafka target, such as where their records were before they failed: all groups that read it get them again
    #[arg(long, requires = "to_scene")]
    republish: bool,
    /// Give the tasks this header instead of those of the same name; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    set_header: Vec<(String, String)>,
    /// Take this header off; may be repeated
    #[arg(long, value_name = "NAME")]
    remove_header: Vec<String>,
    /// Edit the headers and the payload of one dead letter in $EDITOR, or change the payloads of all by a JSON patch (RFC 6902) in this file, - for standard input
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(
        clippy::option_option,
        reason = "an option that may have a value, as clap has it"
    )]
    edit: Option<Option<PathBuf>>,
    /// Replay also what dies and fits after the start
    #[arg(long)]
    include_new: bool,
    /// Keep the deadlines that producers have named, where they are not over
    #[arg(long)]
    keep_deadline: bool,
    /// Who wants it, and whether it is done.
    #[command(flatten)]
    asking: Asking,
}

/// What keeps dead letters from being replayed.
pub(super) struct Past {
    /// Those that were replayed before.
    replayed: Replayed,
    /// The campaigns that are not over, whose letters no later one replays.
    campaigns: Vec<Campaign>,
}

/// What would be replayed.
struct Counted {
    /// What was read.
    looked: Looked,
    /// How many would be.
    eligible: u64,
    /// How many would not, by reason.
    others: BTreeMap<&'static str, u64>,
    /// A few of those that would.
    samples: Vec<Line>,
    /// What is different about them.
    differences: Vec<Difference>,
    /// Why the first one cannot be edited that cannot.
    refusal: Option<String>,
    /// Those that lack their payloads.
    lacking: Lacking,
    /// The topic that they would be produced to, if they would be.
    republish: Option<Republish>,
}

/// The same, as it is printed for programs.
#[derive(Serialize)]
struct Dry<'a> {
    /// How many are meant.
    count: u64,
    /// How many of them would be replayed.
    eligible: u64,
    /// How many would not, by reason.
    ineligible: &'a BTreeMap<&'static str, u64>,
    /// A few of those that would.
    samples: &'a [Line],
    /// What is different about those.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    differences: &'a [Difference],
    /// How many lack their payloads, which workers fetch.
    #[serde(skip_serializing_if = "Option::is_none")]
    lacking: Option<lacking::Counts>,
    /// The topic that they would be produced to, if they would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    republish: Option<republish::Said<'a>>,
    /// What the campaign would be.
    campaign: Value,
}

/// Longest time for reading what was replayed before.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many dead letters are shown before they are replayed.
const SAMPLES: usize = 5;

/// Starts a campaign, and tells how it goes.
pub(super) fn replay(config: &Config, options: &Replay, output: Output) -> Result<(), Failed> {
    let wanted = Wanted::of(&options.which)?;
    if !wanted.is_said() {
        let message = "no option says which dead letters are meant; --died ..now means all of now";
        return Err(Failed::because(Exit::Usage, message));
    }
    let name = options.name();
    let mut keys = options.keys(&name)?;
    follow::request(&keys)?;
    let republish = Republish::of(config, options.to_scene.as_deref(), options.republish)?;
    let url = options.to_url.as_deref();
    let retarget = url.map(|url| Retarget::of(config, &name, url));
    let retarget = retarget.transpose()?;
    let mut past = None;
    if let Some(None) = options.edit {
        let past = past.insert(Past::read(config)?);
        edit::in_editor(config, &wanted, past, &mut keys)?;
    }
    let spec = spec(&keys)?;
    let count = |republish| {
        let past = past.map_or_else(|| Past::read(config), Ok)?;
        count(config, &wanted, (&spec, republish), &past)
    };
    if let Some(retarget) = &retarget {
        retarget.tell();
    }
    if options.asking.dry_run {
        return count(republish)?.dry_run(&spec, output);
    }
    if options.asking.yes {
        if let Some(republish) = republish {
            republish.tell();
        }
    } else {
        ask::somebody(|| {
            "a replay starts tasks, and nobody can be asked here whether it shall: add --yes, or --dry-run to see which dead letters are meant".to_owned()
        })?;
        let counted = count(republish)?;
        counted.looked.end("")?;
        counted.show()?;
        let what = format!("replay {} as campaign {name}", counted.words());
        ask::agreement(&what, "nothing was sent")?;
    }
    if let Some(retarget) = &retarget {
        retarget.put(config)?;
    }
    let sent = follow::send(config, &name, &keys)?;
    follow::started(config, &sent, &name, &options.asking, output)
}

/// Which dead letters were replayed before.
fn replayed(config: &Config) -> Replayed {
    let topics = topics(config);
    let topic = &topics.order;
    let (client, group) = (
        client_config(config.kafka.consumer()),
        &config.processor.group,
    );
    let mut replayed = Replayed::default();
    let take = |message: &BorrowedMessage<'_>| {
        replayed.take(message.partition(), message.key(), message.payload());
    };
    let deadline = Instant::now() + PATIENCE;
    if let Err(error) = Follower::start(&client, (topic, group), deadline, take) {
        say(&format!(
            "note: which dead letters were replayed before is not known, since {topic} cannot be read: {error}"
        ));
    }
    replayed
}

/// The campaigns that are not over, whose letters no later one replays.
fn claimants(config: &Config) -> Result<Vec<Campaign>, Failed> {
    let campaigns = read::all(config)?;
    let all = campaigns.newest_first();
    Ok(all.filter(|it| it.has_claims()).cloned().collect())
}

/// What a request wants of a campaign.
fn spec(keys: &Map<String, Value>) -> Result<Arc<Spec>, Failed> {
    let (_, request) = follow::request(keys)?;
    match &request.verb {
        Verb::Start(spec) => Ok(Arc::clone(spec)),
        Verb::Pause | Verb::Resume | Verb::Abort => unreachable!("a replay starts a campaign"),
    }
}

/// Counts the dead letters that are meant.
fn count(
    config: &Config,
    wanted: &Wanted,
    (spec, mut republish): (&Spec, Option<Republish>),
    past: &Past,
) -> Result<Counted, Failed> {
    let (mut eligible, mut others, mut samples) = (0, BTreeMap::new(), Vec::new());
    let (mut differences, mut refusal) = (Vec::new(), None);
    let (mut lacking, edit) = (Lacking::of(config), spec.edit.as_ref());
    let looked = find::each(config, wanted, |mut found| {
        let open = past.ineligible(&found, edit).map_or(Ok(()), Err);
        let whole = open.and_then(|()| lacking.look(&mut found, edit));
        let edited = whole.and_then(|whole| {
            // What workers fetch is edited by them.
            let edit = edit.filter(|_| whole == Whole::Yes);
            let edited = edit.map(|edit| letter::edited(&found.record, edit));
            edited.transpose().map_err(|why| {
                refusal.get_or_insert(why);
                Ineligible::EditFailed
            })
        });
        match edited {
            Err(why) => *others.entry(why.word()).or_default() += 1,
            Ok(payload) => {
                eligible += 1;
                if let Some(republish) = &mut republish {
                    republish.look(&found);
                }
                if samples.len() < SAMPLES {
                    samples.push(Line::of(&found));
                    differences.extend(edit::difference(&found, spec, payload));
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(Counted {
        looked,
        eligible,
        others,
        samples,
        differences,
        refusal,
        lacking,
        republish,
    })
}

// === impl Past ===

impl Past {
    /// Reads it.
    fn read(config: &Config) -> Result<Self, Failed> {
        Ok(Self {
            replayed: replayed(config),
            campaigns: claimants(config)?,
        })
    }

    /// What keeps a dead letter from being replayed with this change of payloads.
    pub(super) fn ineligible(&self, found: &Found<'_>, edit: Option<&Edit>) -> Option<Ineligible> {
        found.ineligible(&self.replayed, &self.campaigns, edit)
    }
}

// === impl Replay ===

impl Replay {
    /// The name of the campaign.
    fn name(&self) -> String {
        let random = || {
            let id = Uuid::new_v4().simple().to_string();
            format!("replay-{}", &id[..8])
        };
        self.name.clone().unwrap_or_else(random)
    }

    /// The keys of the request.
    fn keys(&self, name: &str) -> Result<Map<String, Value>, Failed> {
        let mut keys = self.asking.keys(Verb::WORDS[0], name);
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        let mut selects = self.which.select.parts()?;
        if selects.len() > 1 {
            let message = "there are more ids than a campaign may name; say what the dead letters have in common, such as --fingerprint, or start several campaigns";
            return Err(Failed::because(Exit::Usage, message));
        }
        if let Some(select) = selects.pop().filter(|it| *it != Value::Object(Map::new())) {
            put("select", select);
        }
        if let Some(died) = &self.which.died {
            put("died", died.clone().into());
        }
        let steps = if self.ramp.is_empty() {
            STEPS.to_vec()
        } else {
            self.ramp.clone()
        };
        put("ramp", steps.into());
        put("failure_rate", self.stop_at.unwrap_or(FAILURE_RATE).into());
        if let Some(rate) = self.rate {
            put("rate", rate.into());
        }
        let made = self.to_url.as_ref().map(|_| retarget::scene_of(name));
        if let Some(scene) = made.as_ref().or(self.to_scene.as_ref()) {
            put("scene", scene.clone().into());
        }
        if !self.set_header.is_empty() {
            let headers = self.set_header.iter().map(|(name, value)| {
                let pairs = [("name", name), ("value", value)];
                let pairs = pairs.map(|(key, text)| (key.to_owned(), text.clone().into()));
                Value::Object(pairs.into_iter().collect())
            });
            put("set_headers", headers.collect());
        }
        if !self.remove_header.is_empty() {
            put("remove_headers", self.remove_header.clone().into());
        }
        if let Some(Some(path)) = &self.edit {
            put("patch", edit::patch(path)?.into());
        }
        for (key, is_set) in [
            ("include_new", self.include_new),
            ("keep_deadline", self.keep_deadline),
        ] {
            if is_set {
                put(key, true.into());
            }
        }
        Ok(keys)
    }
}

// === impl Counted ===

impl Counted {
    /// What it is, in words.
    fn words(&self) -> String {
        let Self {
            eligible, others, ..
        } = self;
        let others = others.iter();
        let others = others.map(|(why, count)| format!("{count} {why}"));
        let others: Vec<String> = others.collect();
        if others.is_empty() {
            format!("{eligible} dead letters")
        } else {
            format!("{eligible} dead letters (and not: {})", others.join(", "))
        }
    }

    /// Shows a few of those that would be replayed, and what is different about them.
    fn show(&self) -> Result<(), Failed> {
        if !self.samples.is_empty() {
            print(&self.samples, Output::Table)?;
        }
        for Difference { id, diff } in &self.differences {
            say(&format!("{} becomes:\n{diff}", terminal::line(id)));
        }
        self.tell();
        if let Some(why) = &self.refusal {
            say(&format!(
                "note: not all can be edited so, such as one of which is said: {why}"
            ));
        }
        Ok(())
    }

    /// Says what is lacking, and where they go.
    fn tell(&self) {
        self.lacking.tell();
        if let Some(republish) = &self.republish {
            republish.tell();
        }
    }

    /// Says what would be replayed.
    fn dry_run(self, spec: &Spec, output: Output) -> Result<(), Failed> {
        if output == Output::Table {
            self.show()?;
        } else {
            let dry = Dry {
                count: self.looked.count,
                eligible: self.eligible,
                ineligible: &self.others,
                samples: &self.samples,
                differences: &self.differences,
                lacking: self.lacking.counts(),
                republish: self.republish.as_ref().map(Republish::said),
                campaign: campaign::spec_value(spec),
            };
            document(&dry, output)?;
        }
        let words = self.words();
        if output != Output::Table {
            self.tell();
        }
        self.looked.end("")?;
        say(&format!("would be replayed: {words}; nothing was sent"));
        Ok(())
    }
}

/// A number of dead letters a second.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    let rate: Option<u32> = number.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| "expected a whole number of dead letters a second, such as 50/s".to_owned())
}

/// A share, in percent or as a part of one.
fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    let share = share.ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0% to below 100%, such as 20%".to_owned())
}

/// A header.
fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "expected NAME=VALUE".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_and_a_share_are_read_as_people_write_them() {
        assert_eq!(rate("50/s"), Ok(50));
        assert_eq!(rate("7"), Ok(7));
        assert_eq!(share("20%"), Ok(0.2));
        assert_eq!(share("0.05"), Ok(0.05));
        assert_eq!(share("0"), Ok(0.0));
        for text in ["", "0/s", "-1", "50/m", "1.5/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        for text in ["", "100%", "1", "-5%", "NaN", "many"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert!(header("name").is_err());
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
    }
}
