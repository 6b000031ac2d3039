//! The keys of the configuration, as the docs list them: each with its type, default and bounds.
//!
//! Not what is in force, which is [`super::shown`]. Invariant: every key that is read is here, and nothing else; tests compare both.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The keys that lead to it, below its section.
    pub name: &'static str,
    /// The type of its value, in words.
    pub kind: &'static str,
    /// Its value where nothing is said, as it would be written; or `none`.
    pub default: &'static str,
    /// What its value may be, in words.
    pub bounds: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// A table of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The keys that lead to it; nothing for the whole.
    pub name: &'static str,
    /// The page of the docs that lists its keys.
    pub page: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

/// A key: its name, type, default, bounds and meaning.
const fn key([name, kind, default, bounds, meaning]: [&'static str; 5]) -> Key {
    Key {
        name,
        kind,
        default,
        bounds,
        meaning,
    }
}

/// All tables.
pub const SECTIONS: [Section; 12] = [
    Section {
        name: "",
        page: "configuration.md",
        keys: &PROCESS,
    },
    Section {
        name: "tls.NAME",
        page: "tls.md",
        keys: &TLS,
    },
    Section {
        name: "sources.NAME",
        page: "sources.md",
        keys: &SOURCE,
    },
    Section {
        name: "scenes.NAME",
        page: "scenes.md",
        keys: &SCENE,
    },
    Section {
        name: "scenes.NAME.target.http",
        page: "requests.md",
        keys: &HTTP,
    },
    Section {
        name: "scenes.NAME.target.kafka",
        page: "requests.md",
        keys: &KAFKA,
    },
    Section {
        name: "scenes.NAME.rate",
        page: "pacing.md",
        keys: &RATE,
    },
    Section {
        name: "scenes.NAME.concurrency",
        page: "pacing.md",
        keys: &CONCURRENCY,
    },
    Section {
        name: "scenes.NAME.breaker",
        page: "breaker.md",
        keys: &BREAKER,
    },
    Section {
        name: "scenes.NAME.duplicates",
        page: "duplicates.md",
        keys: &DUPLICATES,
    },
    Section {
        name: "scenes.NAME.pending",
        page: "pending.md",
        keys: &PENDING,
    },
    Section {
        name: "scenes.NAME.callback",
        page: "callbacks.md",
        keys: &CALLBACK,
    },
];

/// The keys of `[sources.NAME]`.
const SOURCE: [Key; 4] = [
    key([
        "topic",
        "text",
        "none",
        "none of retide's own",
        "the topic with dead letters of others",
    ]),
    key([
        "scene",
        "text",
        "none",
        "up to 128 bytes",
        "the scene of the tasks that they become",
    ]),
    key([
        "dialect",
        "word",
        "\"auto\"",
        "`\"auto\"`, `\"spring\"`, `\"connect\"`, `\"streams\"`, `\"smallrye\"`, `\"share-group\"`",
        "whose headers they have; `auto` finds it out for each of them",
    ]),
    key([
        "group",
        "text",
        "none",
        "1 to 200 letters, digits, `.`, `_`, `-`; of this source only",
        "the consumer group that reads the topic; without it, that of `[processor]` with `-source-NAME` behind it",
    ]),
];

/// The keys of a process, without those of `[tls.NAME]` and `[scenes.NAME]`.
pub const PROCESS: [Key; 46] = [
    key([
        "kafka.bootstrap.servers",
        "text",
        "\"localhost:9092\"",
        "`HOST:PORT`, more of them with commas",
        "where Kafka is; any other property of librdkafka stands beside it, and goes before the default of client or broker",
    ]),
    key([
        "kafka.client.id",
        "text",
        "\"retide\"",
        "",
        "what clients are called",
    ]),
    key([
        "kafka.consumer.session.timeout.ms",
        "number",
        "15000",
        "what the broker allows",
        "how long a worker may be silent before its shards are given away",
    ]),
    key([
        "kafka.consumer.heartbeat.interval.ms",
        "number",
        "100",
        "below the session timeout",
        "how soon a worker hears of a rebalance",
    ]),
    key([
        "topics.prefix",
        "text",
        "\"retry\"",
        "1 to 200 letters, digits, `.`, `_`, `-`",
        "what the names of topics begin with",
    ]),
    key([
        "topics.partitions",
        "number",
        "12",
        "1 to 10000",
        "the number of shards: the most workers that can share the work",
    ]),
    key([
        "topics.replication_factor",
        "number",
        "-1",
        "1 to 100, or -1",
        "copies of each partition; -1 leaves it to the broker",
    ]),
    key([
        "topics.tiers",
        "list of durations",
        "[\"now\", \"5s\", \"10s\", \"30s\", \"1m\", \"5m\", \"10m\", \"30m\", \"1h\", \"6h\", \"24h\"]",
        "up to 32: `now`, then rising from 5s to 7d",
        "the waits that have a topic of their own",
    ]),
    key([
        "topics.tasks.envelope",
        "word",
        "none",
        "`\"json\"`, `\"avro\"`",
        "the form of the envelope that every record of `PREFIX.tasks` is, for producers without headers",
    ]),
    key([
        "topics.callbacks.format",
        "word",
        "\"json\"",
        "`\"json\"`, `\"avro\"`",
        "how callbacks are written",
    ]),
    key([
        "topics.callbacks.framing",
        "word",
        "\"single-object\"",
        "`\"single-object\"`, `\"confluent\"`",
        "what stands before a callback in Avro",
    ]),
    key([
        "topics.callbacks.schema_id",
        "number",
        "none",
        "with `confluent` only",
        "the number of the schema in the registry; without it the registry is asked",
    ]),
    key([
        "topics.alerts.format",
        "word",
        "\"json\"",
        "`\"json\"`, `\"avro\"`",
        "how alerts are written",
    ]),
    key([
        "topics.alerts.framing",
        "word",
        "\"single-object\"",
        "`\"single-object\"`, `\"confluent\"`",
        "what stands before an alert in Avro",
    ]),
    key([
        "topics.alerts.schema_id",
        "number",
        "none",
        "with `confluent` only",
        "the number of the schema in the registry; without it the registry is asked",
    ]),
    key([
        "topics.events.format",
        "word",
        "\"avro\"",
        "`\"avro\"`, `\"json\"`",
        "how events are written",
    ]),
    key([
        "topics.events.enabled",
        "true or false",
        "true",
        "",
        "whether there is an audit log; without it, a hop is one record and not two",
    ]),
    key([
        "topics.dead_letters.also",
        "word",
        "\"none\"",
        "`\"none\"`, `\"spring\"`, `\"connect\"`",
        "whose headers dead letters have beside retide's, for tools that read those",
    ]),
    key([
        "topics.dead_letters.warn_before",
        "duration",
        "\"1d\"",
        "`\"0s\"`: nobody is told",
        "how long before dead letters go that nobody has replayed an alert says so, at most a tenth of what their topic keeps",
    ]),
    key([
        "topics.scenes.format",
        "word",
        "\"avro\"",
        "`\"avro\"`, `\"json\"`",
        "how scenes are written",
    ]),
    key([
        "processor.group",
        "text",
        "\"retide\"",
        "1 to 200 letters, digits, `.`, `_`, `-`",
        "the consumer group",
    ]),
    key([
        "processor.instance_id",
        "text",
        "none",
        "`${NAME}` stands for a variable",
        "the name of a process that keeps its shards while it restarts: static membership",
    ]),
    key([
        "processor.workers",
        "number",
        "1",
        "1 or more",
        "workers of a process",
    ]),
    key([
        "processor.guarantee",
        "word",
        "\"exactly_once\"",
        "`\"exactly_once\"`, `\"at_least_once\"`",
        "what a crash may repeat",
    ]),
    key([
        "processor.commit_interval",
        "duration",
        "\"100ms\"",
        "more than 0",
        "how long a transaction collects",
    ]),
    key([
        "processor.memory_limit",
        "size",
        "\"512MiB\"",
        "16MiB or more",
        "memory for tasks and keys, of a process",
    ]),
    key([
        "processor.drain_deadline",
        "duration",
        "\"5s\"",
        "more than 0",
        "how long calls in flight are waited for when a shard is given away",
    ]),
    key([
        "processor.unknown_scene_hold",
        "duration",
        "\"7d\"",
        "more than 0",
        "how long a task is held at most whose scene does not exist, or whose secret is missing",
    ]),
    key([
        "processor.ignore_unusable_scenes",
        "true or false",
        "false",
        "",
        "whether to start although scenes on the topic cannot be used",
    ]),
    key([
        "admin.listen",
        "address",
        "\"off\"",
        "`\"IP:PORT\"`, `\"off\"`",
        "where `/livez /readyz /metrics /version` are",
    ]),
    key([
        "admin.scene_series",
        "number",
        "100",
        "0 or more",
        "scenes with series of their own in `/metrics`; the others count together as `other`",
    ]),
    key([
        "egress.only",
        "word",
        "none",
        "`\"public\"`, `\"allowed\"`",
        "the only addresses that are dialled, besides those of `allow`",
    ]),
    key([
        "egress.deny",
        "list of words",
        "[\"link-local\", \"metadata\"]",
        "`link-local`, `metadata`, `loopback`, `private`, `reserved`, `public`",
        "classes of addresses that are not dialled",
    ]),
    key([
        "egress.allow",
        "list",
        "none",
        "addresses, networks, names, each with a port or without",
        "what is dialled in any case",
    ]),
    key([
        "egress.ports",
        "list",
        "none",
        "`443`, `\"8000-8999\"`",
        "the only ports that are dialled; all, where none is named",
    ]),
    key([
        "egress.error_bodies",
        "true or false",
        "true",
        "",
        "whether the start of an answer is part of an error",
    ]),
    key([
        "schemas.registry",
        "text",
        "none",
        "`http` or `https`",
        "the registry that is asked for schemas of other writers",
    ]),
    key([
        "schemas.username",
        "text",
        "none",
        "with `registry` only",
        "the name that it is shown",
    ]),
    key([
        "schemas.password",
        "text",
        "none",
        "with `username` only",
        "the password to it",
    ]),
    key([
        "schemas.token",
        "text",
        "none",
        "instead of `username`",
        "the token that it is shown",
    ]),
    key([
        "schemas.tls",
        "text",
        "none",
        "a profile of `[tls]`",
        "how TLS is spoken with it",
    ]),
    key([
        "schemas.timeout",
        "duration",
        "\"5s\"",
        "more than 0",
        "how long an answer is waited for",
    ]),
    key([
        "schemas.ids",
        "table",
        "none",
        "numbers and files, or `\"RetryTask\"`",
        "schemas that have these numbers, without a registry",
    ]),
    key([
        "schemas.files",
        "list",
        "none",
        "",
        "files with schemas that are known by their fingerprints",
    ]),
    key([
        "secrets.files",
        "list",
        "none",
        "folders",
        "the only folders whose files scenes may name as secrets; all, where none is named",
    ]),
    key([
        "secrets.env",
        "list",
        "none",
        "`*` at the end stands for anything",
        "the only variables that scenes may name as secrets, such as `\"SHOP_*\"`; all but `RETIDE__…`, where none is named",
    ]),
];

/// The keys of a profile of TLS.
const TLS: [Key; 8] = [
    key([
        "ca",
        "file",
        "none",
        "PEM",
        "certificates of those who are trusted; nobody else is",
    ]),
    key([
        "system_roots",
        "true or false",
        "false",
        "",
        "with `ca`: whether those whom the system trusts are trusted as well",
    ]),
    key([
        "cert",
        "file",
        "none",
        "PEM; with `key`",
        "the client's certificate with its chain",
    ]),
    key([
        "key",
        "file",
        "none",
        "PEM, not encrypted",
        "the key of the certificate",
    ]),
    key([
        "server_name",
        "text",
        "none",
        "",
        "the name that is asked for (SNI) and has to be proved; the host of the address, where none is named",
    ]),
    key([
        "min_version",
        "word",
        "none",
        "`\"1.2\"`, `\"1.3\"`",
        "the oldest version; 1.2, where none is named",
    ]),
    key([
        "max_version",
        "word",
        "none",
        "`\"1.2\"`, `\"1.3\"`",
        "the newest version",
    ]),
    key([
        "hosts",
        "list",
        "none",
        "names, `*.` in front stands for any",
        "who sees the client's certificate; all, where none is named",
    ]),
];

/// The keys of a scene.
pub const SCENE: [Key; 20] = [
    key([
        "target",
        "table",
        "none",
        "needed",
        "where attempts go: `http` or `kafka`",
    ]),
    key([
        "backoff",
        "table",
        "{ exponential = { first = \"1s\", factor = 2.0, max = \"1h\" } }",
        "1ms to 366d",
        "the waits between attempts",
    ]),
    key([
        "jitter",
        "word",
        "\"none\"",
        "`\"none\"`, `\"full\"`, `\"equal\"`, `\"decorrelated\"`",
        "how waits are spread",
    ]),
    key([
        "from",
        "word",
        "\"actual\"",
        "`\"actual\"`, `\"scheduled\"`",
        "what waits are counted from: the end of the attempt, or when it was due",
    ]),
    key([
        "max_attempts",
        "number",
        "16",
        "1 or more",
        "attempts before a task is given up",
    ]),
    key([
        "max_throttled",
        "number",
        "none",
        "1 or more",
        "attempts that may be throttled before a task is given up, which do not count as the others do; ten for each of `max_attempts`, where none is named",
    ]),
    key([
        "on_exhausted",
        "word",
        "\"dead\"",
        "`\"dead\"`, `\"hold\"`",
        "what becomes of a task that is out of attempts: it is dead, or it is held until people let it go",
    ]),
    key([
        "max_held",
        "number",
        "none",
        "1 to 100,000",
        "tasks out of attempts that are held in a shard, with `on_exhausted = \"hold\"`; more are dead; 1,000, where none is named",
    ]),
    key([
        "cooldown",
        "word",
        "\"host\"",
        "`\"host\"`, `\"none\"`",
        "what waits when a target asks to be left alone: all that call the same host, or the task that was told so",
    ]),
    key([
        "brake",
        "true or false",
        "true",
        "",
        "whether the scene stops when its tasks suddenly die in numbers",
    ]),
    key([
        "on",
        "table",
        "none",
        "`throttled`, `timeout`, `retryable`",
        "other waits for failures of one class",
    ]),
    key([
        "deadline",
        "duration",
        "none",
        "more than 0, at most 366d",
        "the time from the record's timestamp after which no attempt starts",
    ]),
    key([
        "rate",
        "table",
        "none",
        "",
        "attempts per time, of the whole group",
    ]),
    key([
        "concurrency",
        "number or table",
        "64",
        "1 or more",
        "calls in flight, per process",
    ]),
    key([
        "weight",
        "number",
        "1",
        "1 to 100",
        "the part of the scene where scenes wait for each other",
    ]),
    key([
        "breaker",
        "table",
        "none",
        "",
        "when the target is left alone",
    ]),
    key([
        "ordering",
        "word",
        "\"none\"",
        "`\"none\"`, `\"key\"`",
        "whether tasks of a key wait for each other",
    ]),
    key([
        "duplicates",
        "word or table",
        "\"allow\"",
        "`\"allow\"`, `\"drop\"`, `\"replace\"`, `\"keep-due\"`",
        "what becomes of a task whose id another one has, or had",
    ]),
    key([
        "pending",
        "table",
        "none",
        "",
        "how long a target may take that says that it will answer later; 1h, or up to 24h if it asks for it, where none is named",
    ]),
    key([
        "callback",
        "table",
        "none",
        "",
        "where ends are reported besides the callbacks topic",
    ]),
];

/// The keys of a target that is called by HTTP.
const HTTP: [Key; 18] = [
    key([
        "url",
        "text",
        "none",
        "needed; `http` or `https`",
        "the address that is called",
    ]),
    key([
        "timeout",
        "duration",
        "\"10s\"",
        "more than 0, at most 1h",
        "the time of a whole attempt",
    ]),
    key([
        "connect_timeout",
        "duration",
        "none",
        "more than 0, at most `timeout`",
        "the part of it until there is a connection; 3/4 of it and at most 10s, where none is named",
    ]),
    key([
        "idle_timeout",
        "duration",
        "\"4s\"",
        "at most 24h",
        "how long a connection is kept without use; sooner where the target says `Keep-Alive: timeout=`",
    ]),
    key([
        "max_age",
        "duration",
        "\"2m\"",
        "at most 24h",
        "how long a connection is kept at all; up to a quarter less, so that not all are closed at once",
    ]),
    key([
        "resend",
        "true or false",
        "true",
        "",
        "whether a request that was certainly not processed is sent again within the attempt",
    ]),
    key([
        "headers",
        "table",
        "none",
        "",
        "headers of each request, in place of the record's",
    ]),
    key([
        "success",
        "list",
        "[]",
        "statuses, classes",
        "what counts as success, whatever HTTP makes of it",
    ]),
    key([
        "retryable",
        "list",
        "[]",
        "statuses, classes, ways without an answer",
        "what is tried again",
    ]),
    key([
        "throttled",
        "list",
        "[]",
        "statuses, classes, ways without an answer",
        "what asks for rest",
    ]),
    key([
        "permanent",
        "list",
        "[]",
        "statuses, classes, ways without an answer",
        "what is never tried again",
    ]),
    key([
        "max_reply",
        "number",
        "65536",
        "bytes",
        "how much of an answer is read",
    ]),
    key([
        "tls",
        "text",
        "none",
        "a profile of `[tls]`",
        "how TLS is spoken",
    ]),
    key([
        "content_type",
        "text",
        "none",
        "a media type",
        "what payloads are whose record does not say",
    ]),
    key([
        "headers_from_task",
        "list",
        "[\"*\"]",
        "names, `*` stands for any characters",
        "which headers of the record are sent",
    ]),
    key([
        "headers_not_from_task",
        "list",
        "[]",
        "names, `*` stands for any characters",
        "which are not, whatever the other list says",
    ]),
    key([
        "max_retry_after",
        "duration",
        "\"24h\"",
        "at most 366d",
        "the longest wait that the target may ask for",
    ]),
    key([
        "rate_limit_reset",
        "true or false",
        "false",
        "",
        "whether `RateLimit-Reset` and the like count where there is no `Retry-After`",
    ]),
];

/// The keys of a target that is a topic.
const KAFKA: [Key; 1] = [key([
    "topic",
    "text",
    "none",
    "needed; a name that Kafka allows",
    "the topic to which attempts produce",
])];

/// The keys of a rate.
const RATE: [Key; 4] = [
    key([
        "limit",
        "number",
        "none",
        "needed; 1 or more",
        "attempts per `per`",
    ]),
    key([
        "per",
        "duration",
        "\"1s\"",
        "more than 0, at most 366d",
        "the span",
    ]),
    key([
        "burst",
        "number",
        "none",
        "1 or more",
        "attempts that may start at once after a quiet time; what passes in 100ms, where none is named",
    ]),
    key([
        "of",
        "word",
        "\"scene\"",
        "`\"scene\"`, `\"host\"`",
        "whose attempts count: those of the scene, or of all scenes that call the same host by the same rate",
    ]),
];

/// The keys of a concurrency.
const CONCURRENCY: [Key; 4] = [
    key(["max", "number", "64", "1 or more", "the most calls"]),
    key(["min", "number", "1", "1 to `max`", "the fewest calls"]),
    key([
        "adaptive",
        "true or false",
        "true",
        "",
        "whether the number follows the target; if not, it is `max`",
    ]),
    key([
        "of",
        "word",
        "\"scene\"",
        "`\"scene\"`, `\"host\"`",
        "whose calls count: those of the scene, or of all scenes that call the same host by the same concurrency",
    ]),
];

/// The keys of a breaker.
const BREAKER: [Key; 8] = [
    key([
        "failure_rate",
        "number",
        "0.5",
        "over 0, at most 1",
        "the part of the calls that fail at which it opens",
    ]),
    key([
        "slow_call",
        "duration",
        "none",
        "1ms to 1h",
        "a call that takes longer is slow; none is, where none is named",
    ]),
    key([
        "slow_rate",
        "number",
        "0.8",
        "over 0, at most 1; with `slow_call`",
        "the part of slow calls at which it opens",
    ]),
    key([
        "window",
        "duration",
        "\"30s\"",
        "100ms to 1h",
        "how long a call counts",
    ]),
    key([
        "min_calls",
        "number",
        "20",
        "1 to 1000000",
        "calls in the window below which it stays closed; so many failed or slow ones in a row open it",
    ]),
    key([
        "open",
        "duration",
        "\"10s\"",
        "100ms to 1h",
        "how long it is open at first",
    ]),
    key([
        "probes",
        "number",
        "5",
        "1 to 1000",
        "calls at once when it is half-open, and how many have to succeed",
    ]),
    key([
        "slow_start",
        "duration",
        "\"30s\"",
        "0 to 1h",
        "the time after it closed in which calls in flight grow back to `concurrency`",
    ]),
];

/// The keys of the limits of attempts whose targets answer later.
const PENDING: [Key; 2] = [
    key([
        "for",
        "duration",
        "\"1h\"",
        "1ms to `max`",
        "the limit, where the target does not say; `max`, where none is named and that is less",
    ]),
    key([
        "max",
        "duration",
        "\"24h\"",
        "1ms to 366d",
        "the longest limit that the target may ask for; `for`, where none is named and that is more",
    ]),
];

/// The keys of duplicates.
const DUPLICATES: [Key; 2] = [
    key([
        "mode",
        "word",
        "\"drop\"",
        "`\"allow\"`, `\"drop\"`, `\"replace\"`, `\"keep-due\"`",
        "what becomes of a task whose id another one has, or had",
    ]),
    key([
        "window",
        "duration",
        "\"1h\"",
        "at most 7d",
        "how long after its end a task still has its id; `0s`, where none is named and newcomers replace",
    ]),
];

/// The keys of a callback's delivery.
const CALLBACK: [Key; 2] = [
    key([
        "target",
        "table",
        "none",
        "needed",
        "where callbacks go: `http` or `kafka`",
    ]),
    key([
        "on",
        "list of words",
        "[\"delivered\", \"dead\", \"expired\"]",
        "one of them at least",
        "the ends that are reported",
    ]),
];
