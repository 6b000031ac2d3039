//! JSON Patch (RFC 6902) on the text of a document.
//!
//! What a patch does not name stays as it is written: digits of numbers, escapes, the order of members. A library that reads a document into
//! values and writes those again turns `1.10` into `1.1`, and what is beyond 64 bits into another number; in payments that is a fault. Only the
//! objects and arrays on the way to what is changed are read, and written again without spaces. Invariants: either all operations are done or
//! none; what is made has at most [`MAX_DOCUMENT`] bytes.

use std::str;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::headers::shortened;
use crate::json::{Broken, Object, beginning, elements_of, members_of, needed, text, utf8};

/// Most operations of a patch.
const MAX_OPERATIONS: usize = 64;

/// Most parts of a path.
const MAX_PARTS: usize = 64;

/// Largest document that is made, in bytes: what Kafka takes is less, as a rule.
const MAX_DOCUMENT: usize = 4 << 20;

/// Most members of an object, and elements of an array, that are looked into.
const MAX_ENTRIES: usize = 100_000;

/// The keys of an operation.
const KEYS: [&str; 4] = ["op", "path", "from", "value"];

/// The words for operations.
const WORDS: [&str; 6] = ["add", "remove", "replace", "move", "copy", "test"];

/// A patch that was read.
#[derive(Debug)]
pub(crate) struct Patch<'a> {
    /// What is done, in this order.
    operations: Vec<Operation<'a>>,
}

/// What is done to a document.
#[derive(Debug)]
enum Operation<'a> {
    /// A value is put there; what is behind it in an array moves on.
    Add(Pointer, &'a str),
    /// What is there is taken out.
    Remove(Pointer),
    /// What is there becomes this value.
    Replace(Pointer, &'a str),
    /// What is at the first place is taken out, and put at the second.
    Move(Pointer, Pointer),
    /// What is at the first place is put at the second, too.
    Copy(Pointer, Pointer),
    /// What is there equals this value, or nothing is done at all.
    Test(Pointer, &'a str),
}

/// A place in a document (RFC 6901): the keys and indexes on the way to it.
#[derive(Debug)]
struct Pointer {
    /// How it is written.
    written: String,
    /// Its parts.
    parts: Vec<String>,
}

/// A part of a document.
#[derive(Clone, Debug)]
enum Node<'a> {
    /// One that nobody has looked into, as it is written.
    Text(&'a str),
    /// The members of an object.
    Object(Vec<(String, Self)>),
    /// The elements of an array.
    Array(Vec<Self>),
}

// === impl Patch ===

impl<'a> Patch<'a> {
    /// Reads a patch.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(patch: &'a str) -> Result<Self, String> {
        Self::read(patch).map_err(|Broken(why)| why)
    }

    fn read(patch: &'a str) -> Result<Self, Broken> {
        let mut elements = Vec::new();
        elements_of(patch, MAX_OPERATIONS, &mut elements).map_err(|_| {
            Broken(format!(
                "an array of at most {MAX_OPERATIONS} operations expected, such as [{{\"op\":\"replace\",\"path\":\"/a\",\"value\":1}}]"
            ))
        })?;
        let operations = elements.into_iter().enumerate();
        let operations = operations.map(|(index, raw)| {
            Operation::read(raw).map_err(|Broken(why)| Broken(format!("operation {index}: {why}")))
        });
        let operations: Vec<_> = operations.collect::<Result<_, _>>()?;
        if operations.is_empty() {
            return Err(Broken("it has no operation".to_owned()));
        }
        Ok(Self { operations })
    }

    /// The document as the patch makes it.
    ///
    /// # Errors
    /// Why it cannot be done to this document.
    pub(crate) fn apply(&self, document: &[u8]) -> Result<Bytes, String> {
        self.done(document).map_err(|Broken(why)| why)
    }

    fn done(&self, document: &[u8]) -> Result<Bytes, Broken> {
        let document = utf8(document)?;
        let whole: &RawValue = serde_json::from_str(document)
            .map_err(|_| Broken("the payload is no JSON document".to_owned()))?;
        let mut root = Node::Text(whole.get());
        for operation in &self.operations {
            operation.apply(&mut root)?;
        }
        if root.len() > MAX_DOCUMENT {
            return Err(too_large());
        }
        let mut out = String::with_capacity(root.len());
        root.write(&mut out);
        Ok(out.into())
    }
}

// === impl Operation ===

impl<'a> Operation<'a> {
    /// Reads an operation. Keys that are not known are left alone, as the RFC wants it.
    fn read(raw: &'a RawValue) -> Result<Self, Broken> {
        let mut members = Vec::new();
        members_of(raw.get(), MAX_ENTRIES, &mut members)
            .map_err(|_| Broken("an object expected".to_owned()))?;
        let value = members.iter().find(|(key, _)| key == "value");
        let value = value.map(|(_, raw)| raw.get());
        members.retain(|(key, _)| KEYS.contains(&key.as_str()));
        let members = Object::try_new("", members, &KEYS)?;
        let word = text("op", needed(&members, "op", "what is to be done")?)?;
        let pointer = |key: &str| Pointer::read(&text(key, needed(&members, key, "a place")?)?);
        let value = || value.ok_or_else(|| Broken("value is missing".to_owned()));
        let path = pointer("path")?;
        Ok(match word.as_str() {
            "add" => Self::Add(path, value()?),
            "remove" => Self::Remove(path),
            "replace" => Self::Replace(path, value()?),
            "move" => {
                let from = pointer("from")?;
                if path.parts.len() > from.parts.len() && path.parts.starts_with(&from.parts) {
                    return Err(Broken(format!("{from} is moved into itself")));
                }
                Self::Move(from, path)
            }
            "copy" => Self::Copy(pointer("from")?, path),
            "test" => Self::Test(path, value()?),
            other => {
                return Err(Broken(format!(
                    "op is {}; expected are {}",
                    shortened(other),
                    WORDS.join(", ")
                )));
            }
        })
    }

    /// Does it.
    fn apply(&self, root: &mut Node<'a>) -> Result<(), Broken> {
        match self {
            Self::Add(path, value) => root.put(path, Node::Text(value)),
            Self::Remove(path) => root.take(path).map(drop),
            Self::Replace(path, value) => {
                *root.find(path)? = Node::Text(value);
                Ok(())
            }
            Self::Move(from, path) => {
                let moved = root.take(from)?;
                root.put(path, moved)
            }
            Self::Copy(from, path) => {
                let more = root.find(from)?.len();
                if root.len() + more > MAX_DOCUMENT {
                    return Err(too_large());
                }
                let copied = root.find(from)?.clone();
                root.put(path, copied)
            }
            Self::Test(path, value) => {
                let mut found = String::new();
                root.find(path)?.write(&mut found);
                if is_equal(&found, value) {
                    return Ok(());
                }
                Err(Broken(format!(
                    "test of {path}: {} found, {} expected",
                    beginning(&found),
                    beginning(value)
                )))
            }
        }
    }
}

// === impl Pointer ===

impl Pointer {
    /// Reads a pointer.
    fn read(written: &str) -> Result<Self, Broken> {
        let shown = || shortened(&written.escape_debug().to_string());
        let rest = match written.strip_prefix('/') {
            Some(rest) => rest.split('/').collect(),
            None if written.is_empty() => Vec::new(),
            None => {
                return Err(Broken(format!("{}: a path begins with /", shown())));
            }
        };
        if rest.len() > MAX_PARTS {
            return Err(Broken(format!("{} has over {MAX_PARTS} parts", shown())));
        }
        let parts = rest.into_iter().map(|part| {
            let plain = part.replace("~1", "").replace("~0", "");
            if plain.contains('~') {
                return Err(Broken(format!("{}: ~ is written as ~0", shown())));
            }
            Ok(part.replace("~1", "/").replace("~0", "~"))
        });
        Ok(Self {
            written: shown(),
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// That there is nothing.
    fn nothing(&self) -> Broken {
        Broken(format!("there is nothing at {self}"))
    }
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.parts.is_empty() {
            return formatter.write_str("the whole document");
        }
        formatter.write_str(&self.written)
    }
}

// === impl Node ===

impl Node<'_> {
    /// Looks into a part: an object or an array has its members or elements then.
    fn open(&mut self) -> Result<&mut Self, Broken> {
        let Self::Text(text) = *self else {
            return Ok(self);
        };
        let many = |_| Broken(format!("there are more than {MAX_ENTRIES} values in one"));
        match text.as_bytes().first() {
            Some(b'{') => {
                let mut members = Vec::new();
                members_of(text, MAX_ENTRIES, &mut members).map_err(many)?;
                let members = members.into_iter();
                let members = members.map(|(key, raw)| (key, Self::Text(raw.get())));
                *self = Self::Object(members.collect());
            }
            Some(b'[') => {
                let mut elements = Vec::new();
                elements_of(text, MAX_ENTRIES, &mut elements).map_err(many)?;
                let elements = elements.into_iter().map(|raw| Self::Text(raw.get()));
                *self = Self::Array(elements.collect());
            }
            Some(_) | None => {}
        }
        Ok(self)
    }

    /// What is at a place.
    fn find(&mut self, path: &Pointer) -> Result<&mut Self, Broken> {
        self.walk(path, &path.parts)
    }

    /// What is at the end of these parts of a path.
    fn walk(&mut self, path: &Pointer, parts: &[String]) -> Result<&mut Self, Broken> {
        let mut node = self;
        for part in parts {
            let child = match node.open()? {
                Self::Object(members) => member(members, path, part)?.map(|at| &mut members[at].1),
                Self::Array(elements) => index(part).and_then(|at| elements.get_mut(at)),
                Self::Text(_) => None,
            };
            node = child.ok_or_else(|| path.nothing())?;
        }
        Ok(node)
    }

    /// Puts something at a place.
    fn put(&mut self, path: &Pointer, value: Self) -> Result<(), Broken> {
        let Some((last, parts)) = path.parts.split_last() else {
            *self = value;
            return Ok(());
        };
        match self.walk(path, parts)?.open()? {
            Self::Object(members) => match member(members, path, last)? {
                Some(at) => members[at].1 = value,
                None => members.push((last.clone(), value)),
            },
            Self::Array(elements) => {
                let at = match last.as_str() {
                    "-" => Some(elements.len()),
                    part => index(part).filter(|at| *at <= elements.len()),
                };
                elements.insert(at.ok_or_else(|| path.nothing())?, value);
            }
            Self::Text(_) => return Err(path.nothing()),
        }
        Ok(())
    }

    /// Takes out what is at a place.
    fn take(&mut self, path: &Pointer) -> Result<Self, Broken> {
        let Some((last, parts)) = path.parts.split_last() else {
            return Err(Broken("the whole document cannot be taken out".to_owned()));
        };
        let taken = match self.walk(path, parts)?.open()? {
            Self::Object(members) => member(members, path, last)?.map(|at| members.remove(at).1),
            Self::Array(elements) => index(last)
                .filter(|at| *at < elements.len())
                .map(|at| elements.remove(at)),
            Self::Text(_) => None,
        };
        taken.ok_or_else(|| path.nothing())
    }

    /// How many bytes are written of it, about.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Object(members) => {
                let members = members.iter();
                let members = members.map(|(key, value)| key.len() + 4 + value.len());
                members.sum::<usize>() + 2
            }
            Self::Array(elements) => {
                elements.iter().map(|value| value.len() + 1).sum::<usize>() + 2
            }
        }
    }

    /// Writes it.
    fn write(&self, out: &mut String) {
        match self {
            Self::Text(text) => out.push_str(text),
            Self::Object(members) => {
                out.push('{');
                for (number, (key, value)) in members.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
            Self::Array(elements) => {
                out.push('[');
                for (number, value) in elements.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
        }
    }
}

/// That a document would grow beyond its bound.
fn too_large() -> Broken {
    Broken(format!("more than {MAX_DOCUMENT} bytes are made"))
}

/// Where the member with this key is. An object that has it twice means nobody knows which.
fn member(
    members: &[(String, Node<'_>)],
    path: &Pointer,
    key: &str,
) -> Result<Option<usize>, Broken> {
    let mut found = members.iter().enumerate().filter(|(_, (of, _))| of == key);
    let first = found.next().map(|(at, _)| at);
    match found.next() {
        Some(_) => Err(Broken(format!("{path}: the key is there twice"))),
        None => Ok(first),
    }
}

/// The index that a part of a path is.
fn index(part: &str) -> Option<usize> {
    let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
    let is_index = is_number && (part == "0" || !part.starts_with('0'));
    part.parse().ok().filter(|_| is_index)
}

/// Whether two documents say the same.
fn is_equal(one: &str, other: &str) -> bool {
    fn same(one: &Value, other: &Value) -> bool {
        match (one, other) {
            // As they are written they are compared before.
            (Value::Number(one), Value::Number(other)) => {
                one == other || one.as_f64() == other.as_f64()
            }
            (Value::Array(one), Value::Array(other)) => {
                let mut pairs = one.iter().zip(other);
                one.len() == other.len() && pairs.all(|(one, other)| same(one, other))
            }
            (Value::Object(one), Value::Object(other)) => {
                let mut members = one.iter();
                let has = |(key, value)| other.get(key).is_some_and(|it| same(value, it));
                one.len() == other.len() && members.all(has)
            }
            (one, other) => one == other,
        }
    }
    let value = |text| serde_json::from_str::<Value>(text).ok();
    let pair = || Some((value(one)?, value(other)?));
    one == other || pair().is_some_and(|(one, other)| same(&one, &other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(document: &str, patch: &str) -> Result<String, String> {
        let made = Patch::parse(patch)?.apply(document.as_bytes())?;
        Ok(String::from_utf8(made.to_vec()).unwrap())
    }

    #[test]
    fn what_is_not_named_stays_as_it_is_written() {
        let document = r#" { "amount": 1.10, "id": 123456789012345678901234567890,
            "lines": [ { "n": 1e400 }, 2.0 ], "name": "\u00fc", "z": {"b":1, "a":2} } "#;

        assert_eq!(
            patched(
                document,
                r#"[{"op":"replace","path":"/lines/1","value":3.50}]"#
            )
            .unwrap(),
            r#"{"amount":1.10,"id":123456789012345678901234567890,"lines":[{ "n": 1e400 },3.50],"name":"\u00fc","z":{"b":1, "a":2}}"#
        );
    }

    #[test]
    fn operations_do_what_the_rfc_says() {
        // Most of them as in appendix A of RFC 6902.
        for (document, patch, made) in [
            (
                r#"{"foo":"bar"}"#,
                r#"[{"op":"add","path":"/baz","value":"qux"}]"#,
                r#"{"foo":"bar","baz":"qux"}"#,
            ),
            (
                r#"{"foo":["bar","baz"]}"#,
                r#"[{"op":"add","path":"/foo/1","value":"qux"}]"#,
                r#"{"foo":["bar","qux","baz"]}"#,
            ),
            (
                r#"{"foo":["bar"]}"#,
                r#"[{"op":"add","path":"/foo/-","value":["abc"]}]"#,
                r#"{"foo":["bar",["abc"]]}"#,
            ),
            (
                r#"{"baz":"qux","foo":"bar"}"#,
                r#"[{"op":"remove","path":"/baz"}]"#,
                r#"{"foo":"bar"}"#,
            ),
            (
                r#"{"foo":["bar","qux","baz"]}"#,
                r#"[{"op":"remove","path":"/foo/1"}]"#,
                r#"{"foo":["bar","baz"]}"#,
            ),
            (
                r#"{"baz":"qux"}"#,
                r#"[{"op":"replace","path":"/baz","value":"boo"}]"#,
                r#"{"baz":"boo"}"#,
            ),
            (
                r#"{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}"#,
                r#"[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]"#,
                r#"{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}"#,
            ),
            (
                r#"{"foo":["all","grass","cows","eat"]}"#,
                r#"[{"op":"move","from":"/foo/1","path":"/foo/3"}]"#,
                r#"{"foo":["all","cows","eat","grass"]}"#,
            ),
            (
                r#"{"a":{"b":1}}"#,
                r#"[{"op":"copy","from":"/a","path":"/c"},{"op":"replace","path":"/c/b","value":2}]"#,
                r#"{"a":{"b":1},"c":{"b":2}}"#,
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"test","path":"/a","value":1.0},{"op":"add","path":"","value":[null]}]"#,
                "[null]",
            ),
            (
                r#"{"foo":null}"#,
                r#"[{"op":"replace","path":"/foo","value":null}]"#,
                r#"{"foo":null}"#,
            ),
            (
                r#"{"/":9,"~1":10}"#,
                r#"[{"op":"test","path":"/~01","value":10},{"op":"replace","path":"/~1","value":1}]"#,
                r#"{"/":1,"~1":10}"#,
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"add","path":"/b","value":true,"xyz":123}]"#,
                r#"{"a":1,"b":true}"#,
            ),
            (
                r#"{"a":[1,{"b":2}]}"#,
                r#"[{"op":"test","path":"/a","value":[1,{"b":2}]},{"op":"remove","path":"/a/1/b"}]"#,
                r#"{"a":[1,{}]}"#,
            ),
        ] {
            assert_eq!(patched(document, patch).as_deref(), Ok(made), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (document, patch, why) in [
            (
                r#"{"a":1}"#,
                r#"[{"op":"remove","path":"/b"}]"#,
                "nothing at \"/b\"",
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"replace","path":"/a/b","value":1}]"#,
                "nothing at \"/a/b\"",
            ),
            (
                r#"{"a":[1]}"#,
                r#"[{"op":"add","path":"/a/2","value":1}]"#,
                "nothing at \"/a/2\"",
            ),
            (
                r#"{"a":[1,2]}"#,
                r#"[{"op":"remove","path":"/a/01"}]"#,
                "nothing at \"/a/01\"",
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"test","path":"/a","value":"1"}]"#,
                "1 found",
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"remove","path":""}]"#,
                "whole document",
            ),
            (
                r#"{"a":1,"a":2}"#,
                r#"[{"op":"remove","path":"/a"}]"#,
                "twice",
            ),
            (
                "no json",
                r#"[{"op":"remove","path":"/a"}]"#,
                "no JSON document",
            ),
            ("{}", "{}", "an array"),
            ("{}", "[]", "no operation"),
            ("{}", "[1]", "operation 0: an object expected"),
            ("{}", r#"[{"op":"put","path":"/a"}]"#, "op is \"put\""),
            (
                "{}",
                r#"[{"op":"add","path":"a","value":1}]"#,
                "begins with /",
            ),
            ("{}", r#"[{"op":"add","path":"/~2","value":1}]"#, "~0"),
            ("{}", r#"[{"op":"add","path":"/a"}]"#, "value is missing"),
            (
                "{}",
                r#"[{"op":"move","from":"/a","path":"/a/b"}]"#,
                "into itself",
            ),
        ] {
            let refused = patched(document, patch).unwrap_err();
            assert!(refused.contains(why), "{patch}: {refused}");
        }
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let copies = vec![r#"{"op":"copy","from":"","path":"/-"}"#; 40];
        let patch = format!("[{}]", copies.join(","));

        let refused = patched(&format!("[{}]", "1,".repeat(9) + "1"), &patch).unwrap_err();

        assert!(refused.contains("bytes are made"), "{refused}");
        let deep = "[".repeat(50_000) + &"]".repeat(50_000);
        assert!(patched(&deep, r#"[{"op":"add","path":"/0/0/-","value":1}]"#).is_ok());
    }
}
