//! A user with many requests at a time, and the judge of what it saw.
//!
//! Every write has a tag of its own, so a read names the write that it saw. Rules:
//! - a read sees no write that another write, submitted later and completed before the read was
//!   submitted, has overwritten, and none that was submitted after the read completed;
//! - in the end each block holds the write to it that was submitted last;
//! - a flush completes after every write submitted before it.

use super::zone::{BLOCKS, CHUNKS, Zone, block, tags};
use crate::{Done, Effect, Input, OpError, OpId, Payload, Request};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

#[derive(Clone, Copy, Debug)]
struct WriteRecord {
    op: u64,
    tag: u64,
    completed: Option<u64>,
}

enum Open {
    Read { first: u32, submitted: u64 },
    Write { first: u32, count: u32 },
    Reserve { first: u32, count: u32 },
    Flush { open_writes: Vec<u64> },
}

pub(super) struct User {
    /// For each block, its writes in order of submission.
    history: Vec<Vec<WriteRecord>>,
    open: BTreeMap<u64, Open>,
    /// Counts submissions and completions: the order of what the user sees.
    moment: u64,
    next: u64,
    pub(super) reads: u64,
    pub(super) errors: Vec<OpError>,
}

impl User {
    pub(super) fn new() -> Self {
        // Tag 0: the hole that was there before.
        let start = WriteRecord { op: 0, tag: 0, completed: Some(0) };
        let history = (0..CHUNKS * BLOCKS).map(|_| vec![start]).collect();
        Self { history, open: BTreeMap::new(), moment: 1, next: 1, reads: 0, errors: vec![] }
    }

    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn submit(&mut self, zone: &mut Zone) {
        self.moment += 1;
        let id = self.next;
        self.next += 1;
        let first = zone.rng.below(u64::from(CHUNKS * BLOCKS)) as u32;
        let count = 1 + zone.rng.below(u64::from((CHUNKS * BLOCKS - first).min(6))) as u32;
        let at = u64::from(first);
        let (open, request) = match zone.rng.below(10) {
            0..4 => {
                self.record(first, count, id, id);
                (
                    Open::Write { first, count },
                    Request::Write { first: at, payload: fill(id, count) },
                )
            }
            4 => {
                self.record(first, count, id, 0);
                (Open::Write { first, count }, Request::Zero { first: at, count })
            }
            5 => {
                self.record(first, count, id, id);
                (Open::Reserve { first, count }, Request::Reserve { first: at, count })
            }
            6 => {
                let writes = |(id, open): (&u64, &Open)| {
                    matches!(open, Open::Write { .. } | Open::Reserve { .. }).then_some(*id)
                };
                let open_writes = self.open.iter().filter_map(writes).collect();
                (Open::Flush { open_writes }, Request::Flush)
            }
            _ => {
                let submitted = self.moment;
                (Open::Read { first, submitted }, Request::Read { first: at, count })
            }
        };
        self.open.insert(id, open);
        zone.give(Input::Submit { op: OpId(id), request });
    }

    fn record(&mut self, first: u32, count: u32, op: u64, tag: u64) {
        for block in first..first + count {
            self.history[block as usize].push(WriteRecord { op, tag, completed: None });
        }
    }

    pub(super) fn take_answers(&mut self, zone: &mut Zone) {
        for effect in core::mem::take(&mut zone.user) {
            self.moment += 1;
            match effect {
                Effect::Turn { op } => {
                    let Some(Open::Reserve { count, .. }) = self.open.get(&op.0) else {
                        panic!("turn for an unknown reservation")
                    };
                    zone.give(Input::Fill { op, payload: fill(op.0, *count) });
                }
                Effect::Complete { op, result } => {
                    let open = self.open.remove(&op.0).expect("answered twice, or never asked");
                    self.judge(op.0, open, result);
                }
                other => panic!("not for the user: {other:?}"),
            }
        }
    }

    fn judge(&mut self, id: u64, open: Open, result: Result<Done, OpError>) {
        let done = match result {
            Ok(done) => done,
            Err(error) => return self.errors.push(error),
        };
        match (open, done) {
            (Open::Write { first, count } | Open::Reserve { first, count }, Done::Written) => {
                for block in first..first + count {
                    let writes = &mut self.history[block as usize];
                    writes.iter_mut().find(|w| w.op == id).unwrap().completed = Some(self.moment);
                }
            }
            (Open::Read { first, submitted }, Done::Read(pieces)) => {
                self.reads += 1;
                let seen = pieces.iter().flat_map(|piece| tags(&piece.data));
                for (block, tag) in (first..).zip(seen) {
                    self.judge_block(block, tag, submitted);
                }
            }
            (Open::Flush { open_writes }, Done::Flushed) => {
                for write in open_writes {
                    assert!(
                        !self.open.contains_key(&write),
                        "flushed before write {write} is done"
                    );
                }
            }
            _ => panic!("an answer of the wrong kind"),
        }
    }

    fn judge_block(&self, block: u32, tag: u64, submitted: u64) {
        let writes = &self.history[block as usize];
        let last_settled = writes
            .iter()
            .rposition(|w| w.completed.is_some_and(|completed| completed < submitted))
            .unwrap_or(0);
        let allowed = writes[last_settled..].iter().any(|w| w.tag == tag);
        assert!(allowed, "block {block}: a read saw {tag}, which was overwritten: {writes:?}");
    }

    /// What each block must hold once all is quiet.
    pub(super) fn judge_end(&self, zone: &Zone) {
        for (block, writes) in self.history.iter().enumerate() {
            let last = writes.last().unwrap();
            assert_eq!(zone.store[block], last.tag, "block {block} lost its last write");
        }
    }
}

pub(super) fn fill(tag: u64, count: u32) -> Payload {
    let data: Vec<u8> = (0..count).flat_map(|_| block(tag)).collect();
    Payload { sums: vec![1; count as usize], data: Bytes::from(data) }
}
