//! What a configuration means, and what is said of one that means nothing.

use std::fs;

use toml::{Table, Value};

use retide_avro::schemas::{Key, Meaning};
use retide_connectors::TargetConfig;
use retide_core::{Backoff, Jitter, Timestamp};

use super::kafka::{Properties, Refusal};
use super::*;

const SCENE: &str = "target = { http = { url = 'http://h/' } }\nbackoff = { levels = { preset = 'classic' } }\nrate = { limit = 5, per = '1m' }\ndeadline = '1h'\n";

const POINTS: &str = "target = { kafka = { topic = 'x' } }\nbackoff = { at = { times = ['2026-12-24T09:00:00.5+01:00', 2027-01-01T00:00:00Z] } }\nfrom = 'scheduled'\n";

const CLASSES: &str = r"
    target = { http = { url = 'http://h/', throttled = [503, 'timeout'], permanent = ['reply'] } }
    backoff = { cron = { schedule = '30 2 * * MON-FRI', timezone = 'Europe/Berlin' } }
    max_attempts = 9
    [on.throttled]
    backoff = { exponential = { first = '1s', max = '1h' } }
    jitter = 'decorrelated'
    [on.timeout]
    backoff = { random = { min = '1s', max = '9s' } }
    [on.retryable]
    max_attempts = 3
";

const ADAPTIVE: &str = "target = { http = { url = 'http://h/' } }\nconcurrency = { max = 9, min = 3, adaptive = false }\n";

const PENDING: &str =
    "target = { http = { url = 'http://h/' } }\npending = { for = '5m', max = '2h' }\n";

const BREAKER: &str = "target = { http = { url = 'http://h/' } }\nbreaker = { failure_rate = 0.25, slow_call = '5s', slow_rate = 0.9, window = '1m', min_calls = 5, open = '1s', probes = 1, slow_start = '0s' }\n";

/// A client that knows the names of properties, that times are numbers, and no protocol but one.
struct Names;

impl Client for Names {
    fn check(&self, property: &str, value: &str) -> Result<(), Refusal> {
        let is_time = property.rsplit('.').next() == Some("ms");
        let number = is_time.then(|| value.parse::<i32>());
        match number {
            _ if !property::NAMES.contains(&property) => Err(Refusal::Unknown),
            Some(Err(_)) => Err(Refusal::NotANumber("a number".to_owned())),
            None if property == "security.protocol" && value != "SASL_SSL" => {
                Err(Refusal::Value(format!("invalid value \"{value}\"")))
            }
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn create(&self, _: &Properties, _: &Properties) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let source = Source::text("retide.toml", text.to_owned())?.overlay(variables)?;
    Config::from_source(&source, &Overrides::default(), &Names)
}

pub(crate) fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    read(text, variables).expect_err("refused").to_string()
}

#[test]
fn what_is_written_is_in_force() {
    let config = read(
        r#"
        [kafka]
        bootstrap.servers = "kafka-1:9092"
        "security.protocol" = "SASL_SSL"
        [kafka.consumer]
        session.timeout.ms = 10000
        [topics]
        prefix = "again"
        tiers = ["now", "10s", "1h"]
        events = { enabled = false }
        [topics.callbacks]
        format = "avro"
        [processor]
        guarantee = "at_least_once"
        commit_interval = "50ms"
        memory_limit = "64MiB"
        [admin]
        listen = "127.0.0.1:9464"
        [scenes.payment]
        target = { http = { url = "https://shop.example/paid", timeout = "5s" } }
        backoff = { exponential = { first = "1s", factor = 2.0, max = "1h" } }
        jitter = "equal"
        max_attempts = 16
        deadline = "24h"
        rate = { limit = 100, per = "1s", burst = 20 }
        concurrency = 64
        breaker = {}
        callback = { target = { http = { url = "https://shop.example/retry-ended" } }, on = ["delivered", "dead", "expired"] }
        "#,
        &[],
    )
    .unwrap();

    assert_eq!(config.kafka.bootstrap(), "kafka-1:9092");
    let consumer = config.kafka.consumer();
    assert_eq!(
        consumer.get("session.timeout.ms").map(String::as_str),
        Some("10000")
    );
    assert_eq!(
        consumer.get("security.protocol").map(String::as_str),
        Some("SASL_SSL")
    );
    assert_eq!(
        config
            .kafka
            .producer()
            .get("session.timeout.ms")
            .map(String::as_str),
        None
    );
    assert_eq!(
        consumer.get("fetch.wait.max.ms").map(String::as_str),
        Some("100")
    );
    assert_eq!(config.topics.tiers.tiers().len(), 3);
    assert_eq!(config.topics.callbacks.format, Format::Avro);
    assert_eq!(config.topics.alerts.format, Format::Json);
    assert_eq!(config.topics.scenes.format, Format::Avro);
    assert_eq!(config.topics.events.format, Format::Avro);
    assert!(!config.topics.events.enabled);
    assert_eq!(config.processor.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(config.processor.memory_limit, 64 << 20);
    assert!(config.scenes.contains_key("payment"));
}

#[test]
fn schemas_are_read_when_the_configuration_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file(
        "good.avsc",
        r#"{"type": "record", "name": "RetryTask", "fields": []}"#,
    );
    let bad = file("bad.avsc", "{");
    let known = |text: &str| read(text, &[]).map(|config| config.topics.tasks.schemas);
    let refused = |text: &str| refusal(text, &[]);

    let schemas = known(&format!(
        "[schemas]\nids = {{ 7 = 'RetryTask', 8 = '{good}' }}\nfiles = ['{good}']\n"
    ));

    let schemas = schemas.unwrap();
    assert_eq!(schemas.meaning(Key::Id(7)), Some(Meaning::Own));
    assert!(matches!(
        schemas.meaning(Key::Id(8)),
        Some(Meaning::Writer(_))
    ));
    assert_eq!(schemas.meaning(Key::Id(9)), None);
    assert!(!schemas.may_ask(Key::Id(9)));
    let registry = "[schemas]\nregistry = 'http://localhost:8081'\n";
    assert!(known(registry).unwrap().may_ask(Key::Id(9)));
    assert_eq!(
        refused(&format!("[schemas]\nids = {{ 7 = '{bad}' }}\n")),
        format!(
            "retide.toml:2:9: schemas.ids.7: {bad} is no Avro schema: no JSON: EOF while parsing an object at line 1 column 1"
        )
    );
    for (text, says) in [
        ("ids = { seven = 'RetryTask' }", "expected the number"),
        ("ids = { 7 = 'nowhere.avsc' }", "cannot read nowhere.avsc"),
        ("registry = 'localhost:8081'", "expected http://"),
        ("registry = 'http://a:b@h/'", "`username`"),
        ("token = 'x'", "set `registry` as well"),
        ("registry = 'http://h/'\nusername = 'x'", "go together"),
        ("registry = 'https://h/'\ntls = 'bank'", "bank"),
        ("registri = 'http://h/'", "registry"),
    ] {
        let refused = refused(&format!("[schemas]\n{text}\n"));
        assert!(refused.contains(says), "{refused}");
    }
    let by_variable = [("RETIDE__SCHEMAS__IDS__7", "RetryTask")];
    let config = read("", &by_variable).unwrap();
    let schemas = config.topics.tasks.schemas;
    assert_eq!(schemas.meaning(Key::Id(7)), Some(Meaning::Own));
}

#[test]
fn a_frame_with_a_number_needs_a_number() {
    let reports = |text: &str| {
        let text = format!("[topics]\ncallbacks = {{ format = 'avro', {text} }}\n");
        read(&text, &[]).map(|config| config.topics.callbacks)
    };

    let given = reports("framing = 'confluent', schema_id = 12").unwrap();

    assert_eq!(
        (given.framing, given.schema_id),
        (Frame::Confluent, Some(12))
    );
    let refused = reports("framing = 'confluent'").unwrap_err().to_string();
    assert!(
        refused.contains("topics.callbacks.framing: set `schema_id`"),
        "{refused}"
    );
    let refused = reports("schema_id = 12").unwrap_err().to_string();
    assert!(refused.contains("topics.callbacks.schema_id"), "{refused}");
    let json = "[topics]\nalerts = { framing = 'confluent', schema_id = 1 }\n";
    assert!(refusal(json, &[]).contains("topics.alerts.framing"));
}

#[test]
fn a_number_of_the_client_with_a_unit_is_refused_where_it_stands() {
    for (text, place) in [
        (
            "[kafka]\nacks = 'all'\nsession.timeout.ms = '10s'\n",
            "3:17",
        ),
        ("[kafka]\n\"session.timeout.ms\" = '10s'\n", "2:1"),
        ("[kafka.consumer]\nsession.timeout.ms = '10s'\n", "2:17"),
    ] {
        let consumer = if text.contains("consumer") {
            "consumer."
        } else {
            ""
        };
        assert_eq!(
            refusal(text, &[]),
            format!(
                "retide.toml:{place}: kafka.{consumer}session.timeout.ms: expected a whole number of milliseconds, found \"10s\"; \
                 write 10000"
            )
        );
    }
}

#[test]
fn a_mistake_is_named_with_its_place_and_what_was_expected() {
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
    let with = |line: &str| format!("{scene}{line}\n");

    for (text, expected) in [
        (
            "[topics]\nprefx = 'a'".to_owned(),
            "retide.toml:2:1: topics.prefx: unknown key `prefx`; did you mean `prefix`?",
        ),
        (
            "[processor]\nworkers = 0".to_owned(),
            "retide.toml:2:1: processor.workers: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            "[processor]\ncommit_interval = 5".to_owned(),
            "retide.toml:2:1: processor.commit_interval: invalid type: integer `5`, expected a duration with its unit, such as \"5s\" or \"24h\"",
        ),
        (
            with("backoff = { exponential = { first = '1s', factor = 0.5, max = '1h' } }"),
            "retide.toml:3:43: scenes.a.backoff.exponential.factor: expected a number of at least 1, found `0.5`",
        ),
        (
            with("max_atempts = 3"),
            "retide.toml:3:1: scenes.a.max_atempts: unknown key `max_atempts`; did you mean `max_attempts`?",
        ),
        (
            with("backoff = { expnential = {} }"),
            "retide.toml:3:1: scenes.a.backoff: unknown value `expnential`; did you mean `exponential`?",
        ),
        (
            with("rate = { limit = 0 }"),
            "retide.toml:3:10: scenes.a.rate.limit: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            "[scenes.a]\nmax_attempts = 3".to_owned(),
            "retide.toml:1:9: scenes.a: missing key `target`",
        ),
        (
            "[scenes.a]\ntarget = { http = { url = 'ftp://h/' } }".to_owned(),
            "retide.toml:2:21: scenes.a.target.http.url: http target: url scheme ftp is neither http nor https",
        ),
        (
            "[kafka]\ngroup.id = 'x'".to_owned(),
            "retide.toml:2:7: kafka.group.id: `group.id` is set by retide: set `group` in [processor]",
        ),
        (
            "[topics]\ntiers = ['5s']".to_owned(),
            "retide.toml:2:1: topics.tiers: the first tier must be `now`",
        ),
    ] {
        assert_eq!(refusal(&text, &[]), expected);
    }
}

#[test]
fn waits_that_could_not_be_scheduled_are_refused_with_their_place() {
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
    let with = |line: &str| format!("{scene}{line}\n");

    for (text, expected) in [
        (
            with("backoff = { random = { min = '5s', max = '1s' } }"),
            "retide.toml:3:36: scenes.a.backoff.random.max: expected a duration of at least `min`",
        ),
        (
            with("backoff = { fixed = { delay = '-1s' } }"),
            "retide.toml:3:23: scenes.a.backoff.fixed.delay: `-1s` is no duration such as `5s`, `1h 30m` or `24h` (units are `ms`, `s`, `m`, `h` and `d`)",
        ),
        (
            with("backoff = { levels = { delays = ['1s', '2000d'] } }"),
            "retide.toml:3:40: scenes.a.backoff.levels.delays[1]: expected a duration of at most 366 days",
        ),
        (
            with("backoff = { levels = { delays = [] } }"),
            "retide.toml:3:13: scenes.a.backoff.levels: expected either `delays`, a list of durations, or `preset`",
        ),
        (
            with("backoff = { exponential = { first = '0s', max = '1h' } }"),
            "retide.toml:3:29: scenes.a.backoff.exponential.first: expected a wait of at least 1ms",
        ),
        (
            with("backoff = { exponential = { first = '1s', factor = nan, max = '1h' } }"),
            "retide.toml:3:43: scenes.a.backoff.exponential.factor: expected a number of at least 1, found `NaN`",
        ),
        (
            with("backoff = { cron = { schedule = '0 0 30 2 *' } }"),
            "retide.toml:3:22: scenes.a.backoff.cron.schedule: a cron expression that does not fire in every year",
        ),
        (
            with("backoff = { cron = { schedule = '0 25 * * *' } }"),
            "retide.toml:3:22: scenes.a.backoff.cron.schedule: no cron expression: Component error: Number out of bounds.",
        ),
        (
            with("backoff = { cron = { schedule = '@daily', timezone = 'Europe/Berln' } }"),
            "retide.toml:3:43: scenes.a.backoff.cron.timezone: unknown time zone `Europe/Berln`; did you mean `Europe/Berlin`?",
        ),
        (
            with("backoff = { at = { times = [] } }"),
            "retide.toml:3:20: scenes.a.backoff.at.times: expected at least one time",
        ),
        (
            with(
                "backoff = { at = { times = ['2026-12-24T09:00:00+01:00', 2026-12-24T08:00:00Z] } }",
            ),
            "retide.toml:3:58: scenes.a.backoff.at.times[1]: expected a time after the one before it",
        ),
        (
            with("backoff = { at = { times = ['tomorrow'] } }"),
            "retide.toml:3:29: scenes.a.backoff.at.times[0]: invalid value: string \"tomorrow\", expected a time with an offset such as \"2026-12-24T09:00:00+01:00\"",
        ),
        (
            with("backoff = { at = { times = [2026-12-24] } }"),
            "retide.toml:3:29: scenes.a.backoff.at.times[0]: invalid value: string \"2026-12-24\", expected a time with an offset such as \"2026-12-24T09:00:00+01:00\"",
        ),
    ] {
        assert_eq!(refusal(&text, &[]), expected);
    }
}

#[test]
fn what_says_two_things_or_nothing_is_refused_with_its_place() {
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
    let with = |line: &str| format!("{scene}{line}\n");

    for (text, expected) in [
        (
            "[scenes.a.target.http]\nurl = 'http://h/'\nretryable = [404, 409]\npermanent = [\n  410,\n  409,\n]".to_owned(),
            "retide.toml:6:3: scenes.a.target.http.permanent[1]: http target: 409 stands in `retryable`, too",
        ),
        (
            "[scenes.a.target.http]\nurl = 'http://h/'\nsuccess = ['timeout']".to_owned(),
            "retide.toml:3:12: scenes.a.target.http.success[0]: http target: timeout is no answer, and so no success",
        ),
        (
            "[scenes.a.target.http]\nurl = 'http://h/'\ntimeout = '2h'".to_owned(),
            "retide.toml:3:1: scenes.a.target.http.timeout: http target: expected a timeout of more than nothing, at most 1h",
        ),
        (
            with("jitter = 'decorrelated'\nbackoff = { fixed = { delay = '1s' } }"),
            "retide.toml:3:1: scenes.a.jitter: jitter `decorrelated` goes with `exponential` waits only",
        ),
        (
            with("jitter = 'full'\n[scenes.a.on.timeout]\nbackoff = { random = { min = '1s', max = '2s' } }"),
            "retide.toml:5:1: scenes.a.on.timeout.backoff: `random` waits are spread already: expected jitter `none`",
        ),
        (
            with("[scenes.a.on.throttled]"),
            "retide.toml:3:14: scenes.a.on.throttled: expected `backoff`, `jitter` or `max_attempts`",
        ),
        (
            with("[scenes.a.on.permanent]\nmax_attempts = 2"),
            "retide.toml:3:14: scenes.a.on.permanent: unknown key `permanent`; expected one of `throttled`, `timeout`, `retryable`",
        ),
        (
            with("[scenes.a.on.timeout]\nmax_attempts = 0"),
            "retide.toml:4:1: scenes.a.on.timeout.max_attempts: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            with("rate = { limit = 5, per = '0s' }"),
            "retide.toml:3:21: scenes.a.rate.per: expected a duration of more than nothing, at most 366 days",
        ),
        (
            with("duplicates = 'merge'"),
            "retide.toml:3:1: scenes.a.duplicates: unknown value `merge`; expected one of `allow`, `drop`, `replace`, `keep-due`",
        ),
        (
            with("duplicates = { window = '8d' }"),
            "retide.toml:3:16: scenes.a.duplicates.window: expected a duration of at most 7d",
        ),
        (
            with("duplicates = 3"),
            "retide.toml:3:1: scenes.a.duplicates: invalid type: integer `3`, expected `\"allow\"`, `\"drop\"`, `\"replace\"`, `\"keep-due\"` or `{ mode, window }`",
        ),
        (
            with("weight = 0"),
            "retide.toml:3:1: scenes.a.weight: expected a whole number from 1 to 100",
        ),
        (
            with("weight = 101"),
            "retide.toml:3:1: scenes.a.weight: expected a whole number from 1 to 100",
        ),
        (
            with("weight = -1"),
            "retide.toml:3:1: scenes.a.weight: invalid value: integer `-1`, expected a whole number",
        ),
        (
            with("callback = { target = { kafka = { topic = 'x' } }, on = [] }"),
            "retide.toml:3:52: scenes.a.callback.on: expected at least one of `delivered`, `dead`, `expired` and `cancelled`",
        ),
    ] {
        assert_eq!(refusal(&text, &[]), expected);
    }
}

#[test]
fn a_breaker_that_means_nothing_is_refused_with_its_place() {
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";

    for (breaker, expected) in [
        (
            "failure_rate = 0",
            "3:13: scenes.a.breaker.failure_rate: expected a number over 0, at most 1, found `0`",
        ),
        (
            "failure_rate = nan",
            "3:13: scenes.a.breaker.failure_rate: expected a number over 0, at most 1, found `NaN`",
        ),
        (
            "slow_call = '1s', slow_rate = 80",
            "3:31: scenes.a.breaker.slow_rate: expected a number over 0, at most 1, found `80`",
        ),
        (
            "slow_rate = 0.5",
            "3:13: scenes.a.breaker.slow_rate: `slow_rate` goes with `slow_call`, which says what is slow",
        ),
        (
            "slow_call = '0s'",
            "3:13: scenes.a.breaker.slow_call: expected a duration of 1ms to 1h",
        ),
        (
            "window = '1ms'",
            "3:13: scenes.a.breaker.window: expected a duration of 100ms to 1h",
        ),
        (
            "min_calls = 0",
            "3:13: scenes.a.breaker.min_calls: expected a number of 1 to 1000000, found `0`",
        ),
        (
            "open = '2h'",
            "3:13: scenes.a.breaker.open: expected a duration of 100ms to 1h",
        ),
        (
            "probes = 5000",
            "3:13: scenes.a.breaker.probes: expected a number of 1 to 1000, found `5000`",
        ),
        (
            "slow_start = '61m'",
            "3:13: scenes.a.breaker.slow_start: expected a duration of 0s to 1h",
        ),
        (
            "widow = '1s'",
            "3:13: scenes.a.breaker.widow: unknown key `widow`; did you mean `window`?",
        ),
    ] {
        let text = format!("{scene}breaker = {{ {breaker} }}");
        assert_eq!(refusal(&text, &[]), format!("retide.toml:{expected}"));
    }
    let topic = "[scenes.a]\ntarget = { kafka = { topic = 'x' } }\nbreaker = {}";
    assert_eq!(
        refusal(topic, &[]),
        "retide.toml:3:1: scenes.a.breaker: a breaker goes with a target that is called, such as `http`"
    );
}

#[test]
fn a_concurrency_is_a_number_or_bounds() {
    let of = |concurrency: &str| {
        let text =
            format!("target = {{ http = {{ url = 'http://h/' }} }}\nconcurrency = {concurrency}");
        let scene = rules("a", text).unwrap().rules("a").unwrap();
        let least = scene.least_concurrency.map(NonZeroU32::get);
        (scene.concurrency.get(), least)
    };

    assert_eq!(of("7"), (7, None));
    assert_eq!(of("{}"), (64, Some(1)));
    assert_eq!(of("{ max = 9, min = 3 }"), (9, Some(3)));
    assert_eq!(of("{ max = 9, min = 3, adaptive = false }"), (9, None));
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
    for (concurrency, expected) in [
        (
            "0",
            "3:1: scenes.a.concurrency: invalid value: integer `0`, expected a whole number of at least 1, or `{ max, min, adaptive, of }`",
        ),
        (
            "'many'",
            "3:1: scenes.a.concurrency: invalid type: string \"many\", expected a whole number of at least 1, or `{ max, min, adaptive, of }`",
        ),
        (
            "{ max = 0 }",
            "3:17: scenes.a.concurrency.max: invalid value: integer `0`, expected a whole number of at least 1",
        ),
        (
            "{ max = 3, min = 4 }",
            "3:26: scenes.a.concurrency.min: expected a number of at most `max`, 3, found `4`",
        ),
        (
            "{ maks = 3 }",
            "3:17: scenes.a.concurrency.maks: unknown key `maks`; did you mean `max`?",
        ),
    ] {
        let text = format!("{scene}concurrency = {concurrency}");
        assert_eq!(refusal(&text, &[]), format!("retide.toml:{expected}"));
    }
}

#[test]
fn targets_have_a_breaker_each_by_the_rule_of_their_scene() {
    let of = |text: &str| rules("a", text.to_owned()).unwrap().rules("a").unwrap();
    let callback = "callback = { target = { http = { url = 'https://ended/?token=s3cret' } } }";

    let own = of(&format!(
        "target = {{ http = {{ url = 'http://h/a' }} }}\nbreaker = {{}}\n{callback}"
    ));
    let same = of("target = { http = { url = 'http://h/b' } }\nbreaker = { probes = 5 }");
    let other = of("target = { http = { url = 'http://h/b' } }\nbreaker = { probes = 6 }");
    let topic = of(&format!(
        "target = {{ kafka = {{ topic = 'x' }} }}\nbreaker = {{}}\n{callback}"
    ));
    let none = of(&format!(
        "target = {{ http = {{ url = 'http://h/a' }} }}\n{callback}"
    ));

    let key = own.breaker.clone().unwrap();
    assert_eq!(key.target.target(), "http://h:80");
    assert_eq!(own.breaker, same.breaker);
    assert_ne!(own.breaker, other.breaker);
    let key = own.callback.unwrap().breaker.unwrap();
    assert_eq!(key.target.target(), "https://ended:443");
    assert_eq!(topic.breaker, None);
    assert_eq!(topic.callback.unwrap().breaker, Some(key));
    assert_eq!((none.breaker, none.callback.unwrap().breaker), (None, None));
}

#[test]
fn a_limit_may_be_that_of_a_host_that_is_called() {
    let of = |text: &str| rules("a", text.to_owned()).unwrap().rules("a").unwrap();
    let target = "target = { http = { url = 'http://h/a' } }";

    let own = of(&format!("{target}\nrate = {{ limit = 9 }}"));
    let common = of(&format!("{target}\nrate = {{ limit = 9, of = 'host' }}"));
    let text =
        "[scenes.a]\ntarget = { kafka = { topic = 'x' } }\nrate = { limit = 9, of = 'host' }";

    let calls = of(&format!(
        "{target}\nconcurrency = {{ max = 8, adaptive = false, of = 'host' }}"
    ));

    assert_eq!((&**own.rate_of(), own.concurrency_of()), ("a", None));
    assert_eq!(&**common.rate_of(), "http://h:80");
    assert_eq!(common.concurrency_of(), None);
    assert_eq!(&**calls.rate_of(), "a");
    assert_eq!(
        calls.concurrency_of().map(|host| &**host),
        Some("http://h:80")
    );
    assert_eq!(
        (calls.concurrency.get(), calls.least_concurrency),
        (8, None)
    );
    assert_eq!(own.rate, common.rate);
    assert_eq!(
        refusal(text, &[]),
        "retide.toml:3:21: scenes.a.rate.of: a limit of the host goes with a target that is called, such as `http`"
    );
}

#[test]
fn durations_have_our_units_everywhere() {
    let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";

    for (text, expected) in [
        (
            format!("{scene}deadline = '30M'"),
            "retide.toml:3:1: scenes.a.deadline: `30M` is no duration; did you mean `30m`?",
        ),
        (
            format!("{scene}backoff = {{ levels = {{ delays = ['5s', '30 min'] }} }}"),
            "retide.toml:3:40: scenes.a.backoff.levels.delays[1]: `30 min` is no duration; did you mean `30m`?",
        ),
        (
            format!("{scene}rate = {{ limit = 1, per = 'PT5M' }}"),
            "retide.toml:3:21: scenes.a.rate.per: `PT5M` is no duration; did you mean `5m`?",
        ),
        (
            "[scenes.a.target.http]\nurl = 'http://h/'\ntimeout = '5M'".to_owned(),
            "retide.toml:3:1: scenes.a.target.http.timeout: `5M` is no duration; did you mean `5m`?",
        ),
        (
            "[processor]\nunknown_scene_hold = '1w'".to_owned(),
            "retide.toml:2:1: processor.unknown_scene_hold: `1w` is no duration; did you mean `7d`?",
        ),
        (
            "[processor]\ndrain_deadline = '10'".to_owned(),
            "retide.toml:2:1: processor.drain_deadline: `10` has no unit",
        ),
        (
            format!("{scene}backoff = {{ fixed = {{ delay = '0s' }} }}"),
            "retide.toml:3:23: scenes.a.backoff.fixed.delay: expected a wait of at least 1ms",
        ),
    ] {
        let message = refusal(&text, &[]);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn what_somebody_meant_to_be_replaced_is_refused_with_the_way_that_works() {
    let header = |value: &str| {
        format!(
            "[scenes.pay.target.http]\nurl = 'http://h/'\nheaders = {{ authorization = '{value}' }}"
        )
    };

    let message = refusal(&header("Bearer ${TOKEN}"), &[]);
    assert!(
        message.starts_with("retide.toml:3:13: scenes.pay.target.http.headers.authorization: `${TOKEN}` is not replaced"),
        "{message}"
    );
    assert!(
        message.contains("`authorization = { env = \"TOKEN\", prefix = \"Bearer \" }`"),
        "{message}"
    );
    for value in ["$TOKEN", "$(TOKEN)", "{{ token }}", "Bearer <masked>"] {
        read(&header(value), &[]).unwrap_err();
    }
    for value in ["pa$word", "Bearer abc$", "50$", "a${"] {
        assert_eq!(read(&header(value), &[]).is_ok(), value != "a${", "{value}");
    }
    let url = refusal(
        "[scenes.Pay]\ntarget = { http = { url = 'http://${HOST}/' } }",
        &[],
    );
    assert!(
        url.contains("RETIDE__SCENES__Pay__TARGET__HTTP__URL"),
        "{url}"
    );
    let password = refusal("[kafka]\nsasl.password = '${PASSWORD}'", &[]);
    assert!(
        password.contains("RETIDE__KAFKA__SASL_PASSWORD_FILE"),
        "{password}"
    );
    assert!(read("[processor]\ninstance_id = '${HOSTNAME}'", &[]).is_ok());
    assert!(read("", &[("RETIDE__KAFKA__SASL_PASSWORD", "a${b}")]).is_ok());
    let file = refusal(
        "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization_FILE = '/run/tok' } } }",
        &[],
    );
    assert!(
        file.contains("did you mean `authorization = { file = \"…\" }`?"),
        "{file}"
    );
}

#[test]
fn variables_keep_the_names_of_scenes_and_are_text_where_text_is_wanted() {
    let text = "[scenes.OrderPaid]\ntarget = { http = { url = 'http://h/', headers = { X-Api-Version = '1' } } }\n";
    for name in ["OrderPaid", "ORDERPAID", "orderpaid"] {
        let config = read(
            text,
            &[(&format!("RETIDE__SCENES__{name}__MAX_ATTEMPTS"), "3")],
        )
        .unwrap();
        assert_eq!(config.scenes["OrderPaid"].max_attempts.get(), 3);
        assert_eq!(config.scenes.len(), 1);
    }
    let config = read(
        text,
        &[
            ("RETIDE__PROCESSOR__GROUP", "2024"),
            ("RETIDE__TOPICS__PREFIX", "007"),
            (
                "RETIDE__SCENES__OrderPaid__TARGET__HTTP__HEADERS__X_API_VERSION",
                "2",
            ),
            (
                "RETIDE__SCENES__OrderPaid__TARGET__HTTP__HEADERS__X_ON",
                "true",
            ),
        ],
    )
    .unwrap();
    assert_eq!(
        (&*config.processor.group, &*config.topics.prefix),
        ("2024", "007")
    );
    let written = toml::to_string(&config.scenes["OrderPaid"]).unwrap();
    assert!(
        written.contains("X-Api-Version = \"2\"") && written.contains("x-on = \"true\""),
        "{written}"
    );

    let missing = refusal("", &[("RETIDE__SCENES__Pay__MAX_ATTEMPTS", "3")]);
    assert_eq!(
        missing,
        "RETIDE__SCENES__Pay__MAX_ATTEMPTS: scenes.Pay: missing key `target`"
    );
    let both = "[scenes.Pay]\ntarget.kafka.topic = 'x'\n[scenes.PAY]\ntarget.kafka.topic = 'x'";
    let unclear = refusal(both, &[("RETIDE__SCENES__pay__WEIGHT", "3")]);
    assert!(
        unclear.starts_with("RETIDE__SCENES__pay__WEIGHT: `pay` may be `PAY` or `Pay`"),
        "{unclear}"
    );
    let once = source::misnamed(
        [
            "RETIDE_KAFKA_BOOTSTRAP_SERVERS",
            "RETIDE_SERVICE_HOST",
            "RETIDE_LOG",
        ]
        .into_iter(),
    );
    assert_eq!(once.len(), 1);
    assert!(
        once[0].contains("did you mean RETIDE__KAFKA__BOOTSTRAP_SERVERS?"),
        "{once:?}"
    );
}

#[test]
fn every_mistake_is_told() {
    let text = "[scenes.a]\r\ntarget = { http = { url = 'http://h/', tmeout = '1s', timeout = '5M' } }\r\nmax_attempts = 0\r\ndeadline = '0s'\r\nweight = 0\r\n[scenes.b]\r\nwieght = 2\r\n[processor]\r\nworkers = 'x'\r\n";

    let message = refusal(text, &[]);

    let lines: Vec<&str> = message.lines().collect();
    for (line, expected) in lines.iter().zip([
        "retide.toml:2:40: scenes.a.target.http.tmeout: ",
        "retide.toml:2:55: scenes.a.target.http.timeout: ",
        "retide.toml:3:1: scenes.a.max_attempts: ",
        "retide.toml:4:1: scenes.a.deadline: ",
        "retide.toml:5:1: scenes.a.weight: ",
        "retide.toml:6:9: scenes.b: missing key `target`",
        "retide.toml:7:1: scenes.b.wieght: ",
        "retide.toml:9:1: processor.workers: ",
    ]) {
        assert!(line.starts_with(expected), "{message}");
    }
    assert_eq!(lines.len(), 8, "{message}");
}

#[test]
fn a_file_begins_with_a_mark_or_not() {
    assert!(Source::text("f", "\u{feff}[topics]\r\nprefix = 'x'\r\n".to_owned()).is_ok());
}

#[test]
fn each_key_is_shown_with_its_default_and_where_it_was_read() {
    let text = "[processor]\nworkers = 2\n[kafka]\nsasl.password = 's3cret'\n[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization = 's3cret' } } }\n";
    let source = Source::text("retide.toml", text.to_owned()).unwrap();
    let source = source
        .overlay([("RETIDE__PROCESSOR__GROUP".to_owned(), "g".to_owned())])
        .unwrap();
    let overrides = Overrides {
        bootstrap: Some("h:1".to_owned()),
        prefix: None,
    };
    let config = Config::from_source(&source, &overrides, &Names).unwrap();

    let shown = keys::shown(&config, &source, &overrides);

    let of = |key: &str| {
        let shown = shown.iter().find(|shown| shown.key == key).unwrap();
        (shown.value.as_str(), shown.origin.as_str())
    };
    assert_eq!(of("processor.workers"), ("2", "retide.toml:2"));
    assert_eq!(of("processor.group"), ("\"g\"", "RETIDE__PROCESSOR__GROUP"));
    assert_eq!(of("kafka.bootstrap.servers"), ("\"h:1\"", "--bootstrap"));
    assert_eq!(of("topics.partitions"), ("12", "default"));
    assert_eq!(
        of("kafka.sasl.password"),
        ("\"<masked>\"".trim_matches('"'), "retide.toml:4")
    );
    assert_eq!(of("scenes.a.max_attempts"), ("16", "default"));
    assert!(!format!("{shown:?}").contains("s3cret"));
    let defaults = keys::shown(
        &Config::default(),
        &Source::default(),
        &Overrides::default(),
    );
    for key in keys::PROCESS {
        let shown = defaults.iter().find(|shown| shown.key == key.name);
        assert_eq!(
            shown.map(|shown| shown.value.as_str()),
            Some(key.default),
            "{}",
            key.name
        );
    }
}

/// The rows of all tables of keys on a page of the docs.
fn rows_of_keys(page: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(page);
    let text = fs::read_to_string(file).unwrap();
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        inside = line.starts_with('|') && (inside || line == KEYS);
        if inside && line.starts_with("| `") {
            rows.push(line.to_owned());
        }
    }
    rows
}

/// The head of a table of keys.
const KEYS: &str = "| key | type | default | bounds | what it says |";

#[test]
fn the_docs_list_every_key_and_no_other() {
    let row = |key: &keys::Key| {
        let keys::Key {
            name,
            kind,
            default,
            bounds,
            meaning,
        } = key;
        let default = match *default {
            "none" => "none".to_owned(),
            default => format!("`{default}`"),
        };
        format!("| `{name}` | {kind} | {default} | {bounds} | {meaning} |")
    };
    let mut pages: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for section in keys::SECTIONS {
        pages
            .entry(section.page)
            .or_default()
            .extend(section.keys.iter().map(row));
    }
    for (page, rows) in pages {
        let (mut listed, mut known) = (rows_of_keys(page), rows.clone());
        listed.sort();
        known.sort();
        assert_eq!(
            listed,
            known,
            "docs/{page} is to list\n{KEYS}\n{}",
            rows.join("\n")
        );
    }
}

#[test]
fn dead_letters_have_the_headers_of_the_library_that_is_named() {
    let library = |text: &str| read(text, &[]).unwrap().topics.dead_letters.also.library();

    assert_eq!(library(""), None);
    for (word, named) in [
        ("none", None),
        ("spring", Some(Library::Spring)),
        ("connect", Some(Library::Connect)),
    ] {
        let text = format!("[topics]\ndead_letters = {{ also = '{word}' }}\n");
        assert_eq!(library(&text), named);
    }
    let misspelt = refusal("[topics.dead_letters]\nalso = 'sprnig'\n", &[]);
    assert!(
        misspelt.contains("retide.toml:2:1: topics.dead_letters.also: ")
            && misspelt.contains("did you mean `spring`?"),
        "{misspelt}"
    );
}

/// The keys that a table of this type has, as its refusal of another one names them.
fn fields<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let table = Table::from_iter([("no-key".to_owned(), Value::from(1))]);
    let refused = T::deserialize(table).err().unwrap().to_string();
    let (_, expected) = refused.split_once("expected ").unwrap();
    let names = expected.split('`').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

#[test]
fn the_keys_of_the_docs_are_those_that_are_read() {
    let below = |table: &str, fields: Vec<String>| -> Vec<String> {
        let fields = fields.iter();
        fields.map(|field| format!("{table}.{field}")).collect()
    };
    let tables = [
        below("topics.tasks", fields::<Intake>()),
        below("topics.callbacks", fields::<Reports>()),
        below("topics.alerts", fields::<Reports>()),
        below("topics.events", fields::<Events>()),
        below("topics.dead_letters", fields::<DeadLetters>()),
        below("topics.scenes", fields::<SceneRecords>()),
    ]
    .concat();
    let mut process = [
        below("topics", fields::<Topics>()),
        below("processor", fields::<Processor>()),
        below("admin", fields::<Admin>()),
        below("egress", fields::<egress::Config>()),
        below("schemas", fields::<Schemas>()),
        below("secrets", fields::<secret::Config>()),
    ]
    .concat();
    process.retain(|key| {
        !tables
            .iter()
            .any(|below| below.starts_with(&format!("{key}.")))
    });
    process.extend(tables);
    let read = [
        ("", process),
        ("tls.NAME", fields::<tls::Config>()),
        ("sources.NAME", fields::<Foreign>()),
        ("scenes.NAME", fields::<Scene>()),
        (
            "scenes.NAME.target.http",
            fields::<retide_connectors::http::Config>(),
        ),
        (
            "scenes.NAME.target.kafka",
            fields::<retide_connectors::kafka::Config>(),
        ),
        ("scenes.NAME.rate", fields::<scene::Rate>()),
        ("scenes.NAME.concurrency", fields::<concurrency::Bounds>()),
        ("scenes.NAME.breaker", fields::<breaker::Breaker>()),
        ("scenes.NAME.duplicates", fields::<duplicates::Within>()),
        ("scenes.NAME.pending", fields::<scene::Pending>()),
        ("scenes.NAME.callback", fields::<scene::Callback>()),
    ];
    assert_eq!(read.len(), keys::SECTIONS.len());
    for (section, (name, mut read)) in keys::SECTIONS.iter().zip(read) {
        assert_eq!(section.name, name);
        // Properties of Kafka's client are no table of ours.
        let known = section.keys.iter().map(|key| key.name);
        let known = known.filter(|name| !name.starts_with("kafka."));
        let mut known: Vec<String> = known.map(str::to_owned).collect();
        known.sort();
        read.sort();
        assert_eq!(known, read, "[{name}]");
    }
    let sections = "egress kafka admin processor scenes schemas secrets sources tls topics";
    let mut all = fields::<Config>();
    all.sort();
    let mut sections: Vec<&str> = sections.split(' ').collect();
    sections.sort_unstable();
    assert_eq!(all, sections, "a section that no page names");
}

#[test]
fn every_kind_of_target_and_every_table_of_a_scene_has_a_section() {
    // Examples show how these are written, on the pages that say what they do.
    let shown = ["target", "backoff", "on"];
    let tables = keys::SCENE.iter();
    let tables = tables.filter(|key| key.kind.contains("table") && !shown.contains(&key.name));
    let tables = tables.map(|key| format!("scenes.NAME.{}", key.name));
    let targets = fields::<TargetConfig>().into_iter();
    let targets = targets.map(|kind| format!("scenes.NAME.target.{kind}"));

    let sections = keys::SECTIONS.map(|section| section.name);
    let missing = tables
        .chain(targets)
        .filter(|name| !sections.contains(&&**name));

    assert_eq!(missing.collect::<Vec<_>>(), <[&str; 0]>::default());
}

#[test]
fn the_defaults_of_the_docs_are_those_in_force() {
    let base = "target = { http = { url = 'http://h/' } }\n";
    let scene = |text: &str| rules("a", format!("{base}{text}")).unwrap();
    let section = |name: &str| {
        keys::SECTIONS
            .iter()
            .find(|section| section.name == name)
            .unwrap()
            .keys
    };
    let written = |name: &str| section(name).iter().filter(|key| key.default != "none");

    for key in written("scenes.NAME") {
        let same = scene(&format!("{} = {}", key.name, key.default));
        assert_eq!(same, scene(""), "{}", key.name);
    }
    for key in written("scenes.NAME.target.http") {
        let same = format!(
            "target = {{ http = {{ url = 'http://h/', {} = {} }} }}",
            key.name, key.default
        );
        // How long connections live is decided where they are made.
        let is_later = ["idle_timeout", "max_age"].contains(&key.name);
        assert!(
            is_later || rules("a", same).unwrap() == scene(""),
            "{}",
            key.name
        );
    }
    for (table, needed) in [
        ("rate", "limit = 1"),
        ("concurrency", ""),
        ("breaker", "slow_call = '1s'"),
        ("pending", ""),
        ("callback", "target = { http = { url = 'http://h/' } }"),
    ] {
        let rules_of = |text: &str| {
            let scene = scene(&format!("[{table}]\n{needed}\n{text}"));
            scene.rules("a").unwrap()
        };
        for key in written(&format!("scenes.NAME.{table}")) {
            let same = rules_of(&format!("{} = {}", key.name, key.default));
            assert_eq!(same, rules_of(""), "{table}.{}", key.name);
        }
    }
}

#[test]
fn syntax_errors_have_a_place() {
    let message = refusal("[topics]\nprefix = \n", &[]);

    assert!(message.starts_with("retide.toml:2:"), "{message}");
}

#[test]
fn a_variable_goes_before_the_file_and_is_named_in_errors() {
    let text = "[processor]\nworkers = 2\n";
    let config = read(
        text,
        &[
            ("RETIDE__PROCESSOR__WORKERS", "3"),
            ("RETIDE__KAFKA__BOOTSTRAP_SERVERS", "b:1"),
            ("RETIDE__TOPICS__PREFIX", "other"),
            ("UNRELATED", "x"),
        ],
    )
    .unwrap();

    assert_eq!(config.processor.workers.get(), 3);
    assert_eq!(config.kafka.bootstrap(), "b:1");
    assert_eq!(config.topics.prefix, "other");
    assert_eq!(
        refusal(text, &[("RETIDE__PROCESSOR__WORKRS", "3")]),
        "RETIDE__PROCESSOR__WORKRS: processor.workrs: unknown key `workrs`; did you mean `workers`?"
    );
    assert_eq!(
        refusal(text, &[("RETIDE__PROCESSOR__WORKERS", "many")]),
        "RETIDE__PROCESSOR__WORKERS: processor.workers: invalid type: string \"many\", expected a whole number of at least 1"
    );
}

#[test]
fn a_variable_can_name_a_file_with_a_secret() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "s3cret\r\n").unwrap();
    let name = "RETIDE__KAFKA__SASL_PASSWORD_FILE";

    let config = read("", &[(name, file.path().to_str().unwrap())]).unwrap();

    let client = config.kafka.client();
    assert_eq!(
        client.get("sasl.password").map(String::as_str),
        Some("s3cret")
    );
    assert!(!format!("{config:?}").contains("s3cret"));
    let refused = refusal("", &[(name, "/nowhere")]);
    assert_eq!(refused, format!("read /nowhere, named by {name},"));
}

#[test]
fn no_error_shows_a_secret() {
    for text in [
        "[kafka]\nsasl.password = ['s3cret']",
        "[kafka]\nsecurity.protocol = 's3cret'",
        "[kafka]\nno.such.property = 's3cret'",
        "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization = [\"s3cret\"] } } }",
        "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = \"s3cret\" } }",
    ] {
        let message = refusal(text, &[]);

        assert!(!message.contains("s3cret"), "{message}");
    }
}

#[test]
fn a_scene_is_over_when_its_last_time_has_passed() {
    let over = |text: &str, now: &str| {
        let scene = rules("a", text.to_owned()).unwrap();
        scene.is_over(Timestamp::from_rfc3339(now).unwrap())
    };

    assert!(!over(POINTS, "2026-12-31T00:00:00Z"));
    assert!(over(POINTS, "2027-01-01T00:00:01Z"));
    assert!(!over(SCENE, "2027-01-01T00:00:01Z"));
    let class = format!(
        "{SCENE}on = {{ timeout = {{ backoff = {{ at = {{ times = [2026-01-01T00:00:00Z] }} }} }} }}"
    );
    assert!(over(&class, "2027-01-01T00:00:01Z"));
}

#[test]
fn what_a_class_of_failures_leaves_out_is_as_in_the_scene() {
    let core = rules("a", CLASSES.to_owned()).unwrap().rules("a").unwrap();

    let [throttled, timeout, retryable] =
        [core.on.throttled, core.on.timeout, core.on.retryable].map(|policy| policy.unwrap());
    assert_eq!(throttled.jitter, Jitter::Decorrelated);
    assert_eq!(throttled.max_attempts.get(), 9);
    assert!(matches!(timeout.backoff, Backoff::Random { .. }));
    assert_eq!(retryable.backoff, core.policy.backoff);
    assert_eq!(retryable.max_attempts.get(), 3);
}

#[test]
fn a_scene_survives_being_written_and_read() {
    for text in [SCENE, POINTS, CLASSES, BREAKER, ADAPTIVE, PENDING] {
        let scene = rules("a", text.to_owned()).unwrap();

        let written = toml::to_string(&scene).unwrap();

        assert_eq!(rules("a", written).unwrap(), scene);
        // As a file in JSON, which is what `export` prints, too.
        let json = serde_json::to_string(&scene).unwrap();
        assert_eq!(serde_json::from_str::<Scene>(&json).unwrap(), scene);
    }
}

#[test]
fn a_limit_of_pending_attempts_is_within_its_bound_and_goes_with_a_target_that_can_ask_for_it() {
    let read = |target: &str, pending: &str| {
        let text = format!("target = {{ {target} }}\n{pending}");
        rules("a", text)
    };
    let http = "http = { url = 'http://h/' }";
    let spans = |pending: &str| {
        let scene = read(http, pending).unwrap();
        let pending = scene.rules("a").unwrap().pending;
        [pending.usual, pending.most].map(|span| span.as_secs() / 60)
    };

    assert_eq!(spans(""), [60, 24 * 60]);
    assert_eq!(spans("pending = {}"), [60, 24 * 60]);
    assert_eq!(spans("pending = { for = '5m' }"), [5, 24 * 60]);
    assert_eq!(spans("pending = { for = '48h' }"), [48 * 60, 48 * 60]);
    assert_eq!(spans("pending = { max = '30m' }"), [30, 30]);
    let kafka = "kafka = { topic = 'x' }";
    for (target, pending, words) in [
        (
            http,
            "pending = { for = '2h', max = '1h' }",
            "pending.for: expected at most `max`, 1h",
        ),
        (
            http,
            "pending = { max = '0s' }",
            "pending.max: expected a duration of at least 1ms",
        ),
        (
            http,
            "pending = { max = '367d' }",
            "pending.max: expected a duration of at most 366 days",
        ),
        (
            kafka,
            "pending = {}",
            "pending: answers that come later go with",
        ),
    ] {
        let refused = read(target, pending).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}
