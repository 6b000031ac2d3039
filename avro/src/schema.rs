//! Avro schemas of other writers: parsed, named by their fingerprint, and the data that was written with them taken apart.
//!
//! Not a general Avro library: a datum is read field by field, what nobody asks for is skipped, and nothing is allocated on the word of a
//! count. The fingerprint is that of Avro's specification, CRC-64-AVRO of the Parsing Canonical Form, which Java and fastavro make as well.
//! Invariant: neither a schema nor a datum, whatever it holds, takes more than a bounded time, depth and room.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

/// The fingerprint of a schema as it stands in a single-object frame: lowest byte first.
pub type Fingerprint = [u8; 8];

/// Most bytes of a schema's text: registries refuse larger ones.
pub const MAX_SCHEMA: usize = 1 << 20;

/// Deepest nesting of types in a schema, and of values in a datum.
pub(crate) const MAX_DEPTH: usize = 64;

/// Most bytes of a canonical form, but for one word: a type with a long name that is used often makes it longer than the text.
const MAX_CANONICAL: usize = 4 * MAX_SCHEMA;

/// The fingerprint of no bytes: what CRC-64-AVRO begins with, and its polynomial.
const EMPTY: u64 = 0xc15d_213a_a4d7_a795;

/// Why a text is no schema that data can be read with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// An Avro schema.
#[derive(Clone, PartialEq, Eq)]
pub struct Schema {
    /// Its named types, in the order in which they are defined.
    pub(crate) named: Vec<Named>,
    /// The type of a datum.
    pub(crate) root: Shape,
    /// Its name, if it is of a named type.
    name: Option<String>,
    /// Its Parsing Canonical Form.
    canonical: String,
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Nothing.
    Null,
    /// One byte.
    Boolean,
    /// A whole number, and how many of its units are a millisecond, if it is a time.
    Number(Unit),
    /// Four bytes.
    Float,
    /// Eight bytes.
    Double,
    /// A length and bytes.
    Bytes,
    /// A length and text.
    Text,
    /// Blocks of items.
    Array(Box<Self>),
    /// Blocks of names and values.
    Map(Box<Self>),
    /// One of several, none of which is a union.
    Union(Vec<Self>),
    /// A type with a name, by its place among those of the schema.
    Named(usize),
}

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// None, or milliseconds.
    Millis,
    /// Microseconds since the epoch.
    Micros,
    /// Nanoseconds since the epoch.
    Nanos,
}

/// A type with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// Fields in their order.
    Record(Vec<Field>),
    /// One of several words.
    Enum(Vec<String>),
    /// So many bytes.
    Fixed(usize),
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) shape: Shape,
}

/// Reads a schema's text.
struct Parser {
    /// The types with a name, as far as they are known.
    named: Vec<Named>,
    /// Their places by their full names.
    places: HashMap<String, usize>,
    /// The canonical form, as far as it is written.
    canonical: String,
    /// Whose it is.
    form: Form,
}

/// Whose canonical form is written: libraries differ in what they make of a primitive type with attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// That of Avro's specification, of Java, fastavro and avsc: the type's name alone.
    Specification,
    /// That of goavro and of apache-avro for Rust: an object with the name in it.
    Object,
    /// That of hamba/avro: the logical type stays.
    Logical,
}

/// The CRC-64-AVRO of `bytes`.
pub fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let mut sum = EMPTY;
    for byte in bytes {
        sum ^= u64::from(*byte);
        for _ in 0..8 {
            // All ones where the lowest bit is set.
            let mask = (sum & 1).wrapping_neg();
            sum = (sum >> 1) ^ (EMPTY & mask);
        }
    }
    sum.to_le_bytes()
}

// === impl Schema ===

impl Schema {
    /// The schema that `text` is; it may use the types that `others` define.
    ///
    /// # Errors
    ///
    /// The text is no JSON, or no schema.
    pub fn parse(text: &str, others: &[&str]) -> Result<Self, Error> {
        Self::parse_in(text, others, Form::Specification)
    }

    /// As [`Self::parse`], with the canonical form of other libraries.
    fn parse_in(text: &str, others: &[&str], form: Form) -> Result<Self, Error> {
        let mut parser = Parser {
            named: Vec::new(),
            places: HashMap::new(),
            canonical: String::new(),
            form,
        };
        for other in others {
            parser.text(other)?;
            parser.canonical.clear();
        }
        let (root, name) = parser.text(text)?;
        Ok(Self {
            named: parser.named,
            root,
            name,
            canonical: parser.canonical,
        })
    }

    /// The Parsing Canonical Form.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The fingerprint by Avro's specification.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.canonical.as_bytes())
    }

    /// The fingerprints that libraries make of the schema that `text` is, that of the specification first.
    ///
    /// # Errors
    ///
    /// The text is no schema.
    pub fn fingerprints(text: &str) -> Result<[Fingerprint; 3], Error> {
        let print = |form| Self::parse_in(text, &[], form).map(|schema| schema.fingerprint());
        let others = [print(Form::Object)?, print(Form::Logical)?];
        Ok([print(Form::Specification)?, others[0], others[1]])
    }

    /// Whether data of both are read alike: names, order, types and units are the same.
    pub fn is_like(&self, other: &Self) -> bool {
        self.named == other.named && self.root == other.root
    }

    /// The full name of the type, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it is a task by its name, in whatever namespace.
    pub(crate) fn is_task(&self) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        name.rsplit('.').next() == Some("RetryTask")
    }

    /// The fields of a type, if it is a record.
    pub(crate) fn fields(&self, shape: &Shape) -> Option<&[Field]> {
        let Shape::Named(place) = shape else {
            return None;
        };
        match &self.named[*place] {
            Named::Record(fields) => Some(fields),
            Named::Enum(_) | Named::Fixed(_) => None,
        }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("without a name");
        formatter.debug_tuple("Schema").field(&name).finish()
    }
}

// === impl Shape ===

impl Shape {
    /// What it is called, for people.
    pub(crate) fn word(&self, named: &[Named]) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Number(_) => "long",
            Self::Float => "float",
            Self::Double => "double",
            Self::Bytes => "bytes",
            Self::Text => "string",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Union(_) => "union",
            Self::Named(place) => match named[*place] {
                Named::Record(_) => "record",
                Named::Enum(_) => "enum",
                Named::Fixed(_) => "fixed",
            },
        }
    }
}

// === impl Parser ===

impl Parser {
    /// The type that `text` is, and its name.
    fn text(&mut self, text: &str) -> Result<(Shape, Option<String>), Error> {
        if text.len() > MAX_SCHEMA {
            return Err(wrong(format!("a schema of {} bytes", text.len())));
        }
        // A registry gives a schema of one word without quotes.
        let word = text.trim();
        let value = match primitive(word) {
            Some(_) => Value::String(word.to_owned()),
            None => {
                serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}")))?
            }
        };
        let shape = self.shape(&value, "", 0)?;
        let place = match shape {
            Shape::Named(place) => Some(place),
            _ => None,
        };
        let mut places = self.places.iter();
        let name = places.find(|(_, known)| Some(**known) == place);
        let name = name.map(|(name, _)| name.clone());
        Ok((shape, name))
    }

    /// A type, inside the namespace of what it stands in.
    fn shape(&mut self, value: &Value, namespace: &str, depth: usize) -> Result<Shape, Error> {
        if depth > MAX_DEPTH {
            return Err(wrong("types nested too deeply"));
        }
        if self.canonical.len() > MAX_CANONICAL {
            return Err(wrong("names that are too long for how often they are used"));
        }
        match value {
            Value::String(word) => {
                if let Some(shape) = primitive(word) {
                    self.quote(word);
                    return Ok(shape);
                }
                let full = full_name(word, namespace);
                // A name without a dot may be one without a namespace.
                let known = [full.as_str(), word].into_iter();
                let known = known.filter_map(|name| self.places.get_key_value(name));
                let Some((name, place)) = known.map(|(name, place)| (name.clone(), *place)).next()
                else {
                    return Err(wrong(format!("type `{word}` is not defined")));
                };
                self.quote(&name);
                Ok(Shape::Named(place))
            }
            Value::Array(branches) => {
                let shapes = self.list(branches, |parser, branch| {
                    match parser.shape(branch, namespace, depth + 1)? {
                        Shape::Union(_) => Err(wrong("a union directly in a union")),
                        shape => Ok(shape),
                    }
                })?;
                Ok(Shape::Union(shapes))
            }
            Value::Object(object) => self.object(object, namespace, depth),
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                Err(wrong(format!("{value} is no type")))
            }
        }
    }

    /// A type that is written as an object.
    fn object(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Shape, Error> {
        let kind = object
            .get("type")
            .ok_or_else(|| wrong("an object without `type`"))?;
        let Value::String(word) = kind else {
            return self.shape(kind, namespace, depth + 1);
        };
        match &**word {
            "array" => {
                self.canonical.push_str(r#"{"type":"array","items":"#);
                let items = self.part(object, "items", namespace, depth)?;
                self.canonical.push('}');
                Ok(Shape::Array(Box::new(items)))
            }
            "map" => {
                self.canonical.push_str(r#"{"type":"map","values":"#);
                let values = self.part(object, "values", namespace, depth)?;
                self.canonical.push('}');
                Ok(Shape::Map(Box::new(values)))
            }
            "record" | "error" | "enum" | "fixed" => self.named(word, object, namespace, depth),
            _ => match primitive(word) {
                Some(shape) => {
                    self.primitive(word, object);
                    Ok(match shape {
                        Shape::Number(_) => Shape::Number(unit(object)),
                        shape => shape,
                    })
                }
                None => self.shape(kind, namespace, depth + 1),
            },
        }
    }

    /// Writes a primitive type that is written as an object.
    fn primitive(&mut self, word: &str, object: &Map<String, Value>) {
        let logical = object.get("logicalType").and_then(Value::as_str);
        match (self.form, logical) {
            (Form::Object, _) if object.len() > 1 => {
                self.canonical.push_str(r#"{"type":"#);
                self.quote(word);
                self.canonical.push('}');
            }
            (Form::Logical, Some(logical)) => {
                self.canonical.push_str(r#"{"type":"#);
                self.quote(word);
                self.canonical.push_str(r#","logicalType":"#);
                self.quote(logical);
                self.canonical.push('}');
            }
            (Form::Specification | Form::Object | Form::Logical, _) => self.quote(word),
        }
    }

    /// The type in the place `key` of an object.
    fn part(
        &mut self,
        object: &Map<String, Value>,
        key: &str,
        namespace: &str,
        depth: usize,
    ) -> Result<Shape, Error> {
        let value = object
            .get(key)
            .ok_or_else(|| wrong(format!("a type without `{key}`")))?;
        self.shape(value, namespace, depth + 1)
    }

    /// A type with a name.
    fn named(
        &mut self,
        word: &str,
        object: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Shape, Error> {
        let text = |key| object.get(key).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| wrong(format!("a type {word} without `name`")))?;
        let full = full_name(name, text("namespace").unwrap_or(namespace));
        if self.places.contains_key(&full) {
            return Err(wrong(format!("type `{full}` is defined twice")));
        }
        let inner = full.rsplit_once('.').map_or("", |(space, _)| space);
        let place = self.named.len();
        self.places.insert(full.clone(), place);
        // Held open, since a record may hold itself.
        self.named.push(Named::Fixed(0));
        self.canonical.push_str(r#"{"name":"#);
        self.quote(&full);
        self.canonical.push_str(r#","type":"#);
        self.quote(word);
        let list = |key| {
            let list = object.get(key).and_then(Value::as_array);
            list.ok_or_else(|| wrong(format!("type `{full}` without `{key}`")))
        };
        self.named[place] = match word {
            "enum" => {
                self.canonical.push_str(r#","symbols":"#);
                let symbols = self.list(list("symbols")?, |parser, symbol| {
                    let symbol = symbol
                        .as_str()
                        .ok_or_else(|| wrong("a symbol is no text"))?;
                    parser.quote(symbol);
                    Ok(symbol.to_owned())
                })?;
                Named::Enum(symbols)
            }
            "fixed" => {
                let size = object.get("size");
                // The canonical form of an older writer has quotes.
                let size =
                    size.and_then(|size| size.as_u64().or_else(|| size.as_str()?.parse().ok()));
                let size = size.and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or_else(|| wrong(format!("type `{full}` without `size`")))?;
                self.canonical.push_str(r#","size":"#);
                self.canonical.push_str(&size.to_string());
                Named::Fixed(size)
            }
            _ => {
                self.canonical.push_str(r#","fields":"#);
                let fields = self.list(list("fields")?, |parser, field| {
                    let field = field
                        .as_object()
                        .ok_or_else(|| wrong("a field is no object"))?;
                    let name = field.get("name").and_then(Value::as_str);
                    let name =
                        name.ok_or_else(|| wrong(format!("a field of `{full}` without `name`")))?;
                    parser.canonical.push_str(r#"{"name":"#);
                    parser.quote(name);
                    parser.canonical.push_str(r#","type":"#);
                    let shape = parser.part(field, "type", inner, depth)?;
                    parser.canonical.push('}');
                    Ok(Field {
                        name: name.to_owned(),
                        shape,
                    })
                })?;
                Named::Record(fields)
            }
        };
        self.canonical.push('}');
        Ok(Shape::Named(place))
    }

    /// What `read` makes of each of `values`.
    fn list<T>(
        &mut self,
        values: &[Value],
        mut read: impl FnMut(&mut Self, &Value) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.canonical.push('[');
        let mut list = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.canonical.push(',');
            }
            list.push(read(self, value)?);
        }
        self.canonical.push(']');
        Ok(list)
    }

    /// Writes a word of the canonical form.
    fn quote(&mut self, word: &str) {
        self.canonical.push_str(&Value::from(word).to_string());
    }
}

/// The type of this name that has no attributes.
fn primitive(word: &str) -> Option<Shape> {
    Some(match word {
        "null" => Shape::Null,
        "boolean" => Shape::Boolean,
        "int" | "long" => Shape::Number(Unit::Millis),
        "float" => Shape::Float,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "string" => Shape::Text,
        _ => return None,
    })
}

/// The unit that a type says its numbers have.
fn unit(object: &Map<String, Value>) -> Unit {
    match object.get("logicalType").and_then(Value::as_str) {
        Some("timestamp-micros" | "local-timestamp-micros") => Unit::Micros,
        Some("timestamp-nanos" | "local-timestamp-nanos") => Unit::Nanos,
        Some(_) | None => Unit::Millis,
    }
}

/// A name with its namespace.
fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

/// What is wrong.
fn wrong(what: impl Into<String>) -> Error {
    Error(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fingerprint as Java's `Long.toHexString` and the findings have it.
    fn hex(schema: &str) -> String {
        let schema = Schema::parse(schema, &[]).unwrap();
        format!("{:016x}", u64::from_be_bytes(schema.fingerprint()))
    }

    #[test]
    fn fingerprints_are_those_of_java() {
        // Made by `SchemaNormalization` of Avro 1.12, and the same by fastavro.
        let table = [
            (
                include_str!("../schemas/RetryTask.avsc"),
                "c6671643c7a0366b",
            ),
            (include_str!("../schemas/Callback.avsc"), "0596f9fadd3d21f4"),
            (include_str!("../schemas/Event.avsc"), "be6aff58e5471467"),
            (include_str!("../schemas/Alert.avsc"), "d11faff238c72e7a"),
            (include_str!("../schemas/Scene.avsc"), "bc417321b8b02571"),
            (
                include_str!("../schemas/earlier/Alert.1.avsc"),
                "f881ac33b1cc890f",
            ),
            (
                include_str!("../schemas/earlier/Alert.2.avsc"),
                "7b3051aa383c2566",
            ),
            (
                include_str!("../schemas/earlier/Event.1.avsc"),
                "a79cb43e71539703",
            ),
            (
                include_str!("../schemas/earlier/Event.2.avsc"),
                "74c03320ad139db1",
            ),
            (
                include_str!("../schemas/earlier/Event.3.avsc"),
                "7f588b15fbf536c9",
            ),
            (
                include_str!("../schemas/earlier/Event.4.avsc"),
                "baaed38a5702b6fc",
            ),
            (
                include_str!("../schemas/earlier/Event.5.avsc"),
                "db20536dddd60963",
            ),
            (
                include_str!("../schemas/earlier/Event.6.avsc"),
                "eb4369a513788e92",
            ),
            (
                include_str!("../schemas/earlier/Event.7.avsc"),
                "892786a2d117ee25",
            ),
            (
                include_str!("../schemas/earlier/Callback.1.avsc"),
                "7d7317e17d55e731",
            ),
        ];
        for (schema, fingerprint) in table {
            assert_eq!(hex(schema), fingerprint);
        }
    }

    #[test]
    fn the_canonical_form_keeps_what_counts() {
        let table = [
            (r#"{"type": "int", "logicalType": "date"}"#, r#""int""#),
            (
                r#"{"type": {"type": "string", "avro.java.string": "String"}}"#,
                r#""string""#,
            ),
            (
                r#"["null", {"type": "long", "doc": "x"}]"#,
                r#"["null","long"]"#,
            ),
            (
                r#"{"type": "fixed", "size": "16", "name": "Hash", "namespace": "a.b", "aliases": ["x"]}"#,
                r#"{"name":"a.b.Hash","type":"fixed","size":16}"#,
            ),
            (
                r#"{"fields": [
                    {"type": {"symbols": ["A"], "type": "enum", "name": "E"}, "name": "e", "default": "A", "order": "ignore"},
                    {"type": ["null", "E", {"type": "array", "items": "a.R"}], "name": "f"},
                    {"type": {"type": "map", "values": "R"}, "name": "g"}
                ], "type": "record", "name": "a.R", "doc": "d"}"#,
                r#"{"name":"a.R","type":"record","fields":[{"name":"e","type":{"name":"a.E","type":"enum","symbols":["A"]}},{"name":"f","type":["null","a.E",{"type":"array","items":"a.R"}]},{"name":"g","type":{"type":"map","values":"a.R"}}]}"#,
            ),
        ];
        for (schema, canonical) in table {
            assert_eq!(Schema::parse(schema, &[]).unwrap().canonical(), canonical);
        }
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        let deep = format!("{}\"int\"{}", "[".repeat(100), "]".repeat(100));
        for text in [
            "",
            "{",
            "1",
            "\"nope\"",
            "{\"type\":\"record\"}",
            "{\"type\":\"array\"}",
            "[\"int\", [\"null\"]]",
            "[\"int\", {\"type\": [\"null\"]}]",
            &deep,
        ] {
            assert!(Schema::parse(text, &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_long_name_that_is_used_often_takes_bounded_room() {
        let name = format!("{}.R", "n".repeat(MAX_SCHEMA / 2));
        let field = r#"{"name":"f","type":"R"}"#;
        let fields = vec![field; MAX_SCHEMA / 4 / field.len()].join(",");
        let text = format!(r#"{{"type":"record","name":"{name}","fields":[{fields}]}}"#);

        let Error(why) = Schema::parse(&text, &[]).unwrap_err();

        assert_eq!(why, "names that are too long for how often they are used");
    }

    #[test]
    fn a_schema_uses_the_types_of_others() {
        let other = r#"{"type": "enum", "name": "a.E", "symbols": ["X"]}"#;
        let text = r#"{"type": "record", "name": "a.R", "fields": [{"name": "e", "type": "E"}]}"#;

        let schema = Schema::parse(text, &[other]).unwrap();

        assert_eq!(schema.name(), Some("a.R"));
        assert!(schema.canonical().ends_with(r#""type":"a.E"}]}"#));
        assert!(Schema::parse(text, &[]).is_err());
    }
}
