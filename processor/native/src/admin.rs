//! What a client may do with topics, by the brokers' own word (KIP-430); the settings of topics; and creating topics with the reasons of
//! those that are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_char, c_int};
use std::ptr;
use std::slice;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use crate::request::{ERROR, Options, Queue, millis, string, taken, text};
use crate::topics::ask_with;

/// An operation of Kafka's authorization on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Read its records, and commit offsets of it.
    Read,
    /// Write records to it.
    Write,
    /// Create it.
    Create,
    /// Delete it.
    Delete,
    /// Add partitions to it.
    Alter,
    /// See that it is there.
    Describe,
    /// See its settings.
    DescribeConfigs,
    /// Change its settings.
    AlterConfigs,
}

/// What the brokers let a client do with a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted {
    /// The topic.
    pub topic: String,
    /// The operations, where brokers tell them; or why nothing is said of the topic.
    pub operations: Result<Option<Vec<Operation>>, RDKafkaErrorCode>,
}

/// The settings of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The topic.
    pub topic: String,
    /// The settings in force that have a value, whoever has set them; or why they are not told.
    pub settings: Result<BTreeMap<String, String>, RDKafkaErrorCode>,
}

/// A topic to be created.
#[derive(Clone, Debug)]
pub struct NewTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many partitions it has.
    pub partitions: i32,
    /// Replicas of each partition; -1 leaves it to the broker.
    pub replication_factor: i32,
    /// Its settings.
    pub config: Vec<(&'a str, &'a str)>,
}

/// What became of a topic that was to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The topic.
    pub topic: String,
    /// Whether it is there, or why not, and the reason in the broker's words where it gives one.
    pub result: Result<(), (RDKafkaErrorCode, Option<String>)>,
}

/// Asks what the client may do with `topics`, waiting at most a second longer than `timeout`. In no order that can be relied on.
///
/// # Errors
/// If a name cannot be one of a topic, or no broker answers in time.
pub fn permitted<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Permitted>, KafkaError> {
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let first = topics.first().copied().unwrap_or_default();
    let options = Options::new(client, kind, (first, timeout))?;
    // SAFETY: the options live.
    let error = unsafe {
        native::rd_kafka_AdminOptions_set_include_authorized_operations(
            options.0,
            c_int::from(true),
        )
    };
    if !error.is_null() {
        // SAFETY: the error is ours until it is destroyed.
        let code = unsafe { native::rd_kafka_error_code(error) };
        // SAFETY: not used again.
        unsafe { native::rd_kafka_error_destroy(error) };
        return Err(KafkaError::AdminOp(code.into()));
    }
    let answer = ask_with(client, topics, &options)?.answer(timeout)?;
    let all = answer.parts(
        native::rd_kafka_event_DescribeTopics_result,
        native::rd_kafka_DescribeTopics_result_topics,
    )?;
    Ok(all.iter().map(|topic| described(*topic)).collect())
}

/// What a description says of what may be done.
fn described(topic: *const native::rd_kafka_TopicDescription_t) -> Permitted {
    // SAFETY: the description lives as long as the event that the caller holds.
    let name = unsafe { native::rd_kafka_TopicDescription_name(topic) };
    // SAFETY: as above.
    let error = unsafe { native::rd_kafka_TopicDescription_error(topic) };
    // SAFETY: the error is part of the description; none is no error.
    let code = unsafe { native::rd_kafka_error_code(error) };
    let operations = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        let mut count = 0;
        // SAFETY: as above.
        let all = unsafe {
            native::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count)
        };
        if all.is_null() || count == 0 {
            // A broker that does not tell; whoever may describe a topic may do something.
            Ok(None)
        } else {
            // SAFETY: as many operations as said, which live as long as the description.
            let all = unsafe { slice::from_raw_parts(all, count) };
            Ok(Some(all.iter().filter_map(|one| operation(*one)).collect()))
        }
    } else {
        Err(code.into())
    };
    Permitted {
        topic: text(name).unwrap_or_default(),
        operations,
    }
}

/// An operation as the client names it; none for one that topics do not have.
fn operation(operation: native::rd_kafka_AclOperation_t) -> Option<Operation> {
    use native::rd_kafka_AclOperation_t as Native;
    match operation {
        Native::RD_KAFKA_ACL_OPERATION_READ => Some(Operation::Read),
        Native::RD_KAFKA_ACL_OPERATION_WRITE => Some(Operation::Write),
        Native::RD_KAFKA_ACL_OPERATION_CREATE => Some(Operation::Create),
        Native::RD_KAFKA_ACL_OPERATION_DELETE => Some(Operation::Delete),
        Native::RD_KAFKA_ACL_OPERATION_ALTER => Some(Operation::Alter),
        Native::RD_KAFKA_ACL_OPERATION_DESCRIBE => Some(Operation::Describe),
        Native::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS => Some(Operation::DescribeConfigs),
        Native::RD_KAFKA_ACL_OPERATION_ALTER_CONFIGS => Some(Operation::AlterConfigs),
        _ => None,
    }
}

/// Asks for the settings of `topics`, waiting at most a second longer than `timeout`. In no order that can be relied on.
///
/// # Errors
/// If a name cannot be one of a topic, or no broker answers in time.
pub fn settings<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Settings>, KafkaError> {
    let all: Vec<Resource> = topics
        .iter()
        .map(|topic| Resource::topic(topic))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<*mut native::rd_kafka_ConfigResource_t> =
        all.iter().map(|resource| resource.0).collect();
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    let first = topics.first().copied().unwrap_or_default();
    let options = Options::new(client, kind, (first, timeout))?;
    let queue = Queue::new(client);
    // SAFETY: all live, as many resources as said, and resources and options are copied.
    unsafe {
        native::rd_kafka_DescribeConfigs(
            client.native_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            options.0,
            queue.0,
        );
    }
    let answer = queue.answer(timeout)?;
    let all = answer.parts(
        native::rd_kafka_event_DescribeConfigs_result,
        native::rd_kafka_DescribeConfigs_result_resources,
    )?;
    Ok(all.iter().map(|resource| set(*resource)).collect())
}

/// What an answer says of the settings of one topic.
fn set(resource: *const native::rd_kafka_ConfigResource_t) -> Settings {
    // SAFETY: the resource lives as long as the event that the caller holds.
    let name = unsafe { native::rd_kafka_ConfigResource_name(resource) };
    // SAFETY: as above.
    let code = unsafe { native::rd_kafka_ConfigResource_error(resource) };
    let topic = text(name).unwrap_or_default();
    if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Settings {
            topic,
            settings: Err(code.into()),
        };
    }
    let mut count = 0;
    // SAFETY: as above.
    let entries = unsafe { native::rd_kafka_ConfigResource_configs(resource, &raw mut count) };
    let mut settings = BTreeMap::new();
    if !entries.is_null() && count > 0 {
        // SAFETY: as many entries as said, which live as long as the resource.
        let entries = unsafe { slice::from_raw_parts(entries, count) };
        for entry in entries {
            // SAFETY: as above.
            let key = unsafe { native::rd_kafka_ConfigEntry_name(*entry) };
            // SAFETY: as above; one that is secret has no value.
            let value = unsafe { native::rd_kafka_ConfigEntry_value(*entry) };
            settings.extend(text(key).zip(text(value)));
        }
    }
    Settings {
        topic,
        settings: Ok(settings),
    }
}

/// Whether a group has committed an offset of one of `topics`, waiting at most a second longer than `timeout`.
///
/// # Errors
/// If the name cannot be one of a group, no broker answers in time, or the group may not be asked for.
pub fn committed<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    topics: &BTreeSet<String>,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let name = string(group)?;
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS;
    let first = topics.first().map_or("", String::as_str);
    let options = Options::new(client, kind, (first, timeout))?;
    // SAFETY: a C string, which is copied; no list is all that the group has.
    let mut asked =
        unsafe { native::rd_kafka_ListConsumerGroupOffsets_new(name.as_ptr(), ptr::null()) };
    let queue = Queue::new(client);
    // SAFETY: all live, one group as said, and group and options are copied.
    unsafe {
        native::rd_kafka_ListConsumerGroupOffsets(
            client.native_ptr(),
            &raw mut asked,
            1,
            options.0,
            queue.0,
        );
    }
    // SAFETY: not used again.
    unsafe { native::rd_kafka_ListConsumerGroupOffsets_destroy(asked) };
    let answer = queue.answer(timeout)?;
    let groups = answer.parts(
        native::rd_kafka_event_ListConsumerGroupOffsets_result,
        native::rd_kafka_ListConsumerGroupOffsets_result_groups,
    )?;
    let mut has_committed = false;
    for group in groups {
        // SAFETY: the group lives as long as the answer.
        refusal(unsafe { native::rd_kafka_group_result_error(*group) })?;
        // SAFETY: as above.
        let list = unsafe { native::rd_kafka_group_result_partitions(*group) };
        // SAFETY: the list is part of the group.
        let mut at = unsafe { elements(list) }.iter();
        has_committed |= at.any(|at| at.offset >= 0 && is_of(at, topics));
    }
    Ok(has_committed)
}

/// How many members of `groups` have partitions of one of `topics`, whichever protocol the group has (KIP-848, too), waiting at most a second
/// longer than `timeout`. Left out are groups that are not told, and those with no such member.
///
/// # Errors
/// If a name cannot be one of a group, or no broker answers in time.
pub fn assigned<C: ClientContext>(
    client: &Client<C>,
    groups: &[String],
    topics: &BTreeSet<String>,
    timeout: Duration,
) -> Result<BTreeMap<String, usize>, KafkaError> {
    if groups.is_empty() {
        return Ok(BTreeMap::new());
    }
    let names = groups.iter().map(|group| string(group));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    let first = topics.first().map_or("", String::as_str);
    let options = Options::new(client, kind, (first, timeout))?;
    let queue = Queue::new(client);
    // SAFETY: all live, as many C strings as said, and names and options are copied.
    unsafe {
        native::rd_kafka_DescribeConsumerGroups(
            client.native_ptr(),
            names.as_mut_ptr(),
            names.len(),
            options.0,
            queue.0,
        );
    }
    let answer = queue.answer(timeout)?;
    let groups = answer.parts(
        native::rd_kafka_event_DescribeConsumerGroups_result,
        native::rd_kafka_DescribeConsumerGroups_result_groups,
    )?;
    let assigned = groups.iter().filter_map(|group| {
        // SAFETY: the group lives as long as the answer.
        refusal(unsafe { native::rd_kafka_ConsumerGroupDescription_error(*group) }).ok()?;
        // SAFETY: as above.
        let name = text(unsafe { native::rd_kafka_ConsumerGroupDescription_group_id(*group) })?;
        // SAFETY: as above.
        let count = unsafe { native::rd_kafka_ConsumerGroupDescription_member_count(*group) };
        let members = (0..count).filter(|index| reads(*group, *index, topics));
        Some((name, members.count()))
    });
    Ok(assigned.filter(|(_, members)| *members > 0).collect())
}

/// Whether a member of a group that lives has partitions of one of `topics`. There is a member of this number.
fn reads(
    group: *const native::rd_kafka_ConsumerGroupDescription_t,
    index: usize,
    topics: &BTreeSet<String>,
) -> bool {
    // SAFETY: the caller holds the group, which has a member of this number.
    let member = unsafe { native::rd_kafka_ConsumerGroupDescription_member(group, index) };
    // SAFETY: the member is part of the group.
    let assignment = unsafe { native::rd_kafka_MemberDescription_assignment(member) };
    if assignment.is_null() {
        return false;
    }
    // SAFETY: the assignment is part of the member.
    let list = unsafe { native::rd_kafka_MemberAssignment_partitions(assignment) };
    // SAFETY: the list is part of the assignment.
    let mut elements = unsafe { elements(list) }.iter();
    elements.any(|element| is_of(element, topics))
}

/// Whether a partition is one of these topics.
fn is_of(element: &native::rd_kafka_topic_partition_t, topics: &BTreeSet<String>) -> bool {
    text(element.topic).is_some_and(|topic| topics.contains(&topic))
}

/// The partitions of a list; none of what is no list.
///
/// # Safety
/// What is a list lives as long as what is given.
unsafe fn elements<'a>(
    list: *const native::rd_kafka_topic_partition_list_t,
) -> &'a [native::rd_kafka_topic_partition_t] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: the list lives, as is asked of the caller.
    let list = unsafe { &*list };
    if list.elems.is_null() || list.cnt <= 0 {
        return &[];
    }
    // SAFETY: as many elements as said, which live as long as the list.
    unsafe { slice::from_raw_parts(list.elems, list.cnt as usize) }
}

/// An error, if an answer has one; it is part of the answer, which lives.
fn refusal(error: *const native::rd_kafka_error_t) -> Result<(), KafkaError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error lives as long as the answer that the caller holds.
    taken(unsafe { native::rd_kafka_error_code(error) })
}

/// Creates `topics`, waiting at most a second longer than `timeout`. In no order that can be relied on.
///
/// # Errors
/// If a name or a setting cannot be one, or no broker answers in time. That a topic is refused is no error.
pub fn create<C: ClientContext>(
    client: &Client<C>,
    topics: &[NewTopic<'_>],
    timeout: Duration,
) -> Result<Vec<Created>, KafkaError> {
    let all: Vec<Made> = topics.iter().map(Made::try_new).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*mut native::rd_kafka_NewTopic_t> =
        all.iter().map(|topic| topic.0).collect();
    let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS;
    let first = topics.first().map_or("", |topic| topic.name);
    let options = Options::new(client, kind, (first, timeout))?;
    let mut error: [c_char; ERROR] = [0; ERROR];
    // SAFETY: the options live, and the text of an error has the room that is said.
    let code = unsafe {
        native::rd_kafka_AdminOptions_set_operation_timeout(
            options.0,
            millis(timeout),
            error.as_mut_ptr(),
            error.len(),
        )
    };
    taken(code)?;
    let queue = Queue::new(client);
    // SAFETY: all live, as many topics as said, and topics and options are copied.
    unsafe {
        native::rd_kafka_CreateTopics(
            client.native_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            options.0,
            queue.0,
        );
    }
    let answer = queue.answer(timeout)?;
    let results = answer.parts(
        native::rd_kafka_event_CreateTopics_result,
        native::rd_kafka_CreateTopics_result_topics,
    )?;
    Ok(results.iter().map(|one| created(*one)).collect())
}

/// What a result says.
fn created(result: *const native::rd_kafka_topic_result_t) -> Created {
    // SAFETY: the result lives as long as the event that the caller holds.
    let name = unsafe { native::rd_kafka_topic_result_name(result) };
    // SAFETY: as above.
    let code = unsafe { native::rd_kafka_topic_result_error(result) };
    // SAFETY: as above.
    let reason = unsafe { native::rd_kafka_topic_result_error_string(result) };
    Created {
        topic: text(name).unwrap_or_default(),
        result: if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err((code.into(), text(reason)))
        },
    }
}

/// A topic to be created as the client has it; destroyed when it is dropped.
struct Made(*mut native::rd_kafka_NewTopic_t);

// === impl Made ===

impl Made {
    /// Of a topic to be created.
    fn try_new(topic: &NewTopic<'_>) -> Result<Self, KafkaError> {
        let name = string(topic.name)?;
        let mut error: [c_char; ERROR] = [0; ERROR];
        // SAFETY: a C string, which is copied, and room for an error as said.
        let made = unsafe {
            native::rd_kafka_NewTopic_new(
                name.as_ptr(),
                topic.partitions,
                topic.replication_factor,
                error.as_mut_ptr(),
                error.len(),
            )
        };
        if made.is_null() {
            let reason = text(error.as_ptr()).unwrap_or_default();
            return Err(KafkaError::AdminOpCreation(reason));
        }
        let made = Self(made);
        for (key, value) in &topic.config {
            let (key, value) = (string(key)?, string(value)?);
            // SAFETY: the topic lives, and both C strings are copied.
            let code = unsafe {
                native::rd_kafka_NewTopic_set_config(made.0, key.as_ptr(), value.as_ptr())
            };
            taken(code)?;
        }
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_NewTopic_destroy(self.0) };
    }
}

/// What settings are asked of, as the client has it; destroyed when it is dropped.
struct Resource(*mut native::rd_kafka_ConfigResource_t);

// === impl Resource ===

impl Resource {
    /// The topic of this name.
    fn topic(name: &str) -> Result<Self, KafkaError> {
        let name = string(name)?;
        let kind = native::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        // SAFETY: a C string, which is copied.
        let made = unsafe { native::rd_kafka_ConfigResource_new(kind, name.as_ptr()) };
        if made.is_null() {
            let reason = "a topic without a name".to_owned();
            return Err(KafkaError::AdminOpCreation(reason));
        }
        Ok(Self(made))
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        // SAFETY: not used again.
        unsafe { native::rd_kafka_ConfigResource_destroy(self.0) };
    }
}
