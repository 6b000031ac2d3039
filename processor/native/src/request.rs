//! What all admin requests have in common: options, the queue that the answer comes to, and the answer.
//!
//! Not what is asked. Invariant: nothing is asked before a broker answers, and what an answer lists lives no longer than the answer.

use std::ffi::{CStr, CString, c_char, c_int};
use std::slice;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

/// The options of a request, destroyed when they are dropped.
pub(crate) struct Options(pub(crate) *mut native::rd_kafka_AdminOptions_t);

/// Where an answer comes; destroyed when it is dropped, and an answer that comes later with it.
#[derive(Debug)]
pub(crate) struct Queue(pub(crate) *mut native::rd_kafka_queue_t);

/// An answer, destroyed when it is dropped.
pub(crate) struct Answer(*mut native::rd_kafka_event_t);

/// What gives the result of an answer.
type ResultOf<R> = unsafe extern "C" fn(*mut native::rd_kafka_event_t) -> *const R;

/// What gives the parts of a result, and how many there are.
type PartsOf<R, T> = unsafe extern "C" fn(*const R, *mut usize) -> *mut *const T;

/// What the answer takes longer than the client's own limit, which comes as an answer as well.
const MARGIN: Duration = Duration::from_secs(1);

/// Room for the text of an error.
pub(crate) const ERROR: usize = 256;

// === impl Options ===

impl Options {
    /// Options with a limit on how long the client waits for an answer, once a broker answers at all: a request that waits for a connection
    /// to one that is gone keeps a core busy, since each failed attempt makes the client ask for the next one.
    ///
    /// The broker is asked for `topic`. Without a name, a client that has to do with no topic asks for all that the cluster has, and from then
    /// on for each of them by its name. It creates none, unless `allow.auto.create.topics` lets it.
    ///
    /// # Errors
    /// If no broker answers in time, or `timeout` is out of the client's bounds.
    pub(crate) fn new<C: ClientContext>(
        client: &Client<C>,
        kind: native::rd_kafka_admin_op_t,
        (topic, timeout): (&str, Duration),
    ) -> Result<Self, KafkaError> {
        client.fetch_metadata(Some(topic), timeout)?;
        // SAFETY: the client lives.
        let options = Self(unsafe { native::rd_kafka_AdminOptions_new(client.native_ptr(), kind) });
        let mut error = [0; ERROR];
        // SAFETY: the options live, and the text of an error has the room that is said.
        let code = unsafe {
            native::rd_kafka_AdminOptions_set_request_timeout(
                options.0,
                millis(timeout),
                error.as_mut_ptr(),
                error.len(),
            )
        };
        taken(code)?;
        Ok(options)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_AdminOptions_destroy(self.0) };
    }
}

// === impl Queue ===

impl Queue {
    /// A queue of a client, which has to outlive it.
    pub(crate) fn new<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client lives, and as long as the queue, as is asked of the caller.
        Self(unsafe { native::rd_kafka_queue_new(client.native_ptr()) })
    }

    /// Waits for the answer, a moment longer than the client does, and takes it unless it is an error.
    pub(crate) fn answer(&self, timeout: Duration) -> Result<Answer, KafkaError> {
        // SAFETY: the queue lives.
        let event = unsafe { native::rd_kafka_queue_poll(self.0, millis(timeout + MARGIN)) };
        if event.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        }
        let answer = Answer(event);
        // SAFETY: the event lives.
        taken(unsafe { native::rd_kafka_event_error(answer.0) })?;
        Ok(answer)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_queue_destroy(self.0) };
    }
}

// === impl Answer ===

impl Answer {
    /// The parts of the answer, as `result` and `parts` give them, which belong to it.
    ///
    /// # Errors
    /// If it is the answer to something else.
    pub(crate) fn parts<R, T>(
        &self,
        result: ResultOf<R>,
        parts: PartsOf<R, T>,
    ) -> Result<&[*const T], KafkaError> {
        // SAFETY: the event lives; the result is part of it, and null if it has none of that kind.
        let result = unsafe { result(self.0) };
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::InvalidRequest));
        }
        let mut count = 0;
        // SAFETY: the result lives as long as the event.
        let all = unsafe { parts(result, &raw mut count) };
        if all.is_null() || count == 0 {
            return Ok(&[]);
        }
        // SAFETY: as many parts as said, which live as long as the event.
        Ok(unsafe { slice::from_raw_parts(all, count) })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_event_destroy(self.0) };
    }
}

/// An error unless the client has taken what it was told.
pub(crate) fn taken(code: RDKafkaRespErr) -> Result<(), KafkaError> {
    if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        Ok(())
    } else {
        Err(KafkaError::AdminOp(code.into()))
    }
}

/// The text of a C string that lives, if it is one.
pub(crate) fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: a C string of an answer that the caller holds.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// The C string of a text.
///
/// # Errors
/// If there is a zero in it.
pub(crate) fn string(text: &str) -> Result<CString, KafkaError> {
    CString::new(text).map_err(KafkaError::Nul)
}

/// A time as the client takes it.
pub(crate) fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}
