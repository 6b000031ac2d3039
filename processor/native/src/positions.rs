//! How far a consumer has read partitions, assigned or not.

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Whether a consumer has no position in any of these partitions: it has not read them, or has forgotten that it has. It forgets that a while
/// after they are no longer assigned.
pub fn none<C: ClientContext>(client: &Client<C>, partitions: &TopicPartitionList) -> bool {
    let list = partitions.clone();
    // SAFETY: the client and the list live as long as the call, which answers from memory, into the list.
    unsafe { native::rd_kafka_position(client.native_ptr(), list.ptr()) };
    let elements = list.elements();
    elements
        .iter()
        .all(|element| element.offset() == Offset::Invalid)
}
