//! The brokers that a client knows.

use std::ffi::CStr;
use std::ptr;

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};

/// How many brokers the cluster has told a client of that it has not taken back since.
pub fn known<C: ClientContext>(client: &Client<C>) -> usize {
    let mut count = 0;
    // SAFETY: the client lives as long as its borrow, and the count as long as the call.
    let ids = unsafe { native::rd_kafka_brokers_learned_ids(client.native_ptr(), &raw mut count) };
    if !ids.is_null() {
        // SAFETY: the list is ours, was allocated by the client, is freed once and not used again.
        unsafe { native::rd_kafka_mem_free(ptr::null_mut(), ids.cast()) };
    }
    count
}

/// Gives a client brokers to ask, in the form of `bootstrap.servers`, beside those that it knows. It keeps the list for good.
pub fn add<C: ClientContext>(client: &Client<C>, servers: &CStr) {
    // SAFETY: the client lives as long as its borrow, and copies the list.
    unsafe { native::rd_kafka_brokers_add(client.native_ptr(), servers.as_ptr()) };
}
