//! The body of an answer, which is read for the sake of the connection and of a message.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use retide_core::task::MAX_MESSAGE;
use tokio::time::{Instant, timeout_at};

/// Reads at most `limit` bytes of the body, for the sake of the connection, and keeps as many as a message can hold.
pub(super) async fn read(mut body: Incoming, limit: usize, deadline: Instant) -> Vec<u8> {
    let mut start = Vec::new();
    let mut seen = 0;
    while seen < limit {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else {
            break;
        };
        // Trailers say nothing here.
        let chunk = frame.into_data().unwrap_or_default();
        let kept = (MAX_MESSAGE - start.len())
            .min(limit - seen)
            .min(chunk.len());
        start.extend_from_slice(&chunk[..kept]);
        seen += chunk.len();
    }
    start
}
