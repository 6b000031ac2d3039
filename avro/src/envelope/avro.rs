//! The Avro form of the envelope, read by a cursor of its own rather than through a generic value: the payload stays a slice of the
//! record, and a forged count of headers allocates nothing.

use std::str;

use bytes::Bytes;

use retide_core::Header;

use super::{Broken, Envelope, Known, broken};
use crate::headers::MAX_HEADERS;
use crate::schema::{Field, MAX_DEPTH, Named, Schema, Shape, Unit};

/// Values that a datum may have besides one for each of its bytes: what takes no bytes is counted as well.
const MOST_VALUES: usize = 10_000;

/// What is left of an Avro datum.
struct Cursor(Bytes);

/// Reads the Avro form: the fields of `RetryTask` in their order.
pub(super) fn read(datum: Bytes) -> Result<Envelope, Broken> {
    let mut cursor = Cursor(datum);
    let envelope = Envelope {
        scene: Some(cursor.string()?),
        id: cursor.optional(Cursor::string)?,
        payload: Some(cursor.bytes()?),
        content_type: cursor.optional(Cursor::string)?,
        wrote_json: false,
        headers: cursor.headers()?,
        key: cursor.optional(Cursor::bytes)?,
        due_at: cursor.optional(Cursor::long)?,
        delay_ms: cursor.optional(Cursor::long)?,
        deadline_at: cursor.optional(Cursor::long)?,
    };
    if cursor.0.is_empty() {
        Ok(envelope)
    } else {
        Err(broken("bytes after the end"))
    }
}

/// What can be read of a datum that is refused: the fields before the break.
pub(super) fn known(datum: Bytes) -> Known {
    let mut known = Known::default();
    let mut cursor = Cursor(datum);
    let mut fields = || {
        known.scene = Some(cursor.string()?);
        known.id = cursor.optional(Cursor::string)?;
        cursor.bytes()?;
        cursor.optional(Cursor::string)?;
        cursor.headers()?;
        known.key = cursor.optional(Cursor::bytes)?;
        Ok::<_, Broken>(())
    };
    // Whatever was wrong has been told.
    let _ = fields();
    known
}

/// A datum that is taken apart by its writer's schema.
struct Reader<'a> {
    /// What is left of it.
    cursor: Cursor,
    /// The schema.
    schema: &'a Schema,
    /// How many more values it may hold: what takes no bytes would have no end.
    left: usize,
}

/// Reads the Avro form as another writer wrote it: fields by their names, in whatever order, and what retide does not know is skipped.
pub(super) fn read_as(schema: &Schema, datum: Bytes) -> Result<Envelope, Broken> {
    let mut envelope = Envelope::default();
    fill(schema, datum, &mut envelope)?;
    Ok(envelope)
}

/// What can be read of a datum of another writer that is refused.
pub(super) fn known_as(schema: &Schema, datum: Bytes) -> Known {
    let mut envelope = Envelope::default();
    // Whatever was wrong has been told.
    let _ = fill(schema, datum, &mut envelope);
    let Envelope { scene, id, key, .. } = envelope;
    Known { scene, id, key }
}

/// Fills an envelope with what a datum of another writer has of it.
fn fill(schema: &Schema, datum: Bytes, envelope: &mut Envelope) -> Result<(), Broken> {
    let mut reader = Reader {
        left: MOST_VALUES + datum.len(),
        cursor: Cursor(datum),
        schema,
    };
    // A topic may have records of several types.
    let root = reader.plain(&schema.root)?;
    let fields = schema
        .fields(root)
        .ok_or_else(|| reader.found(root, "record"))?;
    let mut has_payload = false;
    for Field { name, shape } in fields {
        let at = |Broken(why)| Broken(format!("{name}: {why}"));
        match &**name {
            "scene" => envelope.scene = reader.text(shape, 0).map_err(at)?,
            "id" => envelope.id = reader.text(shape, 0).map_err(at)?,
            "payload" => {
                has_payload = true;
                envelope.payload = reader.bytes(shape, 0).map_err(at)?;
            }
            "contentType" => envelope.content_type = reader.text(shape, 0).map_err(at)?,
            "headers" => envelope.headers = reader.headers(shape, 0).map_err(at)?,
            "key" => envelope.key = reader.bytes(shape, 0).map_err(at)?,
            "dueAt" => envelope.due_at = reader.millis(shape, 0).map_err(at)?,
            "delayMs" => envelope.delay_ms = reader.millis(shape, 0).map_err(at)?,
            "deadlineAt" => envelope.deadline_at = reader.millis(shape, 0).map_err(at)?,
            _ => reader.skip(shape, 0).map_err(at)?,
        }
    }
    if !has_payload {
        return Err(broken("the writer's schema has no field payload"));
    }
    if !reader.cursor.0.is_empty() {
        return Err(broken("bytes after the end"));
    }
    Ok(())
}

// === impl Cursor ===

impl Cursor {
    /// A zigzag variable-length integer of at most ten bytes.
    fn long(&mut self) -> Result<i64, Broken> {
        let mut zigzag = 0_u64;
        for place in 0..10 {
            let Some(&byte) = self.0.get(place) else {
                return Err(broken("ends inside a number"));
            };
            // The tenth byte has room for one bit only.
            if place == 9 && byte > 1 {
                break;
            }
            zigzag |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = self.0.slice(place + 1..);
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(broken("a number of more than 64 bits"))
    }

    /// A length and that many bytes, still in the record's buffer.
    fn bytes(&mut self) -> Result<Bytes, Broken> {
        let length = usize::try_from(self.long()?).map_err(|_| broken("a negative length"))?;
        self.take(length)
    }

    /// So many bytes, still in the record's buffer.
    fn take(&mut self, length: usize) -> Result<Bytes, Broken> {
        if length > self.0.len() {
            return Err(broken("ends inside a value"));
        }
        Ok(self.0.split_to(length))
    }

    /// Text.
    fn string(&mut self) -> Result<String, Broken> {
        let bytes = self.bytes()?;
        str::from_utf8(&bytes)
            .map(str::to_owned)
            .map_err(|_| broken("text is not UTF-8"))
    }

    /// A union of null and what `read` reads.
    fn optional<T>(
        &mut self,
        read: fn(&mut Self) -> Result<T, Broken>,
    ) -> Result<Option<T>, Broken> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(broken("no such branch of a union")),
        }
    }

    /// An array of headers: blocks, each with its count, ended by an empty one.
    fn headers(&mut self) -> Result<Vec<Header>, Broken> {
        let mut headers = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(headers);
            }
            if count < 0 {
                // A negative count is followed by the block's size, for readers that skip.
                self.long()?;
                count = count.checked_neg().unwrap_or(i64::MAX);
            }
            for _ in 0..count {
                if headers.len() >= MAX_HEADERS {
                    return Err(broken("too many headers"));
                }
                headers.push(Header {
                    name: self.string()?.into(),
                    value: self.optional(Self::bytes)?,
                });
            }
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Counts a value of `shape` at this depth.
    fn enter(&mut self, depth: usize) -> Result<(), Broken> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| broken("more values than a task has"))?;
        if depth > MAX_DEPTH {
            return Err(broken("values nested too deeply"));
        }
        Ok(())
    }

    /// What a type with a name is.
    fn named(&self, place: usize) -> &'a Named {
        &self.schema.named[place]
    }

    /// The branch of a union that the datum has here.
    fn branch(&mut self, branches: &'a [Shape]) -> Result<&'a Shape, Broken> {
        let branch = usize::try_from(self.cursor.long()?).ok();
        branch
            .and_then(|branch| branches.get(branch))
            .ok_or_else(|| broken("no such branch of a union"))
    }

    /// What the datum has here: of a union, the branch.
    fn plain(&mut self, shape: &'a Shape) -> Result<&'a Shape, Broken> {
        match shape {
            Shape::Union(branches) => self.branch(branches),
            Shape::Null
            | Shape::Boolean
            | Shape::Number(_)
            | Shape::Float
            | Shape::Double
            | Shape::Bytes
            | Shape::Text
            | Shape::Array(_)
            | Shape::Map(_)
            | Shape::Named(_) => Ok(shape),
        }
    }

    /// The bytes of text, bytes or fixed; nothing of null.
    fn bytes(&mut self, shape: &'a Shape, depth: usize) -> Result<Option<Bytes>, Broken> {
        self.enter(depth)?;
        match shape {
            Shape::Null => Ok(None),
            Shape::Union(branches) => {
                let branch = self.branch(branches)?;
                self.bytes(branch, depth + 1)
            }
            Shape::Bytes | Shape::Text => self.cursor.bytes().map(Some),
            Shape::Named(place) => match self.named(*place) {
                Named::Fixed(size) => self.cursor.take(*size).map(Some),
                Named::Record(_) | Named::Enum(_) => Err(self.found(shape, "bytes or string")),
            },
            Shape::Boolean
            | Shape::Number(_)
            | Shape::Float
            | Shape::Double
            | Shape::Array(_)
            | Shape::Map(_) => Err(self.found(shape, "bytes or string")),
        }
    }

    /// Text; a number and a symbol are the text that they are written as.
    fn text(&mut self, shape: &'a Shape, depth: usize) -> Result<Option<String>, Broken> {
        self.enter(depth)?;
        match shape {
            Shape::Null => Ok(None),
            Shape::Union(branches) => {
                let branch = self.branch(branches)?;
                self.text(branch, depth + 1)
            }
            Shape::Bytes | Shape::Text => self.cursor.string().map(Some),
            Shape::Number(Unit::Millis) => Ok(Some(self.cursor.long()?.to_string())),
            Shape::Named(place) => match self.named(*place) {
                Named::Enum(symbols) => {
                    let symbol = usize::try_from(self.cursor.long()?).ok();
                    let symbol = symbol.and_then(|symbol| symbols.get(symbol));
                    symbol
                        .cloned()
                        .map(Some)
                        .ok_or_else(|| broken("no such symbol of an enum"))
                }
                Named::Record(_) | Named::Fixed(_) => Err(self.found(shape, "string")),
            },
            Shape::Boolean
            | Shape::Number(Unit::Micros | Unit::Nanos)
            | Shape::Float
            | Shape::Double
            | Shape::Array(_)
            | Shape::Map(_) => Err(self.found(shape, "string")),
        }
    }

    /// A number of milliseconds; what is finer is rounded up, so that nothing is early.
    fn millis(&mut self, shape: &'a Shape, depth: usize) -> Result<Option<i64>, Broken> {
        self.enter(depth)?;
        match shape {
            Shape::Null => Ok(None),
            Shape::Union(branches) => {
                let branch = self.branch(branches)?;
                self.millis(branch, depth + 1)
            }
            Shape::Number(unit) => {
                let number = self.cursor.long()?;
                let parts = match unit {
                    Unit::Millis => 1,
                    Unit::Micros => 1_000,
                    Unit::Nanos => 1_000_000,
                };
                let whole = number.div_euclid(parts);
                Ok(Some(whole + i64::from(number.rem_euclid(parts) > 0)))
            }
            Shape::Boolean
            | Shape::Float
            | Shape::Double
            | Shape::Bytes
            | Shape::Text
            | Shape::Array(_)
            | Shape::Map(_)
            | Shape::Named(_) => Err(self.found(shape, "long")),
        }
    }

    /// Headers: an array of records with name and value, or a map.
    fn headers(&mut self, shape: &'a Shape, depth: usize) -> Result<Vec<Header>, Broken> {
        self.enter(depth)?;
        let mut headers = Vec::new();
        match shape {
            Shape::Null => {}
            Shape::Union(branches) => {
                let branch = self.branch(branches)?;
                return self.headers(branch, depth + 1);
            }
            Shape::Array(items) => self.blocks(|reader| {
                let header = reader.header(items, depth + 1)?;
                room_for(&headers)?;
                headers.push(header);
                Ok(())
            })?,
            Shape::Map(values) => self.blocks(|reader| {
                let name = reader.cursor.string()?;
                let value = reader.bytes(values, depth + 1);
                let value = value.map_err(|Broken(why)| Broken(format!("{name}: {why}")))?;
                room_for(&headers)?;
                headers.push(Header {
                    name: name.into(),
                    value,
                });
                Ok(())
            })?,
            Shape::Boolean
            | Shape::Number(_)
            | Shape::Float
            | Shape::Double
            | Shape::Bytes
            | Shape::Text
            | Shape::Named(_) => return Err(self.found(shape, "array or map")),
        }
        Ok(headers)
    }

    /// One header of an array.
    fn header(&mut self, shape: &'a Shape, depth: usize) -> Result<Header, Broken> {
        self.enter(depth)?;
        let shape = self.plain(shape)?;
        let fields = self
            .schema
            .fields(shape)
            .ok_or_else(|| self.found(shape, "record"))?;
        let (mut name, mut value) = (None, None);
        for field in fields {
            match &*field.name {
                "name" | "key" => name = self.text(&field.shape, depth + 1)?,
                "value" => value = self.bytes(&field.shape, depth + 1)?,
                _ => self.skip(&field.shape, depth + 1)?,
            }
        }
        let name = name.ok_or_else(|| broken("a header without a name"))?;
        Ok(Header {
            name: name.into(),
            value,
        })
    }

    /// Each item of the blocks of an array or a map, ended by an empty block.
    fn blocks(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        loop {
            let mut count = self.cursor.long()?;
            if count == 0 {
                return Ok(());
            }
            if count < 0 {
                // A negative count is followed by the block's size, for readers that skip.
                self.cursor.long()?;
                count = count.checked_neg().unwrap_or(i64::MAX);
            }
            for _ in 0..count {
                item(self)?;
            }
        }
    }

    /// Skips a value.
    fn skip(&mut self, shape: &'a Shape, depth: usize) -> Result<(), Broken> {
        self.enter(depth)?;
        match shape {
            Shape::Null => Ok(()),
            Shape::Boolean => self.cursor.take(1).map(drop),
            Shape::Number(_) => self.cursor.long().map(drop),
            Shape::Float => self.cursor.take(4).map(drop),
            Shape::Double => self.cursor.take(8).map(drop),
            Shape::Bytes | Shape::Text => self.cursor.bytes().map(drop),
            Shape::Array(items) => self.blocks(|reader| reader.skip(items, depth + 1)),
            Shape::Map(values) => self.blocks(|reader| {
                reader.cursor.bytes()?;
                reader.skip(values, depth + 1)
            }),
            Shape::Union(branches) => {
                let branch = self.branch(branches)?;
                self.skip(branch, depth + 1)
            }
            Shape::Named(place) => match self.named(*place) {
                Named::Record(fields) => {
                    let mut fields = fields.iter();
                    fields.try_for_each(|field| self.skip(&field.shape, depth + 1))
                }
                Named::Enum(_) => self.cursor.long().map(drop),
                Named::Fixed(size) => self.cursor.take(*size).map(drop),
            },
        }
    }

    /// A value of one type where others are expected.
    fn found(&self, shape: &Shape, expected: &str) -> Broken {
        let found = shape.word(&self.schema.named);
        Broken(format!(
            "{found} in the writer's schema, {expected} expected"
        ))
    }
}

/// Refuses one header more than a task may have.
fn room_for(headers: &[Header]) -> Result<(), Broken> {
    if headers.len() >= MAX_HEADERS {
        return Err(broken("too many headers"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A schema with one field of this type before the payload.
    fn with(field: &str) -> Schema {
        let text = format!(
            r#"{{"type": "record", "name": "T", "fields": [
                {{"name": "more", "type": {field}}}, {{"name": "payload", "type": "bytes"}}
            ]}}"#
        );
        Schema::parse(&text, &[]).unwrap()
    }

    /// Why a datum is refused.
    fn refusal(schema: &Schema, datum: &'static [u8]) -> String {
        let Broken(why) = read_as(schema, Bytes::from_static(datum)).err().unwrap();
        why
    }

    #[test]
    fn values_without_bytes_have_an_end() {
        let itself = r#"{"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]}"#;
        assert_eq!(
            refusal(&with(itself), b""),
            "more: values nested too deeply"
        );

        // Each holds the next one twice.
        let mut doubled = r#""null""#.to_owned();
        for number in 0..30 {
            doubled = format!(
                r#"{{"type": "record", "name": "R{number}", "fields": [
                    {{"name": "a", "type": {doubled}}}, {{"name": "b", "type": "{}"}}
                ]}}"#,
                if number == 0 {
                    "null".to_owned()
                } else {
                    format!("R{}", number - 1)
                }
            );
        }
        assert_eq!(
            refusal(&with(&doubled), b""),
            "more: more values than a task has"
        );

        let nothing = r#"{"type": "array", "items": "null"}"#;
        let many = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(
            refusal(&with(nothing), many),
            "more: more values than a task has"
        );
    }

    #[test]
    fn a_type_that_holds_itself_is_read_to_the_end_of_its_values() {
        let list = r#"{"type": "record", "name": "L", "fields": [
            {"name": "next", "type": ["null", "L", {"type": "map", "values": ["L", "int"]}]}
        ]}"#;
        let schema = with(list);

        // Two in a row, then a map of one of them, which ends, and of a number.
        let datum = b"\x02\x02\x04\x04\x02a\x00\x00\x02b\x02\x0e\x00\x06pay";
        let envelope = read_as(&schema, Bytes::from_static(datum)).unwrap();

        assert_eq!(envelope.payload.as_deref(), Some(&b"pay"[..]));
        assert_eq!(
            refusal(&schema, b"\x02\x06"),
            "more: no such branch of a union"
        );
        assert_eq!(
            refusal(&schema, b"\x02\x01"),
            "more: no such branch of a union"
        );
        assert_eq!(refusal(&schema, b"\x02\x02"), "more: ends inside a number");
    }

    #[test]
    fn a_topic_of_several_types_has_tasks_among_others() {
        let text = r#"["string", {"type": "record", "name": "T", "fields": [{"name": "payload", "type": ["null", "bytes"]}]}]"#;
        let schema = Schema::parse(text, &[]).unwrap();

        let envelope = read_as(&schema, Bytes::from_static(b"\x02\x02\x02p")).unwrap();

        assert_eq!(envelope.payload.as_deref(), Some(&b"p"[..]));
        let other = "string in the writer's schema, record expected";
        assert_eq!(refusal(&schema, b"\x00\x02s"), other);
    }

    #[test]
    fn headers_are_found_behind_unions() {
        let text = r#"{"type": "record", "name": "T", "fields": [
            {"name": "payload", "type": "bytes"},
            {"name": "headers", "type": ["null", {"type": "array", "items": ["null", {"type": "record", "name": "H", "fields": [
                {"name": "key", "type": ["null", "string"]}, {"name": "value", "type": ["bytes", "null", "string"]}
            ]}]}]}
        ]}"#;
        let schema = Schema::parse(text, &[]).unwrap();

        let datum = b"\x02p\x02\x04\x02\x02\x02a\x04\x02x\x02\x02\x02b\x02\x00";
        let headers = read_as(&schema, Bytes::from_static(datum)).unwrap().headers;

        let found: Vec<_> = headers
            .iter()
            .map(|header| (header.name.as_bytes(), header.value.as_deref()))
            .collect();
        assert_eq!(found, [(&b"a"[..], Some(&b"x"[..])), (b"b", None)]);
        let null = "headers: null in the writer's schema, record expected";
        assert_eq!(refusal(&schema, b"\x02p\x02\x02\x00\x00"), null);
        assert_eq!(
            refusal(&schema, b"\x02p\x02\x02\x02\x00\x02\x00"),
            "headers: a header without a name"
        );
    }
}
