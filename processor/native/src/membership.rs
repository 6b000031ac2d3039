//! The place of a consumer in its group, as the group knows it.

use std::ffi::CStr;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};

/// The place of a consumer in its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The member id, which the group gives to a consumer that it does not know: also to one that it has forgotten. Empty if it has none.
    pub member: String,
    /// The generation that the consumer has joined last; negative if none.
    pub generation: i32,
}

/// The place of a consumer in its group; `None` for a client that is no consumer of a group.
///
/// To tell it, the client's own thread wakes, and looks what is due besides, such as a heartbeat.
pub fn membership<C: ClientContext>(client: &Client<C>) -> Option<Membership> {
    // SAFETY: the client lives as long as its borrow.
    let metadata = unsafe { native::rd_kafka_consumer_group_metadata(client.native_ptr()) };
    if metadata.is_null() {
        return None;
    }
    // SAFETY: the metadata is ours until it is destroyed below.
    let generation = unsafe { native::rd_kafka_consumer_group_metadata_generation_id(metadata) };
    // SAFETY: as above; the text is part of the metadata.
    let member = unsafe { native::rd_kafka_consumer_group_metadata_member_id(metadata) };
    let member = if member.is_null() {
        String::new()
    } else {
        // SAFETY: a C string that lives as long as the metadata.
        let text = unsafe { CStr::from_ptr(member) };
        text.to_string_lossy().into_owned()
    };
    // SAFETY: destroyed once, and not used again.
    unsafe { native::rd_kafka_consumer_group_metadata_destroy(metadata) };
    Some(Membership { member, generation })
}
