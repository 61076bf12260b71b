//! Persist before send, by construction: what rests on a record waits here until it is durable.
//!
//! The gate numbers the records and holds effects behind the last record numbered so far. The only
//! way around it is [`crate::context::Context::mirror_eagerly`].
//!
//! Acknowledgements of writes are held as marks and merged: one per chunk and group commit.

use crate::outbox::Effect;
use crate::record::JournalSeq;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use ashlar_types::{ChunkId, Epoch, Generation, Lsn, NodeId};

/// Numbers records and holds back what rests on them.
#[derive(Debug, Default)]
pub struct Gate {
    numbered: JournalSeq,
    /// The last record that something may rest on; later ones may be lost at no cost.
    needed: JournalSeq,
    durable: JournalSeq,
    held: VecDeque<(JournalSeq, Held)>,
}

#[derive(Debug)]
enum Held {
    Effect(Effect),
    Ack(ChunkId, Acknowledge),
    Own(ChunkId),
    Adopted(ChunkId, Epoch, Generation),
}

/// An acknowledgement of a contiguous prefix, to the primary's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// The primary's node.
    pub to: NodeId,
    /// Epoch adopted here.
    pub epoch: Epoch,
    /// The prefix.
    pub lsn: Lsn,
    /// Base of the fill that it belongs to.
    pub fill: Option<Lsn>,
}

/// What a group commit sets free.
#[derive(Debug, Default)]
pub struct Released {
    /// Effects, in order.
    pub effects: Vec<Effect>,
    /// The newest acknowledgement of each chunk.
    pub acks: BTreeMap<ChunkId, Acknowledge>,
    /// Chunks of which this node's own writes have become durable.
    pub own: BTreeSet<ChunkId>,
    /// Epochs, with their generations, that have become durable.
    pub adopted: BTreeMap<ChunkId, (Epoch, Generation)>,
}

impl Gate {
    /// The next record's number. Nothing is held behind a record that may wait for the next group
    /// ([`crate::record::Record::may_wait`]).
    pub fn number(&mut self, may_wait: bool) -> JournalSeq {
        self.numbered.0 += 1;
        if !may_wait {
            self.needed = self.numbered;
        }
        self.numbered
    }

    /// The last record numbered.
    #[must_use]
    pub const fn numbered(&self) -> JournalSeq {
        self.numbered
    }

    /// Everything up to here is on stable media.
    #[must_use]
    pub const fn durable(&self) -> JournalSeq {
        self.durable
    }

    /// Whether nothing has to be waited for.
    fn open(&self) -> bool {
        self.durable >= self.needed
    }

    /// Holds `effect` until all records that it may rest on are durable; gives it back if they are.
    #[must_use]
    pub fn hold(&mut self, effect: Effect) -> Option<Effect> {
        if self.open() {
            return Some(effect);
        }
        self.held.push_back((self.needed, Held::Effect(effect)));
        None
    }

    /// Holds an acknowledgement; merged with later ones of the chunk in the same group.
    #[must_use]
    pub fn hold_ack(&mut self, chunk: ChunkId, ack: Acknowledge) -> Option<Acknowledge> {
        if self.open() {
            return Some(ack);
        }
        self.held.push_back((self.needed, Held::Ack(chunk, ack)));
        None
    }

    /// Notes that the last record needed is this node's own write to the chunk.
    pub fn note_own(&mut self, chunk: ChunkId) {
        self.held.push_back((self.needed, Held::Own(chunk)));
    }

    /// Notes that the last record needed adopts an epoch.
    pub fn note_adopted(&mut self, chunk: ChunkId, epoch: Epoch, generation: Generation) {
        self.held.push_back((self.needed, Held::Adopted(chunk, epoch, generation)));
    }

    /// Panics if the gate's order is broken.
    ///
    /// # Panics
    /// On a broken invariant: something could leave before its record is durable.
    pub fn check(&self) {
        assert!(self.durable <= self.numbered, "durable beyond what was numbered");
        assert!(self.needed <= self.numbered, "needed beyond what was numbered");
        assert!(
            self.held.iter().zip(self.held.iter().skip(1)).all(|((a, _), (b, _))| a <= b),
            "what is held is out of order"
        );
        assert!(
            self.held.front().is_none_or(|(at, _)| *at > self.durable),
            "something is held although its record is durable"
        );
    }

    /// All records up to `seq` are durable.
    ///
    /// # Panics
    /// If the journal reports a record that was never given to it.
    pub fn release(&mut self, seq: JournalSeq) -> Released {
        assert!(
            seq <= self.numbered,
            "the journal reports {seq:?}, only {:?} exist",
            self.numbered
        );
        self.durable = self.durable.max(seq);
        let mut released = Released::default();
        while let Some((_, held)) = self.held.pop_front_if(|(at, _)| *at <= self.durable) {
            match held {
                Held::Effect(effect) => released.effects.push(effect),
                Held::Ack(chunk, ack) => {
                    released.acks.insert(chunk, ack);
                }
                Held::Own(chunk) => {
                    released.own.insert(chunk);
                }
                Held::Adopted(chunk, epoch, generation) => {
                    released.adopted.insert(chunk, (epoch, generation));
                }
            }
        }
        released
    }
}
