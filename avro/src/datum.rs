//! The writer of Avro data: the fields of a record as they stand in its type, without a look at its schema.
//!
//! The Avro library looks each field up in the schema by its name, which is most of the time that an event takes. Here the type is believed:
//! its fields have the order of the schema, an [`Option`] is a union of null and one other type. Not a reader, and not for schemas of others.
//! Invariant: what it writes, the library reads by the schema; the tests of `wire` say so for each record.

use std::fmt::Display;

use serde::ser::{self, Impossible, SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

/// Why a value could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records of this crate hold nothing like it.
    #[error("a record holds {what}, which is not written")]
    Unknown {
        /// What it is.
        what: &'static str,
    },
    /// A field refused to be written.
    #[error("{what}")]
    Field {
        /// Why.
        what: String,
    },
}

/// Appends the datum of a record.
pub(crate) fn write(record: &impl Serialize, bytes: &mut Vec<u8>) -> Result<(), Error> {
    record.serialize(&mut Datum { bytes })
}

/// The datum that is being written.
struct Datum<'a> {
    /// What is written so far, and what stands before it.
    bytes: &'a mut Vec<u8>,
}

/// The items of an array, which is written as one block.
struct Items<'a, 'b> {
    /// The datum.
    datum: &'b mut Datum<'a>,
}

// === impl Error ===

impl ser::Error for Error {
    fn custom<T: Display>(what: T) -> Self {
        let what = what.to_string();
        Self::Field { what }
    }
}

// === impl Datum ===

impl Datum<'_> {
    /// A number: its lowest seven bits first, and small ones short, also below zero.
    fn long(&mut self, long: i64) {
        let mut rest = ((long << 1) ^ (long >> 63)) as u64;
        while rest >= 0x80 {
            self.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
    }

    /// A length, or the place of a type in its union.
    fn count(&mut self, count: usize) {
        self.long(count as i64);
    }
}

/// There is no such thing in a record.
const fn unknown<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::Unknown { what })
}

impl<'a, 'b> Serializer for &'b mut Datum<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Items<'a, 'b>;
    type SerializeTuple = Impossible<(), Error>;
    type SerializeTupleStruct = Impossible<(), Error>;
    type SerializeTupleVariant = Impossible<(), Error>;
    type SerializeMap = Impossible<(), Error>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), Error>;

    fn serialize_i64(self, long: i64) -> Result<(), Error> {
        self.long(long);
        Ok(())
    }

    fn serialize_str(self, text: &str) -> Result<(), Error> {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Error> {
        self.count(bytes.len());
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.count(0);
        Ok(())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Error> {
        self.count(1);
        value.serialize(self)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Items<'a, 'b>, Error> {
        let Some(len) = len else {
            return unknown("an array of unknown length");
        };
        // A block of none would be the end already.
        if len > 0 {
            self.count(len);
        }
        Ok(Items { datum: self })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, _: bool) -> Result<(), Error> {
        unknown("a boolean")
    }

    fn serialize_i8(self, _: i8) -> Result<(), Error> {
        unknown("a number of 8 bits")
    }

    fn serialize_i16(self, _: i16) -> Result<(), Error> {
        unknown("a number of 16 bits")
    }

    fn serialize_i32(self, _: i32) -> Result<(), Error> {
        unknown("a number of 32 bits")
    }

    fn serialize_u8(self, _: u8) -> Result<(), Error> {
        unknown("a number of 8 bits")
    }

    fn serialize_u16(self, _: u16) -> Result<(), Error> {
        unknown("a number of 16 bits")
    }

    fn serialize_u32(self, _: u32) -> Result<(), Error> {
        unknown("a number of 32 bits")
    }

    fn serialize_u64(self, _: u64) -> Result<(), Error> {
        unknown("a number without a sign")
    }

    fn serialize_f32(self, _: f32) -> Result<(), Error> {
        unknown("a fraction")
    }

    fn serialize_f64(self, _: f64) -> Result<(), Error> {
        unknown("a fraction")
    }

    fn serialize_char(self, _: char) -> Result<(), Error> {
        unknown("a character")
    }

    fn serialize_unit(self) -> Result<(), Error> {
        unknown("nothing")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        unknown("nothing")
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Error> {
        unknown("a variant")
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Error> {
        unknown("a variant")
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Error> {
        unknown("a tuple")
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Error> {
        unknown("a tuple")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Error> {
        unknown("a variant")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Error> {
        unknown("a map")
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Error> {
        unknown("a variant")
    }
}

impl SerializeStruct for &mut Datum<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: ?Sized + Serialize>(
        &mut self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(&mut **self)
    }

    fn skip_field(&mut self, _: &'static str) -> Result<(), Error> {
        unknown("a field that may be left out")
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

// === impl Items ===

impl SerializeSeq for Items<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.datum)
    }

    fn end(self) -> Result<(), Error> {
        self.datum.count(0);
        Ok(())
    }
}
