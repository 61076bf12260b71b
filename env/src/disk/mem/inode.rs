//! One file of the in-memory disk: what it holds now, what of that is durable, and what becomes of
//! the rest at a power cut.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Survivors, count};
use crate::dice::Dice;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

type Pages = BTreeMap<u64, Arc<[u8; PAGE]>>;

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) now: Pages,
    pub(super) durable: Pages,
    pub(super) size: u64,
    durable_size: u64,
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Write { offset: u64, bytes: Vec<u8> },
    Cut { size: u64 },
}

impl Inode {
    /// Settles the pending changes by their fate, which `dice` decide where it is open; durable and
    /// current content are equal then.
    pub(super) fn crash(&mut self, fate: Survivors, dice: &mut dyn Dice) {
        let pending = std::mem::take(&mut self.pending);
        let last = pending.iter().rposition(|change| matches!(change, Pending::Write { .. }));
        for (nth, change) in pending.into_iter().enumerate() {
            match (change, fate) {
                (_, Survivors::Nothing) => {}
                (Pending::Write { offset, bytes }, Survivors::Torn) if Some(nth) == last => {
                    let torn = (offset + count(bytes.len()) - 1) % count(SECTOR) / 2 + 1;
                    let kept = bytes.len().saturating_sub(usize::try_from(torn).unwrap_or(0));
                    self.keep(offset, bytes.get(..kept).unwrap_or_default());
                }
                (Pending::Write { offset, bytes }, Survivors::Everything | Survivors::Torn) => {
                    self.keep(offset, &bytes);
                }
                (Pending::Write { offset, bytes }, Survivors::Any) => {
                    // Mostly mixed fates, but whole and nothing must be seen often too.
                    let mode = dice.below(4);
                    let mut at = offset;
                    for sector in sectors(offset, &bytes) {
                        if mode == 0 || (mode > 1 && dice.chance(1, 2)) {
                            self.keep(at, sector);
                        }
                        at += count(sector.len());
                    }
                }
                (Pending::Cut { size }, _) => {
                    if fate != Survivors::Any || dice.chance(1, 2) {
                        cut_pages(&mut self.durable, size);
                        self.durable_size = size;
                    }
                }
            }
        }
        if matches!(fate, Survivors::Everything | Survivors::Torn) {
            // Growth without a write too.
            self.durable_size = self.size;
        }
        self.now = self.durable.clone();
        self.size = self.durable_size;
    }

    /// These bytes are durable.
    fn keep(&mut self, offset: u64, bytes: &[u8]) {
        write_pages(&mut self.durable, offset, bytes);
        self.durable_size = self.durable_size.max(offset + count(bytes.len()));
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.pending.push(Pending::Write { offset, bytes: bytes.to_vec() });
        write_pages(&mut self.now, offset, bytes);
        self.size = self.size.max(offset.saturating_add(count(bytes.len())));
    }

    pub(super) fn set_size(&mut self, size: u64) {
        if size < self.size {
            cut_pages(&mut self.now, size);
            self.pending.push(Pending::Cut { size });
        }
        self.size = size;
    }

    /// A failed sync: the kernel marks the pages clean, and every second write is gone for good.
    pub(super) fn lose_half(&mut self) {
        for (nth, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            match change {
                Pending::Write { offset, bytes } if nth % 2 == 1 => {
                    write_pages(&mut self.durable, offset, &bytes);
                }
                Pending::Write { .. } | Pending::Cut { .. } => {}
            }
        }
    }

    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        (self.size, self.durable_size).hash(hasher);
        for (page, content) in &self.durable {
            (page, crc32c::crc32c(&content[..])).hash(hasher);
            // Pages that are synced are shared.
            match self.now.get(page) {
                Some(now) if Arc::ptr_eq(now, content) => {}
                Some(now) => crc32c::crc32c(&now[..]).hash(hasher),
                None => 0.hash(hasher),
            }
        }
        for (page, content) in &self.now {
            if !self.durable.contains_key(page) {
                (page, crc32c::crc32c(&content[..])).hash(hasher);
            }
        }
    }

    /// True when a power cut could lose something.
    pub(super) fn is_unsynced(&self) -> bool {
        !self.pending.is_empty() || self.size != self.durable_size
    }

    /// Everything is durable.
    pub(super) fn sync(&mut self) {
        let cut = self.pending.iter().any(|p| matches!(p, Pending::Cut { .. }));
        if cut {
            self.durable = self.now.clone();
            self.pending.clear();
        }
        for change in self.pending.drain(..) {
            if let Pending::Write { offset, bytes } = change {
                let last = (offset + count(bytes.len())).saturating_sub(1) / count(PAGE);
                for page in offset / count(PAGE)..=last {
                    if let Some(content) = self.now.get(&page) {
                        self.durable.insert(page, content.clone());
                    }
                }
            }
        }
        self.durable_size = self.size;
    }
}

/// The pieces of `bytes` that lie in one sector each.
fn sectors(offset: u64, bytes: &[u8]) -> Vec<&[u8]> {
    let into = usize::try_from(offset % count(SECTOR)).unwrap_or(0);
    let (head, rest) = bytes.split_at((SECTOR - into).min(bytes.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR)).filter(|s| !s.is_empty()).collect()
}

/// Calls `each(page number, range in page, range in buffer)` for every page that is touched.
fn for_pages(offset: u64, len: usize, mut each: impl FnMut(u64, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(count(done));
        let into = usize::try_from(at % count(PAGE)).unwrap_or(0);
        let step = (PAGE - into).min(len - done);
        each(at / count(PAGE), into, done, step);
        done += step;
    }
}

pub(super) fn read_pages(pages: &Pages, offset: u64, buf: &mut [u8]) {
    let len = buf.len();
    for_pages(offset, len, |page, into, done, step| {
        let Some(to) = buf.get_mut(done..done + step) else { return };
        match pages.get(&page).and_then(|p| p.get(into..into + step)) {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0),
        }
    });
}

pub(super) fn write_pages(pages: &mut Pages, offset: u64, buf: &[u8]) {
    for_pages(offset, buf.len(), |page, into, done, step| {
        let content = pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
        if let (Some(to), Some(from)) =
            (Arc::make_mut(content).get_mut(into..into + step), buf.get(done..done + step))
        {
            to.copy_from_slice(from);
        }
    });
}

fn cut_pages(pages: &mut Pages, size: u64) {
    let first_gone = size.div_ceil(count(PAGE));
    pages.retain(|page, _| *page < first_gone);
    let into = usize::try_from(size % count(PAGE)).unwrap_or(0);
    if into != 0
        && let Some(content) = pages.get_mut(&(size / count(PAGE)))
        && let Some(tail) = Arc::make_mut(content).get_mut(into..)
    {
        tail.fill(0);
    }
}
