//! Campaigns as they are written on the commands topic: what people ask of them, how they are, and what their tasks say.
//!
//! ```text
//! {"command":"replay","name":"mend","select":{"scene":"payment"},"ramp":[1,5,20],"failure_rate":0.2,"rate":50,"by":"ann"}
//! {"command":"pause-campaign","name":"mend"}
//! ```
//!
//! Invariant: what is written is read back equal, times in whole milliseconds; a request is read as it is meant or refused with a bounded text.

use std::num::NonZeroU32;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use retide_core::campaign::{
    Campaign, Counts, Edit, Id, Ineligible, Line, MAX_HEADER, MAX_HEADERS, MAX_LOG, Part, Replay,
    Report, Request, Said, Spec, State, Verb,
};
use retide_core::control::Place;
use retide_core::ramp::{FAILURE_RATE, Ramp, STEPS};
use retide_core::{Header, Timestamp};

use super::hold::{is_name, ramp};
use super::select::{select, span_of};
use super::written::{SelectWire, own, spanned};
use super::{
    MAX_KEYS, MAX_REFUSAL, MAX_REQUEST, Writer, clipped, id, json, line, object, one_of, place_of,
    shortened,
};
use crate::headers::{self, MAX_SCENE, is_own, millis};
use crate::json::{
    Broken, Members, Object, any_text, elements_of, expected, members_of, needed, text, utf8,
};
use crate::patch::Patch;

/// The keys of a request.
const KEYS: [&str; 19] = [
    "command",
    "name",
    "id",
    "by",
    "reason",
    "select",
    "died",
    "ramp",
    "failure_rate",
    "rate",
    "scene",
    "set_headers",
    "remove_headers",
    "payload",
    "payload_base64",
    "patch",
    "include_new",
    "keep_deadline",
    "place",
];

/// Those of a start.
pub const SPEC_KEYS: [&str; 13] = [
    "select",
    "died",
    "ramp",
    "failure_rate",
    "rate",
    "scene",
    "set_headers",
    "remove_headers",
    "payload",
    "payload_base64",
    "patch",
    "include_new",
    "keep_deadline",
];

/// The keys of a header that is set.
const HEADER_KEYS: [&str; 3] = ["name", "value", "value_base64"];

/// Whether a request is one of a campaign.
pub(super) fn is_request(value: &[u8]) -> bool {
    let Ok(text) = utf8(value) else { return false };
    let mut members = Vec::new();
    // What is wrong is told by whoever reads it.
    let _ = members_of(text, MAX_KEYS, &mut members);
    let command = members.iter().find(|(key, _)| key == "command");
    let word = command.and_then(|(_, raw)| any_text("command", raw).ok());
    word.is_some_and(|word| Verb::WORDS.contains(&&*word))
}

/// Reads a request that stands at `place`.
pub(super) fn request(value: &[u8], place: Place) -> Result<Request, Broken> {
    if value.len() > MAX_REQUEST {
        return Err(Broken(format!(
            "the command has {} bytes; it may have {MAX_REQUEST}",
            value.len()
        )));
    }
    let members = object(utf8(value)?, "")?;
    let members = Object::try_new("", members, &KEYS[..KEYS.len() - 1])?;
    of_members(&members, place, Writer::Person)
}

/// Reads a request that was passed on.
pub(super) fn asked(value: &[u8]) -> Result<Request, Broken> {
    let members = object(utf8(value)?, "")?;
    let members = Object::try_new("", members, &KEYS)?;
    let place = needed(&members, "place", "the place of a request")?;
    of_members(&members, place_of("place", place)?, Writer::Retide)
}

/// Writes a request as somebody sends it: a value, which needs no header.
pub fn write_request(request: &Request) -> Bytes {
    Value::Object(members(request)).to_string().into()
}

/// Writes a request that is passed on.
pub(super) fn write_asked(request: &Request) -> Bytes {
    let mut keys = members(request);
    keys.insert("place".to_owned(), request.place.to_string().into());
    Value::Object(keys).to_string().into()
}

/// Reads what a campaign is to do, as a request says it; `now` is what relative times count from.
///
/// # Errors
/// If it cannot be read, or is beyond its bounds.
pub fn spec(value: &[u8], now: Timestamp) -> Result<Spec, Box<str>> {
    let read = || {
        let members = object(utf8(value)?, "campaign")?;
        let members = Object::try_new("", members, &SPEC_KEYS)?;
        spec_of(&members, now, Writer::Person)
    };
    read().map_err(|Broken(why)| clipped(&why, MAX_REFUSAL).into())
}

/// What a campaign is to do, in JSON.
pub fn spec_value(spec: &Spec) -> Value {
    let mut keys = Map::new();
    put_spec(&mut keys, spec);
    Value::Object(keys)
}

// === requests ===

/// Reads a request.
fn of_members(members: &Object<'_>, place: Place, writer: Writer) -> Result<Request, Broken> {
    let word = needed(members, "command", "what is to be done")?;
    let word = any_text("command", word)?;
    let is_start = word == Verb::WORDS[0];
    if let Some(key) = SPEC_KEYS
        .iter()
        .find(|key| !is_start && members.get(key).is_some())
    {
        return Err(Broken(format!(
            "{key} is said, which belongs to the command {}; this one is {word}",
            Verb::WORDS[0]
        )));
    }
    let verb = match &*word {
        "replay" => Verb::Start(Arc::new(spec_of(members, place.at, writer)?)),
        "pause-campaign" => Verb::Pause,
        "resume-campaign" => Verb::Resume,
        "abort-campaign" => Verb::Abort,
        _ => return Err(one_of("command", &word, &Verb::WORDS)),
    };
    let name = match members.get("name") {
        Some(raw) => any_text("name", raw)?,
        None if is_start => format!("replay-{}-{}", place.partition, place.offset),
        None => {
            return Err(Broken(
                "name is missing; it is that of a campaign".to_owned(),
            ));
        }
    };
    if !is_name(&name) {
        let name = shortened(&name.escape_debug().to_string());
        return Err(Broken(format!(
            "name is {name}: 1 to {} letters, digits and ._:@- expected",
            retide_core::campaign::MAX_NAME
        )));
    }
    Ok(Request {
        place,
        id: match members.get("id") {
            Some(raw) => id("id", raw)?,
            None => place.to_string().into(),
        },
        name: name.into(),
        verb,
        by: line(members, "by")?,
        reason: line(members, "reason")?,
    })
}

/// Reads what a campaign is to do.
fn spec_of(members: &Object<'_>, now: Timestamp, writer: Writer) -> Result<Spec, Broken> {
    let selector = members.get("select").map(|raw| {
        let members = object(raw.get(), "select")?;
        select(members, now, writer)
    });
    let died = members.get("died").map(|raw| {
        let span = span_of("died", &any_text("died", raw)?, now, writer)?;
        if span.from >= span.before {
            return Err(Broken("died ends before it begins".to_owned()));
        }
        Ok(span)
    });
    let (selector, died) = (selector.transpose()?, died.transpose()?);
    if selector.is_none() && died.is_none() {
        return Err(Broken(
            "neither select nor died is said, which would mean every dead letter; say which"
                .to_owned(),
        ));
    }
    let rate = members.get("rate").map(|raw| {
        let rate: Option<NonZeroU32> = serde_json::from_str(raw.get()).ok();
        rate.ok_or_else(|| expected("rate", raw, "a number of letters a second, from 1"))
    });
    let scene = members.get("scene").map(|raw| {
        let scene = any_text("scene", raw)?;
        let is_right = (1..=MAX_SCENE).contains(&scene.len()) && !scene.contains(char::is_control);
        is_right
            .then(|| Arc::from(scene))
            .ok_or_else(|| expected("scene", raw, "the name of a scene"))
    });
    Ok(Spec {
        selector,
        died,
        ramp: ramp_of(members)?,
        rate: rate.transpose()?,
        scene: scene.transpose()?,
        set_headers: match members.get("set_headers") {
            Some(raw) => many("set_headers", raw)?
                .into_iter()
                .map(header)
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        },
        remove_headers: match members.get("remove_headers") {
            Some(raw) => many("remove_headers", raw)?
                .into_iter()
                .map(|raw| header_name(&any_text("remove_headers", raw)?))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        },
        edit: edit_of(members)?,
        include_new: flag(members, "include_new")?,
        keep_deadline: flag(members, "keep_deadline")?,
    })
}

/// What becomes of payloads.
fn edit_of(members: &Object<'_>) -> Result<Option<Edit>, Broken> {
    let payload = members.get("payload");
    let payload = payload.map(|raw| text("payload", raw)).transpose()?;
    let payload = members.either("payload", payload, "payload_base64")?;
    match (payload, members.get("patch")) {
        (Some(_), Some(_)) => Err(Broken(
            "both payload and patch; one of them is expected".to_owned(),
        )),
        (Some(payload), None) => Ok(Some(Edit::Payload(payload))),
        (None, Some(raw)) => {
            // Also as a text: what reads documents into values, and writes them again, leaves its numbers alone there.
            let patch = if raw.get().starts_with('"') {
                text("patch", raw)?
            } else {
                raw.get().to_owned()
            };
            Patch::parse(&patch).map_err(|why| Broken(format!("patch: {why}")))?;
            Ok(Some(Edit::Patch(patch.into())))
        }
        (None, None) => Ok(None),
    }
}

/// How fast a campaign goes: what is not said of it is as in [`default_ramp`].
fn ramp_of(members: &Object<'_>) -> Result<Ramp, Broken> {
    let rate = members.get("failure_rate");
    let Some(raw) = rate.filter(|_| members.get("ramp").is_none()) else {
        return Ok(ramp(members)?.unwrap_or_else(default_ramp));
    };
    let rate: Option<f64> = serde_json::from_str(raw.get()).ok();
    let ramp = rate.and_then(|rate| Ramp::try_new(&STEPS, rate));
    ramp.ok_or_else(|| expected("failure_rate", raw, "a number from 0 to below 1"))
}

/// The ramp of a campaign that names none.
pub fn default_ramp() -> Ramp {
    Ramp::try_new(&STEPS, FAILURE_RATE).unwrap_or_else(|| unreachable!("the steps rise"))
}

/// The elements of an array.
fn many<'a>(path: &str, raw: &'a RawValue) -> Result<Vec<&'a RawValue>, Broken> {
    if !raw.get().starts_with('[') {
        return Err(expected(path, raw, "an array"));
    }
    let mut elements = Vec::new();
    elements_of(raw.get(), MAX_HEADERS, &mut elements)
        .map_err(|_| Broken(format!("{path} has over {MAX_HEADERS} values")))?;
    Ok(elements)
}

/// A header that is set.
fn header(raw: &RawValue) -> Result<Header, Broken> {
    const PATH: &str = "set_headers";
    if !raw.get().starts_with('{') {
        return Err(expected(PATH, raw, "an object with name and value"));
    }
    let members: Members<'_> = object(raw.get(), PATH)?;
    let members = Object::try_new(PATH, members, &HEADER_KEYS)?;
    let name = needed(&members, "name", "the name of a header")?;
    let value = members.get("value");
    let value = value
        .map(|raw| any_text("set_headers.value", raw))
        .transpose()?;
    let value = members.either("value", value, "value_base64")?;
    let value = value.ok_or_else(|| Broken(format!("{PATH}.value is missing")))?;
    if value.len() > MAX_HEADER {
        return Err(Broken(format!(
            "{PATH}.value has {} bytes; it may have {MAX_HEADER}",
            value.len()
        )));
    }
    Ok(Header {
        name: header_name(&any_text("set_headers.name", name)?)?,
        value: Some(value),
    })
}

/// The name of a header that is set or removed.
fn header_name(name: &str) -> Result<retide_core::Name, Broken> {
    let shown = shortened(&name.escape_debug().to_string());
    if name.is_empty() || name.len() > headers::MAX_ID || name.contains(char::is_control) {
        return Err(Broken(format!("{shown} is no name of a header")));
    }
    if is_own(name.as_bytes()) {
        return Err(Broken(format!("{shown} is a header that only retide sets")));
    }
    Ok(headers::name(name))
}

/// A word that is true or false.
fn flag(members: &Object<'_>, key: &str) -> Result<bool, Broken> {
    match members.get(key).map(RawValue::get) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Broken(format!("{key}: true or false expected"))),
    }
}

/// The keys of a request.
fn members(request: &Request) -> Map<String, Value> {
    let Request {
        place: _,
        id,
        name,
        verb,
        by,
        reason,
    } = request;
    let mut keys = Map::new();
    keys.insert("command".to_owned(), verb.word().into());
    keys.insert("name".to_owned(), (&**name).into());
    keys.insert("id".to_owned(), (&**id).into());
    for (key, text) in [("by", by), ("reason", reason)] {
        if !text.is_empty() {
            keys.insert(key.to_owned(), (&**text).into());
        }
    }
    match verb {
        Verb::Start(spec) => put_spec(&mut keys, spec),
        Verb::Pause | Verb::Resume | Verb::Abort => {}
    }
    keys
}

/// Puts what a campaign is to do among the keys of a request.
fn put_spec(keys: &mut Map<String, Value>, spec: &Spec) {
    let Spec {
        selector,
        died,
        ramp,
        rate,
        scene,
        set_headers,
        remove_headers,
        edit,
        include_new,
        keep_deadline,
    } = spec;
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    if let Some(selector) = selector {
        let wire = SelectWire::of(selector.parts());
        let value = serde_json::to_value(&wire);
        put(
            "select",
            value.unwrap_or_else(|error| unreachable!("texts and numbers: {error}")),
        );
    }
    if let Some(died) = died {
        put("died", spanned(*died).into());
    }
    put("ramp", ramp.steps().collect::<Vec<_>>().into());
    put("failure_rate", ramp.failure_rate().into());
    if let Some(rate) = rate {
        put("rate", rate.get().into());
    }
    if let Some(scene) = scene {
        put("scene", (&**scene).into());
    }
    if !set_headers.is_empty() {
        put(
            "set_headers",
            set_headers.iter().map(header_value).collect(),
        );
    }
    if !remove_headers.is_empty() {
        let names = remove_headers.iter().map(ToString::to_string);
        put("remove_headers", names.collect::<Vec<_>>().into());
    }
    match edit {
        Some(Edit::Payload(bytes)) => {
            let (key, text) = text_or_base64("payload", "payload_base64", bytes);
            put(key, text.into());
        }
        Some(Edit::Patch(patch)) => {
            put("patch", (&**patch).into());
        }
        None => {}
    }
    for (key, is_set) in [
        ("include_new", include_new),
        ("keep_deadline", keep_deadline),
    ] {
        if *is_set {
            put(key, true.into());
        }
    }
}

/// A header that is set, in JSON.
fn header_value(header: &Header) -> Value {
    let bytes = header.value.clone().unwrap_or_default();
    let mut keys = Map::new();
    keys.insert("name".to_owned(), header.name.to_string().into());
    let (key, text) = text_or_base64("value", "value_base64", &bytes);
    keys.insert(key.to_owned(), text.into());
    Value::Object(keys)
}

/// Bytes as a text under the first key, or in base64 under the other one.
fn text_or_base64(key: &'static str, other: &'static str, bytes: &[u8]) -> (&'static str, String) {
    match str::from_utf8(bytes) {
        Ok(text) => (key, text.to_owned()),
        Err(_) => (other, STANDARD.encode(bytes)),
    }
}

// === how a campaign is ===

/// A campaign in JSON.
#[derive(Serialize, Deserialize)]
struct CampaignWire {
    /// The name.
    campaign: String,
    /// Where its request stands.
    place: String,
    /// What it does.
    state: String,
    /// What it is to do.
    spec: Box<RawValue>,
    /// Who wanted it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    /// How far it is: partition, next offset, and where it ends.
    partitions: Vec<(i32, i64, i64)>,
    /// Letters that were replayed.
    replayed: u64,
    /// Letters that were not, by reason.
    #[serde(default)]
    ineligible: std::collections::BTreeMap<String, u64>,
    /// Letters that came later.
    #[serde(default)]
    late: u64,
    /// Records that are no letters.
    #[serde(default)]
    unread: u64,
    /// Tasks that have not ended; for readers.
    #[serde(default)]
    out: u64,
    /// What its tasks have said.
    #[serde(flatten)]
    said: SaidWire,
    /// How many steps are over.
    step: u32,
    /// Up to where reports are counted.
    counted_to: i64,
    /// When, in ms since the epoch.
    at: u64,
    /// What has happened.
    #[serde(default)]
    log: Vec<LineWire>,
}

/// A line of a log in JSON.
#[derive(Serialize, Deserialize)]
struct LineWire {
    /// When, in ms since the epoch.
    at: u64,
    /// What.
    text: String,
}

/// What tasks say, in JSON.
#[derive(Serialize, Deserialize)]
struct SaidWire {
    /// Attempts that have come back.
    #[serde(default)]
    came_back: u64,
    /// Those that failed.
    #[serde(default)]
    failed: u64,
    /// Ends.
    #[serde(default)]
    delivered: u64,
    /// As above.
    #[serde(default)]
    dead: u64,
    /// As above.
    #[serde(default)]
    expired: u64,
    /// As above.
    #[serde(default)]
    cancelled: u64,
}

/// A report in JSON.
#[derive(Serialize, Deserialize)]
struct ReportWire {
    /// The campaign: name and place.
    campaign: String,
    /// What its tasks say.
    #[serde(flatten)]
    said: SaidWire,
}

/// Writes how a campaign is.
pub(super) fn write(campaign: &Campaign) -> Bytes {
    json(&wire(campaign))
}

/// How a campaign is, in JSON.
pub fn value(campaign: &Campaign) -> Value {
    serde_json::to_value(wire(campaign))
        .unwrap_or_else(|error| unreachable!("texts and numbers: {error}"))
}

fn wire(campaign: &Campaign) -> CampaignWire {
    let Campaign {
        id,
        spec,
        by,
        reason,
        state,
        parts,
        counts,
        step,
        counted_to,
        at,
        log,
    } = campaign;
    let why = Ineligible::ALL.into_iter();
    let why = why.map(|why| (why.word().to_owned(), counts.ineligible[why.index()]));
    let spec = RawValue::from_string(spec_value(spec).to_string());
    CampaignWire {
        campaign: id.name.to_string(),
        place: id.place.to_string(),
        state: state.word().to_owned(),
        spec: spec.unwrap_or_else(|error| unreachable!("a value is JSON: {error}")),
        by: by.to_string(),
        reason: reason.to_string(),
        partitions: parts
            .iter()
            .map(|part| (part.partition, part.next, part.to))
            .collect(),
        replayed: counts.replayed,
        ineligible: why.filter(|(_, count)| *count > 0).collect(),
        late: counts.late,
        unread: counts.unread,
        out: campaign.out(),
        said: SaidWire::of(counts.said),
        step: *step,
        counted_to: *counted_to,
        at: millis(*at),
        log: log
            .iter()
            .map(|line| LineWire {
                at: millis(line.at),
                text: line.text.to_string(),
            })
            .collect(),
    }
}

/// Reads how a campaign is.
pub(super) fn read(value: &[u8]) -> Result<Campaign, Broken> {
    let wire: CampaignWire = own(value)?;
    let place: Place = wire
        .place
        .parse()
        .map_err(|()| Broken("place: millis/partition/offset expected".to_owned()))?;
    let state = State::from_word(&wire.state)
        .ok_or_else(|| Broken(format!("state is {}", shortened(&wire.state))))?;
    if !is_name(&wire.campaign) {
        return Err(Broken("campaign: a name expected".to_owned()));
    }
    let members = object(wire.spec.get(), "spec")?;
    let members = Object::try_new("spec", members, &SPEC_KEYS)?;
    let mut counts = Counts {
        replayed: wire.replayed,
        late: wire.late,
        unread: wire.unread,
        said: wire.said.said(),
        ..Counts::default()
    };
    for (word, count) in wire.ineligible {
        // One of a later version counts for what was refused.
        let why = Ineligible::from_word(&word).unwrap_or(Ineligible::Refused);
        counts.ineligible[why.index()] += count;
    }
    let parts = wire.partitions.into_iter();
    let log = wire.log.into_iter().take(MAX_LOG);
    Ok(Campaign {
        id: Id {
            place,
            name: wire.campaign.into(),
        },
        spec: Arc::new(spec_of(&members, place.at, Writer::Retide)?),
        by: wire.by.into(),
        reason: wire.reason.into(),
        state,
        parts: parts
            .map(|(partition, next, to)| Part {
                partition,
                next,
                to,
            })
            .collect(),
        counts,
        step: wire.step,
        counted_to: wire.counted_to,
        at: Timestamp::from_millis(wire.at),
        log: log
            .map(|line| Line {
                at: Timestamp::from_millis(line.at),
                text: line.text.into(),
            })
            .collect(),
    })
}

/// Writes a report.
pub(super) fn write_report(report: &Report) -> Bytes {
    json(&ReportWire {
        campaign: report.campaign.to_string(),
        said: SaidWire::of(report.said),
    })
}

/// Reads a report.
pub(super) fn report(value: &[u8]) -> Result<Report, Broken> {
    let wire: ReportWire = own(value)?;
    let campaign = wire.campaign.parse();
    Ok(Report {
        campaign: campaign
            .map_err(|()| Broken("campaign: name/millis/partition/offset expected".to_owned()))?,
        said: wire.said.said(),
    })
}

/// That a task was replayed, by the values of its headers.
pub(crate) fn replay(campaign: &str, times: u64) -> Option<Replay> {
    let campaign: Id = campaign.parse().ok()?;
    Some(Replay {
        campaign,
        times: u32::try_from(times).unwrap_or(u32::MAX),
    })
}

// === impl SaidWire ===

impl SaidWire {
    /// How it is written.
    const fn of(said: Said) -> Self {
        let Said {
            came_back,
            failed,
            delivered,
            dead,
            expired,
            cancelled,
        } = said;
        Self {
            came_back,
            failed,
            delivered,
            dead,
            expired,
            cancelled,
        }
    }

    /// What it says.
    const fn said(&self) -> Said {
        Said {
            came_back: self.came_back,
            failed: self.failed,
            delivered: self.delivered,
            dead: self.dead,
            expired: self.expired,
            cancelled: self.cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the requests of these tests stand.
    const PLACE: Place = Place {
        at: Timestamp::from_millis(1_700_000_000_000),
        partition: 2,
        offset: 7,
    };

    #[test]
    fn what_is_asked_of_a_campaign_is_read_back() {
        for value in [
            r#"{"command":"replay","name":"mend","select":{"scene":"pay"},"died":"-2h..","ramp":[1,9],"failure_rate":0.3,"rate":50,"scene":"calm","set_headers":[{"name":"a","value":"b"},{"name":"a","value_base64":"/w=="}],"remove_headers":["c"],"patch":[{"op":"replace","path":"/a","value":1.10}],"include_new":true,"keep_deadline":true,"by":"ann","reason":"it is back"}"#,
            r#"{"command":"replay","select":{"fingerprint":"b7b08647f7768abf"}}"#,
            r#"{"command":"replay","select":{"id":"7"},"payload":"{\"a\":1.10}"}"#,
            r#"{"command":"replay","select":{"id":"7"},"payload_base64":"/w=="}"#,
            r#"{"command":"replay","select":{"id":"7"},"patch":"[{\"op\":\"remove\",\"path\":\"/a\"}]"}"#,
            r#"{"command":"pause-campaign","name":"mend","id":"7"}"#,
            r#"{"command":"resume-campaign","name":"mend"}"#,
            r#"{"command":"abort-campaign","name":"mend"}"#,
        ] {
            let first = request(value.as_bytes(), PLACE).unwrap();

            assert_eq!(asked(&write_asked(&first)), Ok(first.clone()), "{value}");
            assert_eq!(request(&write_request(&first), PLACE), Ok(first), "{value}");
        }
    }

    #[test]
    fn what_means_every_letter_or_cannot_be_read_is_refused() {
        for value in [
            r#"{"command":"replay"}"#,
            r#"{"command":"replay","select":{}}"#,
            r#"{"command":"replay","select":{"scene":""}}"#,
            r#"{"command":"replay","died":"now..-1h"}"#,
            r#"{"command":"replay","select":{"scene":"a"},"ramp":[2,1]}"#,
            r#"{"command":"replay","select":{"scene":"a"},"rate":0}"#,
            r#"{"command":"replay","select":{"scene":"a"},"name":"a/b"}"#,
            r#"{"command":"replay","select":{"scene":"a"},"set_headers":[{"name":"retry-id","value":"x"}]}"#,
            r#"{"command":"replay","select":{"scene":"a"},"include_new":"yes"}"#,
            r#"{"command":"replay","select":{"scene":"a"},"patch":[{"op":"add","path":"a","value":1}]}"#,
            r#"{"command":"replay","select":{"scene":"a"},"patch":[{"op":"remove","path":"/a"}],"payload":"x"}"#,
            r#"{"command":"replay","select":{"scene":"a"},"place":"1/2/3"}"#,
            r#"{"command":"pause-campaign"}"#,
            r#"{"command":"pause-campaign","name":"a","rate":3}"#,
        ] {
            assert!(is_request(value.as_bytes()), "{value}");
            assert!(request(value.as_bytes(), PLACE).is_err(), "{value}");
        }
        assert!(!is_request(br#"{"command":"cancel","select":{"id":"1"}}"#));
    }

    #[test]
    fn a_campaign_is_read_back() {
        let value = br#"{"command":"replay","name":"mend","select":{"scene":"pay"},"by":"ann"}"#;
        let Verb::Start(spec) = request(value, PLACE).unwrap().verb else {
            panic!("a start");
        };
        let mut campaign = Campaign {
            id: Id {
                place: PLACE,
                name: "mend".into(),
            },
            spec,
            by: "ann".into(),
            reason: "".into(),
            state: State::Stopped,
            parts: vec![Part {
                partition: 1,
                next: 3,
                to: 9,
            }],
            counts: Counts {
                replayed: 4,
                ineligible: [1, 0, 2, 0, 0, 4, 3, 5, 6, 7],
                late: 5,
                unread: 6,
                said: Said {
                    came_back: 3,
                    failed: 2,
                    ..Said::end(retide_core::Terminal::Delivered)
                },
            },
            step: 2,
            counted_to: 77,
            at: PLACE.at,
            log: Vec::new(),
        };
        campaign.note(PLACE.at, "begun");

        assert_eq!(read(&write(&campaign)), Ok(campaign.clone()));
        let said = Report {
            campaign: campaign.id,
            said: campaign.counts.said,
        };
        assert_eq!(report(&write_report(&said)), Ok(said));
    }
}
