//! Frames and requests: the first look at what a connection sends.
//!
//! Invariant: nothing is decoded, and no more memory taken than has arrived, before the frame's length and the request's
//! header have been found sound.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, VersionRange};

/// Longest request: four times the largest batch that clients send unless told otherwise. TLS and HTTP, read as a length, are far above.
pub(super) const FRAME_LIMIT: usize = 4 << 20;
/// Length of a request's header up to its client id: key, version, correlation id and the id's length.
const HEADER_LENGTH: usize = 10;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The socket failed or was closed within a frame.
    #[error("read or write a frame")]
    Socket(#[from] io::Error),
    /// The length in front of a frame is not one of a request.
    #[error("frame of {length} bytes where {FRAME_LIMIT} are allowed")]
    FrameTooLong {
        /// What the frame claims.
        length: usize,
    },
    /// A frame that is not a request.
    #[error("malformed request header")]
    Header,
    /// A request that was never offered.
    #[error("request {key} in version {version} is not served")]
    NotServed {
        /// Which request.
        key: i16,
        /// In which version.
        version: i16,
    },
    /// A request that is not what its header says.
    #[error("decode {api:?}: {reason}")]
    Decode {
        /// Which request.
        api: ApiKey,
        /// What the decoder says.
        reason: String,
    },
    /// A response that its version cannot express.
    #[error("encode the response to {api:?}: {reason}")]
    Encode {
        /// Which request it answers.
        api: ApiKey,
        /// What the encoder says.
        reason: String,
    },
}

/// What is served, in which versions.
pub(super) type Versions = HashMap<i16, VersionRange>;

/// A request whose header is sound and whose body is still to be decoded.
#[derive(Debug)]
pub(super) struct Request {
    /// What is asked for.
    pub(super) api: ApiKey,
    /// The version of the request and of its response.
    pub(super) version: i16,
    /// The client's name for itself.
    pub(super) client: String,
    /// What ties the response to the request.
    correlation: i32,
    /// All that follows the header.
    body: Bytes,
}

// === impl Request ===

impl Request {
    /// Checks the header of a frame and splits it off.
    pub(super) fn parse(frame: Bytes, served: &Versions) -> Result<Self, Error> {
        let Some(&[k0, k1, v0, v1, c0, c1, c2, c3, l0, l1]) = frame.first_chunk::<HEADER_LENGTH>()
        else {
            return Err(Error::Header);
        };
        let (key, version) = (i16::from_be_bytes([k0, k1]), i16::from_be_bytes([v0, v1]));
        let correlation = i32::from_be_bytes([c0, c1, c2, c3]);
        let (Ok(api), Some(range)) = (ApiKey::try_from(key), served.get(&key)) else {
            return Err(Error::NotServed { key, version });
        };
        if !(range.min..=range.max).contains(&version) {
            // The one question that must be answered in any version: it is how a client finds out which ones there are.
            if api == ApiKey::ApiVersions {
                return Ok(Self {
                    api,
                    version,
                    client: String::new(),
                    correlation,
                    body: Bytes::new(),
                });
            }
            return Err(Error::NotServed { key, version });
        }
        // A length below zero stands for no name.
        let name = usize::try_from(i16::from_be_bytes([l0, l1])).unwrap_or(0);
        if frame.len() - HEADER_LENGTH < name {
            return Err(Error::Header);
        }

        let mut body = frame;
        let header = RequestHeader::decode(&mut body, api.request_header_version(version))
            .map_err(|_| Error::Header)?;
        Ok(Self {
            api,
            version,
            client: header
                .client_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            correlation,
            body,
        })
    }

    /// The request's body.
    pub(super) fn decode<Q: Decodable>(&self) -> Result<Q, Error> {
        let Self { api, version, .. } = *self;
        Q::decode(&mut self.body.clone(), version).map_err(|error| Error::Decode {
            api,
            reason: error.to_string(),
        })
    }

    /// A frame with the response to this request.
    pub(super) fn respond<R: Encodable>(&self, response: &R) -> Result<Bytes, Error> {
        self.respond_in(self.version, response)
    }

    /// The same in another version than was asked for.
    pub(super) fn respond_in<R: Encodable>(
        &self,
        version: i16,
        response: &R,
    ) -> Result<Bytes, Error> {
        let api = self.api;
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        let mut frame = BytesMut::new();
        frame.put_u32(0);
        header
            .encode(&mut frame, api.response_header_version(version))
            .and_then(|()| response.encode(&mut frame, version))
            .map_err(|error| Error::Encode {
                api,
                reason: error.to_string(),
            })?;

        let length = u32::try_from(frame.len() - size_of::<u32>()).map_err(|_| Error::Encode {
            api,
            reason: "longer than a frame".to_owned(),
        })?;
        frame[..size_of::<u32>()].copy_from_slice(&length.to_be_bytes());
        Ok(frame.freeze())
    }
}

/// The next frame, without its length; none when the connection was closed between two.
pub(super) fn read_frame(stream: &mut impl Read) -> Result<Option<Bytes>, Error> {
    let mut length = [0; size_of::<u32>()];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_LIMIT {
        return Err(Error::FrameTooLong { length });
    }

    // Grown as it arrives: a claim alone takes no memory.
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length {
        return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(frame.into()))
}

/// Sends a frame that already starts with its length.
pub(super) fn write_frame(stream: &mut impl Write, frame: &[u8]) -> Result<(), Error> {
    stream.write_all(frame)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> Versions {
        Versions::from([
            (ApiKey::Metadata as i16, VersionRange { min: 0, max: 12 }),
            (ApiKey::ApiVersions as i16, VersionRange { min: 0, max: 3 }),
        ])
    }

    fn header(api: ApiKey, version: i16, name: i16) -> Bytes {
        let mut frame = BytesMut::new();
        frame.put_i16(api as i16);
        frame.put_i16(version);
        frame.put_i32(7);
        frame.put_i16(name);
        frame.freeze()
    }

    #[test]
    fn a_claimed_length_is_refused_before_anything_is_read() {
        let claim = (FRAME_LIMIT as u32 + 1).to_be_bytes();

        let refused = read_frame(&mut claim.as_slice());

        assert!(matches!(refused, Err(Error::FrameTooLong { length }) if length > FRAME_LIMIT));
    }

    #[test]
    fn the_end_between_frames_is_no_error_but_within_one_it_is() {
        let between = read_frame(&mut [].as_slice());
        let within = read_frame(&mut [0, 0, 0, 9, 1].as_slice());

        assert!(matches!(between, Ok(None)));
        assert!(matches!(within, Err(Error::Socket(_))));
    }

    #[test]
    fn only_what_is_served_is_decoded() {
        let short = Request::parse(Bytes::from_static(&[0, 3, 0]), &served());
        let other = Request::parse(header(ApiKey::Vote, 0, -1), &served());
        let newer = Request::parse(header(ApiKey::Metadata, 13, -1), &served());
        let cut = Request::parse(header(ApiKey::Metadata, 1, 5), &served());
        let sound = Request::parse(header(ApiKey::Metadata, 1, -1), &served());
        let asking = Request::parse(header(ApiKey::ApiVersions, 99, -1), &served());

        assert!(matches!(short, Err(Error::Header)));
        assert!(matches!(other, Err(Error::NotServed { .. })));
        assert!(matches!(newer, Err(Error::NotServed { .. })));
        assert!(matches!(cut, Err(Error::Header)));
        assert!(sound.is_ok());
        assert!(asking.is_ok());
    }
}
