//! The ids of topics (KIP-516) and of the cluster: what tells a topic from another one that has its name later, or elsewhere.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::slice;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

/// The id of a topic, drawn by the cluster when the topic is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u128);

/// What the cluster says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The topic's name.
    pub name: String,
    /// The topic's id; a cluster before Kafka 2.8 has none.
    pub id: Option<TopicId>,
    /// How many partitions the topic has.
    pub partitions: usize,
}

/// A question for topics that is on its way.
#[derive(Debug)]
pub struct Question<'a> {
    /// Where the answer comes.
    queue: *mut native::rd_kafka_queue_t,
    /// How long the client waits for it.
    timeout: Duration,
    /// The client that asks.
    client: PhantomData<&'a ()>,
}

/// What the answer takes longer than the client's own limit, which comes as an answer as well.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);

/// Room for the text of an error.
pub(crate) const ERROR: usize = 256;

/// The id of the client's cluster, waiting at most `timeout` for a broker; `None` if none has told it by then.
pub fn cluster_id<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Option<String> {
    let handle = client.native_ptr();
    // SAFETY: the client lives as long as its borrow.
    let text = unsafe { native::rd_kafka_clusterid(handle, millis(timeout)) };
    if text.is_null() {
        return None;
    }
    // SAFETY: the text is a C string of ours until it is freed.
    let id = unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: the text was allocated by this client and is not used again.
    unsafe { native::rd_kafka_mem_free(handle, text.cast::<c_void>()) };
    Some(id)
}

/// Asks what the cluster says of the topics that the client has to do with, and waits at most `timeout` for it.
///
/// To be done
/// - before each admin request: one that waits for a connection to a broker that is gone keeps a core busy, since each failed attempt at a
///   connection makes the client ask for the next one;
/// - when a consumer is to read topics that it did not read before: by itself it asks for them up to a second later.
///
/// # Errors
/// If no broker answers in time.
pub fn refresh<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Result<(), KafkaError> {
    let mut metadata = ptr::null();
    // SAFETY: the client lives, and no topic is asked for by a handle.
    let code = unsafe {
        native::rd_kafka_metadata(
            client.native_ptr(),
            0,
            ptr::null_mut(),
            &raw mut metadata,
            millis(timeout),
        )
    };
    if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(KafkaError::MetadataFetch(code.into()));
    }
    // SAFETY: what was given is ours, and not used again.
    unsafe { native::rd_kafka_metadata_destroy(metadata) };
    Ok(())
}

/// Asks for the ids of `topics`; see [`Question::wait`].
///
/// # Errors
/// If a name cannot be one of a topic, or `timeout` is out of the client's bounds.
pub fn ask<'a, C: ClientContext>(
    client: &'a Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Question<'a>, KafkaError> {
    let names: Vec<CString> = topics
        .iter()
        .map(|topic| CString::new(*topic).map_err(KafkaError::Nul))
        .collect::<Result<_, _>>()?;
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let handle = client.native_ptr();
    refresh(client, timeout)?;
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let options = Options::new(handle, kind, timeout)?;
    // SAFETY: as many C strings as said, which are copied.
    let collection =
        unsafe { native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
    // SAFETY: the client lives at least as long as the queue, whose lifetime is bound to its borrow.
    let queue = unsafe { native::rd_kafka_queue_new(handle) };
    // SAFETY: all four live, and collection and options are copied.
    unsafe { native::rd_kafka_DescribeTopics(handle, collection, options.0, queue) };
    // SAFETY: not used again.
    unsafe { native::rd_kafka_TopicCollection_destroy(collection) };
    Ok(Question {
        queue,
        timeout,
        client: PhantomData,
    })
}

/// What the cluster says of `topics`, in their order, waiting at most a second longer than `timeout`.
///
/// # Errors
/// As [`ask`] and [`Question::wait`].
pub fn describe<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Result<Topic, RDKafkaErrorCode>>, KafkaError> {
    ask(client, topics, timeout)?.wait()
}

// === impl Question ===

impl Question<'_> {
    /// The answer: each topic, or why nothing is said of it, in no order that can be relied on.
    ///
    /// # Errors
    /// If no broker answers in time, or refuses to.
    pub fn wait(self) -> Result<Vec<Result<Topic, RDKafkaErrorCode>>, KafkaError> {
        // SAFETY: the queue lives until it is dropped with the question.
        let event =
            unsafe { native::rd_kafka_queue_poll(self.queue, millis(self.timeout + MARGIN)) };
        if event.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        }
        let event = Event(event);
        // SAFETY: the event lives.
        let code = unsafe { native::rd_kafka_event_error(event.0) };
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(code.into()));
        }
        // SAFETY: the event lives; the result is part of it.
        let result = unsafe { native::rd_kafka_event_DescribeTopics_result(event.0) };
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::InvalidRequest));
        }
        let mut count = 0;
        // SAFETY: the result is that of topics, and lives as long as the event.
        let topics =
            unsafe { native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
        if topics.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: as many descriptions as said, which live as long as the event.
        let topics = unsafe { slice::from_raw_parts(topics, count) };
        Ok(topics.iter().map(|topic| read(*topic)).collect())
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        // SAFETY: not used again; an answer that comes later is dropped by the client.
        unsafe { native::rd_kafka_queue_destroy(self.queue) };
    }
}

/// What a description says.
fn read(topic: *const native::rd_kafka_TopicDescription_t) -> Result<Topic, RDKafkaErrorCode> {
    // SAFETY: the description lives as long as the event that the caller holds.
    let error = unsafe { native::rd_kafka_TopicDescription_error(topic) };
    // SAFETY: the error is part of the description; none is no error.
    let code = unsafe { native::rd_kafka_error_code(error) };
    if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(code.into());
    }
    // SAFETY: as above.
    let name = unsafe { native::rd_kafka_TopicDescription_name(topic) };
    // SAFETY: the name is a C string that lives as long as the description.
    let name = unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned();
    let mut partitions = 0;
    // SAFETY: as above.
    unsafe { native::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions) };
    // SAFETY: as above.
    let id = unsafe { native::rd_kafka_TopicDescription_topic_id(topic) };
    Ok(Topic {
        name,
        id: topic_id(id),
        partitions,
    })
}

/// The id that the client knows; one of all zeros is none.
fn topic_id(id: *const native::rd_kafka_Uuid_t) -> Option<TopicId> {
    if id.is_null() {
        return None;
    }
    // SAFETY: the id is part of a description that lives.
    let high = unsafe { native::rd_kafka_Uuid_most_significant_bits(id) };
    // SAFETY: as above.
    let low = unsafe { native::rd_kafka_Uuid_least_significant_bits(id) };
    let bits = u128::from(high as u64) << 64 | u128::from(low as u64);
    (bits != 0).then_some(TopicId(bits))
}

/// An event that is destroyed when it is dropped.
pub(crate) struct Event(pub(crate) *mut native::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_event_destroy(self.0) };
    }
}

/// The options of a question, destroyed when they are dropped.
pub(crate) struct Options(pub(crate) *mut native::rd_kafka_AdminOptions_t);

impl Options {
    /// Options with a limit on how long the client waits for an answer.
    pub(crate) fn new(
        handle: *mut native::rd_kafka_t,
        kind: native::rd_kafka_admin_op_t,
        timeout: Duration,
    ) -> Result<Self, KafkaError> {
        // SAFETY: the handle is that of a client that lives.
        let options = Self(unsafe { native::rd_kafka_AdminOptions_new(handle, kind) });
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
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(options)
        } else {
            Err(KafkaError::AdminOp(code.into()))
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_AdminOptions_destroy(self.0) };
    }
}

/// A time as the client takes it.
pub(crate) fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}

// === impl TopicId ===

impl std::fmt::Display for TopicId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}
