//! Our own mirror of raft's messages, entries and snapshots, for the wire and for the log.
//!
//! rust-protobuf 2, which raft-rs brings along, has an unfixed stack overflow in its parser
//! (RUSTSEC-2024-0437), so it never sees bytes from outside: they are decoded here by prost,
//! checked, and copied field by field. Tags are ours and are never given a second meaning.

use bytes::Bytes;
use prost::Message as _;
use raft::prelude as eraft;
use raft::prelude::{EntryType, MessageType};
use thiserror::Error;

/// Version of these bytes; part of the envelope that carries them.
pub const PAYLOAD_VERSION: u32 = 2;

/// Most entries in one message; a message of more was not made by us.
const ENTRIES_PER_MESSAGE_MAX: usize = 65_536;

/// Why bytes from a peer are no message for this member.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Not our bytes.
    #[error("not a raft message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A kind that members never send each other.
    #[error("message kind {0} is not exchanged between members")]
    Kind(i32),
    /// From or for somebody else.
    #[error("the message goes from member {from} to {to}, not from {peer} to {me}")]
    Address {
        /// Sender in the message.
        from: u64,
        /// Receiver in the message.
        to: u64,
        /// Sender as the transport knows it.
        peer: u64,
        /// This member.
        me: u64,
    },
    /// Entries that do not follow each other, or of a kind that is not in use.
    #[error("the message carries entries that do not follow each other")]
    Entries,
    /// A snapshot message without a snapshot.
    #[error("the message lacks its snapshot")]
    Snapshot,
}

/// A message between members.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireMessage {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    log_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
    #[prost(message, repeated, tag = "7")]
    entries: Vec<WireEntry>,
    #[prost(uint64, tag = "8")]
    commit: u64,
    #[prost(uint64, tag = "9")]
    commit_term: u64,
    #[prost(message, optional, tag = "10")]
    snapshot: Option<WireSnapshot>,
    #[prost(uint64, tag = "11")]
    request_snapshot: u64,
    #[prost(bool, tag = "12")]
    reject: bool,
    #[prost(uint64, tag = "13")]
    reject_hint: u64,
    #[prost(bytes = "bytes", tag = "14")]
    context: Bytes,
    #[prost(int64, tag = "15")]
    priority: i64,
}

/// An entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireEntry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    context: Bytes,
}

/// A change of the members: a configuration entry of Raft, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, under a number that was never used; it is filled, and does not vote.
    Add(u64),
    /// A member that was filled votes from now on.
    Promote(u64),
    /// A member that is none any more. Its number is never used again.
    Remove(u64),
}

/// A change as it stands in an entry's context: ours to parse, unlike raft's own bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct WireChange {
    /// 1 add, 2 promote, 3 remove.
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
    /// The caller's, applied with the change.
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

impl MemberChange {
    pub(crate) fn encode(self, data: Bytes) -> Vec<u8> {
        let (kind, id) = match self {
            Self::Add(id) => (1, id),
            Self::Promote(id) => (2, id),
            Self::Remove(id) => (3, id),
        };
        WireChange { kind, id, data }.encode_to_vec()
    }

    /// The change that a configuration entry makes, and what the caller applies with it.
    pub(crate) fn decode(context: &[u8]) -> Result<(Self, Bytes), MessageError> {
        let WireChange { kind, id, data } = WireChange::decode(context)?;
        let change = match (kind, id) {
            (_, 0) => return Err(MessageError::Entries),
            (1, id) => Self::Add(id),
            (2, id) => Self::Promote(id),
            (3, id) => Self::Remove(id),
            _ => return Err(MessageError::Entries),
        };
        Ok((change, data))
    }

    /// As raft-rs has it.
    pub(crate) fn to_raft(self) -> eraft::ConfChange {
        let mut change = eraft::ConfChange::default();
        let (kind, id) = match self {
            Self::Add(id) => (eraft::ConfChangeType::AddLearnerNode, id),
            Self::Promote(id) => (eraft::ConfChangeType::AddNode, id),
            Self::Remove(id) => (eraft::ConfChangeType::RemoveNode, id),
        };
        change.set_change_type(kind);
        change.node_id = id;
        change
    }
}

/// A snapshot with the position that it stands for.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireSnapshot {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, repeated, tag = "3")]
    pub(crate) voters: Vec<u64>,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) learners: Vec<u64>,
}

impl From<eraft::Entry> for WireEntry {
    fn from(entry: eraft::Entry) -> Self {
        Self {
            kind: entry.entry_type as i32,
            term: entry.term,
            index: entry.index,
            data: entry.data,
            context: entry.context,
        }
    }
}

impl TryFrom<WireEntry> for eraft::Entry {
    type Error = MessageError;
    fn try_from(wire: WireEntry) -> Result<Self, MessageError> {
        let WireEntry { kind, term, index, data, context } = wire;
        let mut entry = Self { term, index, context, ..Self::default() };
        if kind == EntryType::EntryConfChange as i32 {
            // raft's own bytes of the change are not taken over: rust-protobuf would parse them.
            MemberChange::decode(&entry.context)?;
            entry.set_entry_type(EntryType::EntryConfChange);
        } else if kind == EntryType::EntryNormal as i32 {
            entry.data = data;
        } else {
            return Err(MessageError::Entries);
        }
        if index == 0 { Err(MessageError::Entries) } else { Ok(entry) }
    }
}

impl From<eraft::Snapshot> for WireSnapshot {
    fn from(mut snapshot: eraft::Snapshot) -> Self {
        let mut metadata = snapshot.take_metadata();
        let members = metadata.take_conf_state();
        Self {
            index: metadata.index,
            term: metadata.term,
            voters: members.voters,
            learners: members.learners,
            data: snapshot.data,
        }
    }
}

impl From<WireSnapshot> for eraft::Snapshot {
    fn from(wire: WireSnapshot) -> Self {
        let mut snapshot = Self::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = wire.index;
        metadata.term = wire.term;
        metadata.mut_conf_state().voters = wire.voters;
        metadata.mut_conf_state().learners = wire.learners;
        snapshot.data = wire.data;
        snapshot
    }
}

/// A message as it travels.
pub(crate) fn encode(mut message: eraft::Message) -> Bytes {
    let snapshot = message.has_snapshot().then(|| message.take_snapshot().into());
    let wire = WireMessage {
        kind: message.msg_type as i32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.take_entries().into_iter().map(Into::into).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    };
    wire.encode_to_vec().into()
}

/// A message from `peer`, checked.
pub(crate) fn decode(me: u64, peer: u64, bytes: Bytes) -> Result<eraft::Message, MessageError> {
    let wire = WireMessage::decode(bytes)?;
    let kind = exchanged(wire.kind).ok_or(MessageError::Kind(wire.kind))?;
    if wire.to != me || wire.from != peer {
        return Err(MessageError::Address { from: wire.from, to: wire.to, peer, me });
    }
    let follow = (wire.index.saturating_add(1)..)
        .zip(&wire.entries)
        .all(|(index, entry)| entry.index == index);
    if wire.entries.len() > ENTRIES_PER_MESSAGE_MAX || !follow {
        return Err(MessageError::Entries);
    }
    if (kind == MessageType::MsgSnapshot) != wire.snapshot.is_some() {
        return Err(MessageError::Snapshot);
    }
    let mut message = eraft::Message::default();
    message.set_msg_type(kind);
    message.to = wire.to;
    message.from = wire.from;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    let entries: Result<Vec<eraft::Entry>, _> =
        wire.entries.into_iter().map(TryInto::try_into).collect();
    message.set_entries(entries?.into());
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(snapshot.into());
    }
    message.request_snapshot = wire.request_snapshot;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context;
    message.priority = wire.priority;
    Ok(message)
}

/// Kinds that members send each other. Proposals and reads are not forwarded; the rest is local.
fn exchanged(kind: i32) -> Option<MessageType> {
    const EXCHANGED: [MessageType; 10] = [
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    EXCHANGED.into_iter().find(|known| *known as i32 == kind)
}

/// An entry as it stands in the log.
pub(crate) fn encode_entry(entry: &eraft::Entry) -> Vec<u8> {
    WireEntry::from(entry.clone()).encode_to_vec()
}

/// An entry from the log.
pub(crate) fn decode_entry(bytes: &[u8]) -> Result<eraft::Entry, MessageError> {
    WireEntry::decode(bytes)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append() -> eraft::Message {
        let mut message = eraft::Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.from, message.to, message.term, message.index) = (1, 2, 7, 4);
        message.log_term = 6;
        message.commit = 3;
        let entry = |index| {
            let mut entry = eraft::Entry::default();
            (entry.term, entry.index) = (7, index);
            entry.data = Bytes::from_static(b"command");
            entry
        };
        message.set_entries(vec![entry(5), entry(6)].into());
        message
    }

    #[test]
    fn messages_survive_the_wire() {
        assert_eq!(decode(2, 1, encode(append())), Ok(append()));
        let mut snapshot = eraft::Message::default();
        snapshot.set_msg_type(MessageType::MsgSnapshot);
        (snapshot.from, snapshot.to) = (1, 2);
        let wire = WireSnapshot {
            index: 9,
            term: 3,
            voters: vec![1, 2, 3],
            learners: vec![104],
            data: Bytes::from_static(b"state"),
        };
        snapshot.set_snapshot(wire.into());
        assert_eq!(decode(2, 1, encode(snapshot.clone())), Ok(snapshot));
    }

    #[test]
    fn local_kinds_wrong_addresses_and_gaps_are_refused() {
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgReadIndex] {
            let mut message = append();
            message.set_msg_type(kind);
            assert_eq!(decode(2, 1, encode(message)), Err(MessageError::Kind(kind as i32)));
        }
        assert!(matches!(decode(3, 1, encode(append())), Err(MessageError::Address { .. })));
        assert!(matches!(decode(2, 3, encode(append())), Err(MessageError::Address { .. })));
        let mut gap = append();
        gap.mut_entries()[1].index = 9;
        assert_eq!(decode(2, 1, encode(gap)), Err(MessageError::Entries));
        let mut nobody = append();
        nobody.mut_entries()[0].set_entry_type(EntryType::EntryConfChange);
        assert_eq!(decode(2, 1, encode(nobody)), Err(MessageError::Entries));
        let mut joint = append();
        joint.mut_entries()[0].set_entry_type(EntryType::EntryConfChangeV2);
        assert_eq!(decode(2, 1, encode(joint)), Err(MessageError::Entries));
        let mut member = append();
        let entry = &mut member.mut_entries()[0];
        entry.set_entry_type(EntryType::EntryConfChange);
        let words = Bytes::from_static(b"words");
        entry.context = MemberChange::Add(105).encode(words.clone()).into();
        entry.data = Bytes::from_static(b"for rust-protobuf");
        let found = decode(2, 1, encode(member)).unwrap();
        let entry = found.entries.first().unwrap();
        assert_eq!(MemberChange::decode(&entry.context), Ok((MemberChange::Add(105), words)));
        assert!(entry.data.is_empty(), "bytes of a peer must never reach its parser");
        let mut empty = append();
        empty.set_msg_type(MessageType::MsgSnapshot);
        assert_eq!(decode(2, 1, encode(empty)), Err(MessageError::Snapshot));
        assert!(decode(2, 1, Bytes::from_static(&[0xff; 40])).is_err());
    }
}
