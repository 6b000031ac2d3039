//! From a request to its response: what the engine answers well is passed through, the rest is seen to here.
//!
//! Invariant: every request that can open, keep or end a session or a transaction passes the watch, and every one that can
//! change a log notify those that wait after it has.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, ApiVersionsResponse,
    DescribeGroupsRequest, EndTxnRequest, FetchRequest, FetchResponse, HeartbeatRequest,
    InitProducerIdRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    ListGroupsRequest, ProduceRequest, ProducerId, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes, VersionRange};
use noida::kafka::engine::Engine;

use super::batches::{self, Room};
use super::notify::Notify;
use super::watch::{Member, Overdue, Watch};
use super::wire::{Error, Request, Versions};

/// The last version of Fetch that names topics; from 13 on they have ids, which the engine does not give out.
const FETCH_VERSION: i16 = 12;
/// The version of `LeaveGroup` that names its members in a list.
const LEAVE_VERSION: i16 = 4;
/// The version of `InitProducerId` that the engine is asked in to abort an overdue transaction.
const INIT_VERSION: i16 = 4;
/// Longest that a Fetch waits for data, whatever it asks for: its thread cannot see that the client has gone.
const FETCH_WAIT_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of records in one response, whatever is asked for: room for two of the largest batches; the rest comes with the next one.
const FETCH_LIMIT: usize = 8 << 20;
/// `UNSUPPORTED_VERSION`.
const UNSUPPORTED_VERSION: i16 = 35;
/// Where every member of a group is: this listens nowhere else.
const CLIENT_HOST: &str = "/127.0.0.1";

/// What answers requests.
#[derive(Debug)]
pub(super) struct Front {
    /// Logs, groups and transactions.
    engine: Engine,
    /// What the engine does not notice by itself.
    watch: Mutex<Watch>,
    /// Wakes those that wait for records.
    notify: Notify,
    /// What is offered to clients, in answer to their first question.
    offer: ApiVersionsResponse,
    /// The same, to look requests up in.
    versions: Versions,
}

// === impl Front ===

impl Front {
    /// A front with an empty engine that tells clients to come to `address`.
    pub(super) fn new(address: SocketAddr) -> Self {
        let engine = Engine::new(address.ip().to_string(), i32::from(address.port()));
        let mut offer = engine.handle_api_versions(0);
        offer.api_keys.retain(|api| is_served(api.api_key));
        for api in &mut offer.api_keys {
            if api.api_key == ApiKey::Fetch as i16 {
                api.max_version = api.max_version.min(FETCH_VERSION);
            }
        }
        let versions = offer.api_keys.iter().map(|api| {
            let (min, max) = (api.min_version, api.max_version);
            (api.api_key, VersionRange { min, max })
        });
        Self {
            versions: versions.collect(),
            engine,
            watch: Mutex::default(),
            notify: Notify::default(),
            offer,
        }
    }

    pub(super) fn notify(&self) -> &Notify {
        &self.notify
    }

    pub(super) fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The frame that answers `request`; none if its sender wants no answer.
    pub(super) fn answer(&self, request: &Request) -> Result<Option<Bytes>, Error> {
        let response = match request.api {
            ApiKey::ApiVersions => self.offer(request),
            ApiKey::Produce => return self.produce(request),
            ApiKey::Fetch => {
                let asked: FetchRequest = request.decode()?;
                request.respond(&self.fetch(&asked, request.version))
            }
            ApiKey::JoinGroup
            | ApiKey::SyncGroup
            | ApiKey::Heartbeat
            | ApiKey::LeaveGroup
            | ApiKey::DescribeGroups
            | ApiKey::ListGroups
            | ApiKey::DeleteGroups
            | ApiKey::OffsetCommit
            | ApiKey::OffsetFetch
            | ApiKey::OffsetDelete => self.group(request),
            ApiKey::InitProducerId
            | ApiKey::AddPartitionsToTxn
            | ApiKey::AddOffsetsToTxn
            | ApiKey::TxnOffsetCommit
            | ApiKey::EndTxn
            | ApiKey::DescribeTransactions
            | ApiKey::ListTransactions
            | ApiKey::DescribeProducers => self.transaction(request),
            _ => self.cluster(request),
        }?;
        if changes_logs(request.api) {
            self.notify.notify_all();
        }
        Ok(Some(response))
    }

    /// Evicts members that have been silent for too long, and aborts transactions that have been open for too long.
    pub(super) fn reap(&self, now: Instant) {
        let silent = self.watch().take_silent(now);
        for member in silent {
            self.evict(member);
        }
        let overdue = self.watch().take_overdue(now);
        for transaction in overdue {
            self.abort(transaction);
        }
    }

    /// Evicts every member of every group, even those that still wait for their first answer.
    pub(super) fn evict_everyone(&self) {
        let listed = self
            .engine
            .handle_list_groups(&ListGroupsRequest::default(), 0);
        let groups = listed.groups.into_iter().map(|group| group.group_id);
        let every = DescribeGroupsRequest::default().with_groups(groups.collect());
        for group in self.engine.handle_describe_groups(&every, 0).groups {
            for member in group.members {
                self.evict(Member {
                    group: group.group_id.to_string(),
                    id: member.member_id.to_string(),
                });
            }
        }
    }

    /// Compacts logs and drops what is past its retention.
    pub(super) fn clean(&self) {
        self.engine.run_log_cleaner();
    }

    /// How many members a group has.
    #[cfg(test)]
    pub(super) fn members(&self, group: &'static str) -> usize {
        let group = StrBytes::from_static_str(group).into();
        let asked = DescribeGroupsRequest::default().with_groups(vec![group]);
        let described = self.engine.handle_describe_groups(&asked, 0);
        described
            .groups
            .iter()
            .map(|group| group.members.len())
            .sum()
    }

    fn offer(&self, request: &Request) -> Result<Bytes, Error> {
        let version = request.version;
        let served = self.versions.get(&(ApiKey::ApiVersions as i16));
        if served.is_some_and(|range| (range.min..=range.max).contains(&version)) {
            return request.respond(&self.offer);
        }
        // Every client can read version 0, and asks again in a version from the list.
        let refusal = self.offer.clone().with_error_code(UNSUPPORTED_VERSION);
        request.respond_in(0, &refusal)
    }

    fn produce(&self, request: &Request) -> Result<Option<Bytes>, Error> {
        let asked: ProduceRequest = request.decode()?;
        let response = self.engine.handle_produce(&asked, request.version);
        self.notify.notify_all();
        if asked.acks == 0 {
            return Ok(None);
        }
        request.respond(&response).map(Some)
    }

    /// Waits until there is enough to read or no more patience, then cuts it to what was asked for.
    fn fetch(&self, asked: &FetchRequest, version: i16) -> FetchResponse {
        let patience = Duration::from_millis(u64::try_from(asked.max_wait_ms).unwrap_or(0));
        let deadline = Instant::now() + patience.min(FETCH_WAIT_LIMIT);
        let enough = usize::try_from(asked.min_bytes).unwrap_or(0);
        let mut response = loop {
            let seen = self.notify.changes();
            let response = self.engine.handle_fetch(asked, version);
            let left = deadline.saturating_duration_since(Instant::now());
            if is_ready(&response, enough) || left.is_zero() || self.notify.is_stopped() {
                break response;
            }
            self.notify.wait_past(seen, left);
        };
        trim(&mut response, asked);
        response
    }

    fn group(&self, request: &Request) -> Result<Bytes, Error> {
        let (engine, version) = (&self.engine, request.version);
        match request.api {
            ApiKey::JoinGroup => pass(request, |asked| self.join(asked, request)),
            ApiKey::SyncGroup => pass(request, |asked: &SyncGroupRequest| {
                let member = member(&asked.group_id, &asked.member_id);
                self.waiting(&member, || engine.handle_sync_group(asked, version))
            }),
            ApiKey::Heartbeat => pass(request, |asked: &HeartbeatRequest| {
                let member = member(&asked.group_id, &asked.member_id);
                self.watch().heard(&member, Instant::now());
                engine.handle_heartbeat(asked, version)
            }),
            ApiKey::LeaveGroup => pass(request, |asked: &LeaveGroupRequest| {
                let listed = asked.members.iter().map(|leaver| &leaver.member_id);
                for id in listed.chain([&asked.member_id]) {
                    self.watch().left(&member(&asked.group_id, id));
                }
                engine.handle_leave_group(asked, version)
            }),
            ApiKey::DescribeGroups => pass(request, |q| engine.handle_describe_groups(q, version)),
            ApiKey::ListGroups => pass(request, |q| engine.handle_list_groups(q, version)),
            ApiKey::DeleteGroups => pass(request, |q| engine.handle_delete_groups(q, version)),
            ApiKey::OffsetCommit => pass(request, |q| engine.handle_offset_commit(q, version)),
            ApiKey::OffsetFetch => pass(request, |q| engine.handle_offset_fetch(q, version)),
            ApiKey::OffsetDelete => pass(request, |q| engine.handle_offset_delete(q, version)),
            _ => Err(not_served(request)),
        }
    }

    fn join(&self, asked: &JoinGroupRequest, request: &Request) -> JoinGroupResponse {
        let response = self.waiting(&member(&asked.group_id, &asked.member_id), || {
            let Request {
                version, client, ..
            } = request;
            self.engine
                .handle_join_group_from(asked, *version, client, CLIENT_HOST)
        });
        if response.error_code == 0 {
            let session = u64::try_from(asked.session_timeout_ms).unwrap_or(0);
            self.watch().joined(
                member(&asked.group_id, &response.member_id),
                Duration::from_millis(session),
                Instant::now(),
            );
        }
        response
    }

    fn transaction(&self, request: &Request) -> Result<Bytes, Error> {
        let (engine, version) = (&self.engine, request.version);
        match request.api {
            ApiKey::InitProducerId => pass(request, |asked: &InitProducerIdRequest| {
                let response = engine.handle_init_producer_id(asked, version);
                if let (Some(id), 0) = (&asked.transactional_id, response.error_code) {
                    let limit = u64::try_from(asked.transaction_timeout_ms).unwrap_or(0);
                    self.watch()
                        .initialized(id.to_string(), Duration::from_millis(limit));
                }
                response
            }),
            ApiKey::AddPartitionsToTxn => pass(request, |asked: &AddPartitionsToTxnRequest| {
                let id = &asked.v3_and_below_transactional_id;
                self.watch().opened(id, Instant::now());
                engine.handle_add_partitions_to_txn(asked, version)
            }),
            ApiKey::AddOffsetsToTxn => pass(request, |asked: &AddOffsetsToTxnRequest| {
                self.watch().opened(&asked.transactional_id, Instant::now());
                engine.handle_add_offsets_to_txn(asked, version)
            }),
            ApiKey::EndTxn => pass(request, |asked: &EndTxnRequest| {
                let response = engine.handle_end_txn(asked, version);
                // A fenced producer must not end its successor's transaction, not even for the watch.
                if response.error_code == 0 {
                    self.watch().ended(&asked.transactional_id);
                }
                response
            }),
            ApiKey::TxnOffsetCommit => {
                pass(request, |q| engine.handle_txn_offset_commit(q, version))
            }
            ApiKey::DescribeTransactions => {
                pass(request, |q| engine.handle_describe_transactions(q, version))
            }
            ApiKey::ListTransactions => {
                pass(request, |q| engine.handle_list_transactions(q, version))
            }
            ApiKey::DescribeProducers => {
                pass(request, |q| engine.handle_describe_producers(q, version))
            }
            _ => Err(not_served(request)),
        }
    }

    fn cluster(&self, request: &Request) -> Result<Bytes, Error> {
        let (engine, version) = (&self.engine, request.version);
        match request.api {
            ApiKey::Metadata => pass(request, |q| engine.handle_metadata(q, version)),
            ApiKey::FindCoordinator => {
                pass(request, |q| engine.handle_find_coordinator(q, version))
            }
            ApiKey::ListOffsets => pass(request, |q| engine.handle_list_offsets(q, version)),
            ApiKey::OffsetForLeaderEpoch => pass(request, |q| {
                engine.handle_offset_for_leader_epoch(q, version)
            }),
            ApiKey::CreateTopics => pass(request, |q| engine.handle_create_topics(q, version)),
            ApiKey::DeleteTopics => pass(request, |q| engine.handle_delete_topics(q, version)),
            ApiKey::CreatePartitions => {
                pass(request, |q| engine.handle_create_partitions(q, version))
            }
            ApiKey::DeleteRecords => pass(request, |q| engine.handle_delete_records(q, version)),
            ApiKey::DescribeConfigs => {
                pass(request, |q| engine.handle_describe_configs(q, version))
            }
            ApiKey::AlterConfigs => pass(request, |q| engine.handle_alter_configs(q, version)),
            ApiKey::IncrementalAlterConfigs => pass(request, |q| {
                engine.handle_incremental_alter_configs(q, version)
            }),
            ApiKey::DescribeCluster => {
                pass(request, |q| engine.handle_describe_cluster(q, version))
            }
            ApiKey::DescribeLogDirs => {
                pass(request, |q| engine.handle_describe_log_dirs(q, version))
            }
            _ => Err(not_served(request)),
        }
    }

    /// Calls what may wait for the rest of the group, during which `member` cannot be heard.
    fn waiting<R>(&self, member: &Member, call: impl FnOnce() -> R) -> R {
        self.watch().waits(member);
        let response = call();
        self.watch().answered(member, Instant::now());
        response
    }

    fn evict(&self, Member { group, id }: Member) {
        let leaver = MemberIdentity::default().with_member_id(StrBytes::from_string(id));
        let leave = LeaveGroupRequest::default()
            .with_group_id(StrBytes::from_string(group).into())
            .with_members(vec![leaver]);
        // An error means that it has gone by itself.
        self.engine.handle_leave_group(&leave, LEAVE_VERSION);
    }

    /// Takes the producer's place, as a successor would: its transaction is aborted and it is fenced.
    fn abort(&self, Overdue { id, limit }: Overdue) {
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        let init = InitProducerIdRequest::default()
            .with_transactional_id(Some(StrBytes::from_string(id).into()))
            .with_transaction_timeout_ms(limit)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        self.engine.handle_init_producer_id(&init, INIT_VERSION);
        self.notify.notify_all();
    }

    /// Each call on the watch leaves it whole, so a panic elsewhere does not spoil it.
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decodes the body of `request`, has it handled and encodes the response.
fn pass<Q: Decodable, R: Encodable>(
    request: &Request,
    handle: impl FnOnce(&Q) -> R,
) -> Result<Bytes, Error> {
    request.respond(&handle(&request.decode()?))
}

fn member(group: &str, id: &str) -> Member {
    Member {
        group: group.to_owned(),
        id: id.to_owned(),
    }
}

fn not_served(request: &Request) -> Error {
    Error::NotServed {
        key: request.api as i16,
        version: request.version,
    }
}

/// Whether what the engine offers is offered to clients: all but what is about security, which there is none of.
fn is_served(key: i16) -> bool {
    !matches!(
        ApiKey::try_from(key),
        Err(())
            | Ok(ApiKey::DescribeAcls
                | ApiKey::CreateAcls
                | ApiKey::DeleteAcls
                | ApiKey::SaslHandshake
                | ApiKey::SaslAuthenticate)
    )
}

/// Whether a reader may find something else after `api` than before it.
fn changes_logs(api: ApiKey) -> bool {
    matches!(
        api,
        ApiKey::EndTxn
            | ApiKey::InitProducerId
            | ApiKey::CreateTopics
            | ApiKey::DeleteTopics
            | ApiKey::CreatePartitions
            | ApiKey::DeleteRecords
    )
}

/// Whether there are `enough` bytes to read, or something that cannot wait.
fn is_ready(response: &FetchResponse, enough: usize) -> bool {
    let mut bytes = 0;
    for partition in response
        .responses
        .iter()
        .flat_map(|topic| &topic.partitions)
    {
        if partition.error_code != 0 {
            return true;
        }
        bytes += partition.records.as_ref().map_or(0, Bytes::len);
    }
    response.error_code != 0 || bytes >= enough
}

/// Cuts what the engine found, which is all there is, to what was asked for.
fn trim(response: &mut FetchResponse, asked: &FetchRequest) {
    let mut room = usize::try_from(asked.max_bytes)
        .unwrap_or(0)
        .min(FETCH_LIMIT);
    let mut is_empty = true;
    // The engine answers topics and partitions in the order in which they were asked for.
    let topics = response.responses.iter_mut().zip(&asked.topics);
    for (found, wanted) in
        topics.flat_map(|(topic, wanted)| topic.partitions.iter_mut().zip(&wanted.partitions))
    {
        let all = found.records.take().unwrap_or_default();
        if let Some(aborted) = &mut found.aborted_transactions {
            *aborted = batches::reaching(aborted, &all, wanted.fetch_offset);
        }
        let limit = usize::try_from(wanted.partition_max_bytes)
            .unwrap_or(0)
            .min(room);
        let cut = batches::cut(
            &all,
            if is_empty {
                Room::FirstAndFitting(limit)
            } else {
                Room::Fitting(limit)
            },
        );
        is_empty &= cut.is_empty();
        room = room.saturating_sub(cut.len());
        found.records = Some(cut);
    }
}
