//! What a node knows of its replicas through every restart: the journal's records, reduced.
//!
//! The same reducer runs in three places: in the core (the present state), in the journal's thread
//! (the state as of the last record, written by a checkpoint) and at replay. So what a restart
//! finds is what the core believed when the last durable record was written.
//!
//! Invariants, held by [`ReplicaDurable::check`]:
//! - epoch, generation, term and committed position never go back;
//! - no uncommitted entry lies at or below the committed position;
//! - positions of uncommitted entries rise.
//!
//! Does not decide whether a record is allowed: that is done before it is written.

use crate::record::Record;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ashlar_types::codec::{BufMut, CodecError, Reader, Wire, decode, encode};
use ashlar_types::message::data::{History, Uncommitted};
use ashlar_types::wire_struct;
use ashlar_types::{ChunkConfig, ChunkId, Epoch, Lsn, NodeId, ReplicaId, Term};

/// What must be kept of one replica (design.md 4.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaDurable {
    /// This node's replica.
    pub replica: ReplicaId,
    /// The configuration adopted last: epoch and generation floor are in it.
    pub config: ChunkConfig,
    /// The highest term followed; lower ones are refused.
    pub term: Term,
    /// End of the contiguous prefix of writes.
    pub last: Lsn,
    /// Everything up to here is known to be committed.
    pub committed: Lsn,
    /// Writes, and ranges to be overwritten, that are not known to be committed.
    pub uncommitted: Vec<Uncommitted>,
    /// A promotion proposed in this epoch whose outcome is unknown.
    pub proposal: Option<Proposed>,
    /// The store has lost part of this replica: nothing else here, and none of its blocks, proves
    /// anything. It takes no part until another incarnation takes its place.
    pub suspect: bool,
}

/// A promotion proposed and not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Epoch that the proposal compares with.
    pub epoch: Epoch,
    /// The learner.
    pub learner: ReplicaId,
}

wire_struct! {
    Proposed { epoch, learner }
}

impl Wire for ReplicaDurable {
    fn put(&self, out: &mut impl BufMut) {
        self.replica.put(out);
        self.config.put(out);
        self.term.put(out);
        self.last.put(out);
        self.committed.put(out);
        self.uncommitted.put(out);
        self.proposal.put(out);
        self.suspect.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            replica: Wire::get(from)?,
            config: Wire::get(from)?,
            term: Wire::get(from)?,
            last: Wire::get(from)?,
            committed: Wire::get(from)?,
            uncommitted: Wire::get(from)?,
            proposal: Wire::get(from)?,
            // Stores of format version 1 end here: they refused to open when they were damaged.
            suspect: if from.left() == 0 { false } else { Wire::get(from)? },
        })
    }
}

impl ReplicaDurable {
    /// An empty replica under its first configuration.
    pub(crate) fn new(replica: ReplicaId, config: ChunkConfig) -> Self {
        Self {
            replica,
            config,
            term: Term::default(),
            last: Lsn::ZERO,
            committed: Lsn::ZERO,
            uncommitted: Vec::new(),
            proposal: None,
            suspect: false,
        }
    }

    /// What the replica tells a primary that opens a term.
    #[must_use]
    pub fn history(&self) -> History {
        History {
            last: self.last,
            committed: self.committed,
            uncommitted: self.uncommitted.clone(),
        }
    }

    /// Up to which epoch incarnations are refused once this one is erased: it, and all that were named
    /// before what it has adopted. A later one that this very configuration names is still to come.
    pub(crate) fn refused_once_erased(&self) -> Epoch {
        let later = |other: &ReplicaId| {
            other.node == self.replica.node && other.incarnation > self.replica.incarnation
        };
        match self.config.replicas().find(later) {
            Some(to_come) => Epoch(to_come.incarnation.0.saturating_sub(1)),
            None => self.config.epoch.max(Epoch(self.replica.incarnation.0)),
        }
    }

    fn commit(&mut self, lsn: Lsn) {
        if lsn > self.committed {
            self.committed = lsn;
            self.uncommitted.retain(|entry| entry.lsn > lsn);
        }
    }

    /// Panics if an invariant of this file does not hold.
    ///
    /// # Panics
    /// On a broken invariant: going on would lose data.
    pub fn check(&self) {
        assert!(
            self.uncommitted.iter().all(|entry| entry.lsn > self.committed),
            "{}: an entry at or below the committed position {} is kept as uncommitted",
            self.config.chunk,
            self.committed
        );
        assert!(
            self.uncommitted.windows(2).all(|w| matches!(w, [a, b] if a.lsn <= b.lsn)),
            "{}: uncommitted entries are out of order",
            self.config.chunk
        );
        assert!(self.term >= self.last.term, "{}: last write above the term", self.config.chunk);
    }

    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Adopt { config, .. } => {
                assert!(config.epoch >= self.config.epoch, "{}: epoch goes back", config.chunk);
                assert!(
                    config.generation >= self.config.generation,
                    "{}: generation goes back",
                    config.chunk
                );
                self.config = config.clone();
                self.proposal = self.proposal.filter(|p| p.epoch >= config.epoch);
            }
            Record::FollowTerm { term, .. } => self.term = self.term.max(*term),
            Record::TakeOver { ranges, .. } => {
                for entry in ranges.iter().filter(|entry| entry.lsn > self.committed) {
                    // Taken over again, as an opening that was cut off begins anew.
                    if !self.uncommitted.contains(entry) {
                        self.uncommitted.push(*entry);
                    }
                }
                self.uncommitted.sort_by_key(|entry| entry.lsn);
            }
            Record::OpenTerm { term, base, overwrite, .. } => {
                assert!(*term >= self.term, "{}: term goes back", self.config.chunk);
                self.term = *term;
                self.commit(*base);
                self.last = Lsn::opening(*term);
                self.uncommitted.clear();
                let mut at = self.last;
                self.uncommitted.extend(overwrite.iter().map(|range| {
                    at = at.next();
                    Uncommitted { lsn: at, range: *range }
                }));
            }
            Record::OpenFill { base, .. } => {
                self.term = self.term.max(base.term);
                self.last = *base;
                self.uncommitted.clear();
            }
            Record::Write { lsn, committed, data, .. } => {
                assert!(*lsn == self.last.next(), "{}: a write out of order", self.config.chunk);
                self.last = *lsn;
                self.commit(*committed);
                // A learner is not waited for: a write sent to it again may be committed already.
                if *lsn > self.committed {
                    self.note_write(Uncommitted { lsn: *lsn, range: data.range });
                }
            }
            Record::Committed { lsn, .. } => self.commit(*lsn),
            Record::ProposePromotion { epoch, learner, .. } => {
                self.proposal = Some(Proposed { epoch: *epoch, learner: *learner });
            }
            Record::Suspect { .. } => self.suspect = true,
            Record::Fill { .. } | Record::Erase { .. } | Record::Refuse { .. } => {}
        }
    }

    /// An entry for a write; an opening has already made the ones of its first writes.
    fn note_write(&mut self, entry: Uncommitted) {
        let at = self.uncommitted.partition_point(|known| known.lsn < entry.lsn);
        match self.uncommitted.get_mut(at) {
            Some(known) if known.lsn == entry.lsn => *known = entry,
            _ => self.uncommitted.insert(at, entry),
        }
    }
}

/// What a node knows of all its replicas through every restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableState {
    replicas: BTreeMap<ChunkId, ReplicaDurable>,
    /// Up to which epoch a chunk's incarnations are refused, because they were erased here.
    erased: BTreeMap<ChunkId, Epoch>,
    has_gaps: bool,
}

/// Stands in a checkpoint where a replica's node stands: no node has this number.
const ERASED: NodeId = NodeId(u32::MAX);

/// Notes up to which epoch a chunk's incarnations are refused.
pub(crate) fn note_erased(erased: &mut BTreeMap<ChunkId, Epoch>, chunk: ChunkId, upto: Epoch) {
    let known = erased.entry(chunk).or_default();
    *known = upto.max(*known);
}

/// What a checkpoint keeps of an erased replica.
struct Erased {
    mark: NodeId,
    chunk: ChunkId,
    epoch: Epoch,
}

wire_struct! {
    Erased { mark, chunk, epoch }
}

impl DurableState {
    /// Takes a record in. Records come in journal order.
    ///
    /// # Panics
    /// If a record contradicts what was recorded before (a number going back, a write out of
    /// order): only a defect can cause it, and going on would lose data.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Adopt { replica, config } => {
                let chunk = config.chunk;
                let known = self.replicas.get_mut(&chunk).filter(|r| r.replica == *replica);
                match known {
                    Some(known) => known.apply(record),
                    None => {
                        let new = ReplicaDurable::new(*replica, config.clone());
                        self.replicas.insert(chunk, new);
                        self.erased.remove(&chunk);
                    }
                }
            }
            Record::Erase { chunk } => {
                if let Some(replica) = self.replicas.remove(chunk) {
                    note_erased(&mut self.erased, *chunk, replica.refused_once_erased());
                }
            }
            Record::Refuse { chunk, upto } => note_erased(&mut self.erased, *chunk, *upto),
            Record::FollowTerm { chunk, .. }
            | Record::TakeOver { chunk, .. }
            | Record::OpenTerm { chunk, .. }
            | Record::OpenFill { chunk, .. }
            | Record::Write { chunk, .. }
            | Record::Fill { chunk, .. }
            | Record::Committed { chunk, .. }
            | Record::ProposePromotion { chunk, .. }
            | Record::Suspect { chunk } => {
                if let Some(replica) = self.replicas.get_mut(chunk) {
                    replica.apply(record);
                }
            }
        }
    }

    /// The store has lost records of which nothing is known: of a chunk that it does not know it
    /// cannot say that it never held it.
    pub fn note_gaps(&mut self) {
        self.has_gaps = true;
    }

    /// See [`Self::note_gaps`].
    #[must_use]
    pub const fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// One replica.
    #[must_use]
    pub fn get(&self, chunk: ChunkId) -> Option<&ReplicaDurable> {
        self.replicas.get(&chunk)
    }

    /// All replicas, by chunk.
    pub fn iter(&self) -> impl Iterator<Item = (&ChunkId, &ReplicaDurable)> {
        self.replicas.iter()
    }

    /// Chunks of which a replica was erased, with the epoch up to which incarnations are refused.
    pub fn erased(&self) -> impl Iterator<Item = (ChunkId, Epoch)> + '_ {
        self.erased.iter().map(|(chunk, epoch)| (*chunk, *epoch))
    }

    /// Hands the replicas out.
    #[must_use]
    pub fn into_replicas(self) -> BTreeMap<ChunkId, ReplicaDurable> {
        self.replicas
    }

    /// How many replicas.
    #[must_use]
    pub fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replicas.is_empty()
    }

    /// The state as byte strings, one for each replica, held or erased: what a checkpoint writes.
    pub fn encode(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let erased =
            self.erased().map(|(chunk, epoch)| encode(&Erased { mark: ERASED, chunk, epoch }));
        self.replicas.values().map(encode).chain(erased)
    }

    /// Takes in one byte string of [`Self::encode`], as found in a checkpoint.
    ///
    /// # Errors
    /// If the bytes are no replica.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if NodeId::get(&mut Reader::new(bytes))? == ERASED {
            let Erased { chunk, epoch, .. } = decode(bytes)?;
            self.erased.insert(chunk, epoch);
            return Ok(());
        }
        let replica: ReplicaDurable = decode(bytes)?;
        self.replicas.insert(replica.config.chunk, replica);
        Ok(())
    }
}
