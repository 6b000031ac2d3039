//! Headers as bytes.
//!
//! Kafka says that a header's name is UTF-8, and no broker looks: any bytes arrive, NUL among them. The rdkafka crate reads names as C
//! strings that have to be UTF-8 (it panics where they are not, and cuts them at a NUL), and reads headers that cannot be parsed as none.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::{ptr, slice};

use rdkafka::bindings as native;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, OwnedHeaders};
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

/// The headers of a message, as they are on the record.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    /// The client's list; null where there are no headers.
    list: *const native::rd_kafka_headers_t,
    /// How many there are.
    count: usize,
    /// The message that owns the list.
    owner: PhantomData<&'a ()>,
}

/// A header: its name, and its value if it has one.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// The client cannot parse the headers of a message: there are more than [`MOST`], or their bytes are not headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client cannot read the headers")]
pub struct Unreadable(#[source] pub RDKafkaErrorCode);

/// Most headers of a message that the client reads; it takes a record with more for a broken one.
pub const MOST: usize = 100_000;

/// The version of librdkafka whose header structure is known to [`name_size`]: 2.12.1.
const KNOWN: i32 = 0x020c_01ff;

/// The headers of `message`; an empty list where it has none.
///
/// # Errors
/// If there are headers and the client cannot parse them. Key, value and position of the message can be read all the same.
pub fn read<'a>(message: &'a BorrowedMessage<'_>) -> Result<Headers<'a>, Unreadable> {
    let mut list = ptr::null_mut();
    // SAFETY: the message lives as long as its borrow, and the list that is put out belongs to it.
    let code = unsafe { native::rd_kafka_message_headers(message.ptr(), &raw mut list) };
    match code {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Headers::new(list)),
        RDKafkaRespErr::RD_KAFKA_RESP_ERR__NOENT => Ok(Headers::new(ptr::null())),
        code => Err(Unreadable(code.into())),
    }
}

/// Adds a header behind those that are there; the name may hold any bytes.
pub fn add(headers: &mut OwnedHeaders, name: &[u8], value: Option<&[u8]>) {
    let list = ptr::from_ref(headers.as_borrowed())
        .cast_mut()
        .cast::<native::rd_kafka_headers_t>();
    let (value, size) = match value {
        Some(value) => (value.as_ptr().cast::<c_void>(), value.len()),
        None => (ptr::null(), 0),
    };
    // SAFETY: a borrow of the crate's list is the address of the client's, which `headers` owns alone; name and value are copied.
    let code = unsafe {
        native::rd_kafka_header_add(
            list,
            name.as_ptr().cast::<c_char>(),
            name.len() as isize,
            value,
            size as isize,
        )
    };
    debug_assert_eq!(code, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
}

// === impl Headers ===

impl<'a> Headers<'a> {
    /// The headers of a list, which is null or lives for `'a`.
    fn new(list: *const native::rd_kafka_headers_t) -> Self {
        let count = if list.is_null() {
            0
        } else {
            // SAFETY: a list that is not null is one of the client's.
            unsafe { native::rd_kafka_header_cnt(list) }
        };
        Self {
            list,
            count,
            owner: PhantomData,
        }
    }

    /// The headers of a list that is to be written.
    pub fn of(headers: &'a OwnedHeaders) -> Self {
        Self::new(ptr::from_ref(headers.as_borrowed()).cast())
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Header<'a>> + use<'a> {
        let Self { list, count, .. } = *self;
        (0..count).map(move |index| get(list, index))
    }

    /// The value of the last header of this name, if there is one that has a value.
    pub fn last(&self, name: &[u8]) -> Option<&'a [u8]> {
        let mut found = None;
        for (other, value) in self.iter() {
            if other == name {
                found = value;
            }
        }
        found
    }
}

/// The header at `index`, which is below the count, of a list that lives for `'a`.
fn get<'a>(list: *const native::rd_kafka_headers_t, index: usize) -> Header<'a> {
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the list is the client's, and an index beyond its end is answered by an error.
    let code = unsafe {
        native::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut size)
    };
    assert_eq!(code, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    // SAFETY: what was put out is a header of the list.
    let name_size = unsafe { name_size(name, value) };
    // SAFETY: the name has that many bytes, and is not changed while the list lives.
    let name = unsafe { slice::from_raw_parts(name.cast::<u8>(), name_size) };
    // SAFETY: the value has that many bytes, and is not changed while the list lives.
    let value = (!value.is_null()).then(|| unsafe { slice::from_raw_parts(value.cast(), size) });
    (name, value)
}

/// How long a header's name is, which the client knows and does not tell: it counts on none having a NUL.
///
/// A header is one piece of memory: sizes, the pointer to the value, then name, NUL, value, NUL.
///
/// # Safety
/// Both are from one header of one of the client's lists; `value` is null or follows `name`.
unsafe fn name_size(name: *const c_char, value: *const c_void) -> usize {
    if !value.is_null() {
        return (value as usize) - (name as usize) - 1;
    }
    // SAFETY: takes nothing and reads a constant.
    let version = unsafe { native::rd_kafka_version() };
    // SAFETY: a name ends with a NUL.
    let shown = unsafe { CStr::from_ptr(name) }.count_bytes();
    if version != KNOWN {
        return shown;
    }
    let mut size = 0_usize;
    let place = name.wrapping_sub(2 * size_of::<usize>()).cast::<u8>();
    // SAFETY: in this version the name's size is the word that lies two words before the name, in the same piece of memory.
    unsafe { ptr::copy_nonoverlapping(place, (&raw mut size).cast::<u8>(), size_of::<usize>()) };
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and values that the client's own interface has no way to write or read.
    const ODD: [Header<'static>; 9] = [
        (b"retry-scene", Some(b"pay")),
        (b"caf\xe9", Some(b"x")),
        (b"\xff\xfe", None),
        (b"a\0b", Some(b"")),
        (b"a\0b", None),
        (b"\0", None),
        (b"", None),
        (b"", Some(b"y")),
        (b"a", Some(b"\0z")),
    ];

    #[test]
    fn names_are_any_bytes() {
        let mut written = OwnedHeaders::new();

        for (name, value) in ODD {
            add(&mut written, name, value);
        }

        let read: Vec<Header<'_>> = Headers::of(&written).iter().collect();
        assert_eq!(read, ODD);
        let copy = written.clone();
        let read: Vec<Header<'_>> = Headers::of(&copy).iter().collect();
        assert_eq!(read, ODD);
    }

    #[test]
    fn a_name_is_found_whole() {
        let mut written = OwnedHeaders::new();
        for (name, value) in ODD {
            add(&mut written, name, value);
        }

        let headers = Headers::of(&written);

        assert_eq!(headers.last(b"a"), Some(&b"\0z"[..]));
        assert_eq!(headers.last(b"a\0b"), None);
        assert_eq!(headers.last(b"caf"), None);
        assert_eq!(headers.len(), ODD.len());
        assert!(Headers::of(&OwnedHeaders::new()).is_empty());
    }

    #[test]
    fn the_structure_of_a_header_is_that_of_this_version() {
        // SAFETY: takes nothing and reads a constant.
        assert_eq!(unsafe { native::rd_kafka_version() }, KNOWN);
    }
}
