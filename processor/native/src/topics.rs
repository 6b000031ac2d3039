//! The ids of topics (KIP-516) and of the cluster: what tells a topic from another one that has its name later, or elsewhere.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::request::{Options, Queue, millis, string, text};

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
    queue: Queue,
    /// How long the client waits for it.
    timeout: Duration,
    /// The client that asks.
    client: PhantomData<&'a ()>,
}

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

/// Asks what the cluster says of the topics that the client has to do with, or of all there are if it has to do with none, and waits at most
/// `timeout` for it.
///
/// To be done when a consumer is to read topics that it did not read before: by itself it asks for them up to a second later.
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
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let first = topics.first().copied().unwrap_or_default();
    let options = Options::new(client, kind, (first, timeout))?;
    Ok(Question {
        queue: ask_with(client, topics, &options)?,
        timeout,
        client: PhantomData,
    })
}

/// Asks for descriptions of `topics`; the answer comes to the queue.
///
/// # Errors
/// If a name cannot be one of a topic.
pub(crate) fn ask_with<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    options: &Options,
) -> Result<Queue, KafkaError> {
    let names = topics.iter().map(|topic| string(topic));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: as many C strings as said, which are copied.
    let collection =
        unsafe { native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
    let queue = Queue::new(client);
    // SAFETY: all four live, and collection and options are copied.
    unsafe {
        native::rd_kafka_DescribeTopics(client.native_ptr(), collection, options.0, queue.0);
    }
    // SAFETY: not used again.
    unsafe { native::rd_kafka_TopicCollection_destroy(collection) };
    Ok(queue)
}

/// What the cluster says of `topics`, in no order that can be relied on, waiting at most a second longer than `timeout`.
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
        let answer = self.queue.answer(self.timeout)?;
        let topics = answer.parts(
            native::rd_kafka_event_DescribeTopics_result,
            native::rd_kafka_DescribeTopics_result_topics,
        )?;
        Ok(topics.iter().map(|topic| read(*topic)).collect())
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
    let name = text(name).unwrap_or_default();
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

// === impl TopicId ===

impl std::fmt::Display for TopicId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}
