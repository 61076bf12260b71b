//! What the store itself keeps twice or can write anew is verified once in a cycle of the scrub: the
//! current page of every slot, both copies of the superblock, and the journal by moving on.
//!
//! The map in memory is what the pages said when they were intact, so a page that has rotted is
//! written again in its place, byte for byte: a cut in between leaves it as damaged as it was. The
//! journal's live part is never read while the process runs; the checkpoint at the end of each
//! verification leaves it behind instead.

use ashlar_env::disk::AlignedBuf;

use super::StoreFailure;
use super::apply::{Applier, write_superblock};
use super::format::{MapPage, PAGE, Superblock, as_u64, as_usize, stored_crc};

/// Slots whose pages are read at once: 4 MiB.
const SLOTS_AT_ONCE: u32 = 512;

impl Applier {
    /// Verifies the next part, if a verification is under way.
    pub(crate) fn verify_some(&mut self) -> Result<(), StoreFailure> {
        let (from, used) = {
            let state = self.shared.lock();
            let Some(from) = state.verify_at else { return Ok(()) };
            (from, state.map.used())
        };
        let to = from.saturating_add(SLOTS_AT_ONCE).min(used);
        if from < to {
            self.verify_pages(from, to)?;
        }
        let done = to >= used;
        if done {
            self.renew_superblock()?;
        }
        let mut state = self.shared.lock();
        state.verify_at = (!done).then_some(to);
        state.checkpoint_wanted |= done;
        drop(state);
        self.shared.journal_wake.notify();
        Ok(())
    }

    /// Writes the current pages of slots in `from..to` again that are not what they were. No
    /// checkpoint runs meanwhile: it is this thread's work too.
    fn verify_pages(&self, from: u32, to: u32) -> Result<(), StoreFailure> {
        let file = &self.shared.map_file;
        let mut pages = AlignedBuf::zeroed(as_usize(u64::from(to - from)) * 2 * PAGE);
        let read = file.read_at(&mut pages, u64::from(from) * 2 * as_u64(PAGE));
        let mut written = false;
        for (pair, slot) in pages.chunks(2 * PAGE).zip(from..to) {
            let Some(current) = self.shared.lock().map.page(slot) else { continue };
            let page = pair.chunks(PAGE).nth(usize::from(current.copy)).unwrap_or_default();
            let found = MapPage::decode(page, self.superblock.store);
            let intact = found.is_some_and(|(page, crc)| page.slot == slot && crc == current.crc);
            if read.is_ok() && intact {
                continue;
            }
            let change = self.shared.lock().map.unchanged(slot, self.superblock.zone);
            let page = change.page(current.checkpoint, self.superblock.store);
            if stored_crc(&page) != current.crc {
                tracing::error!(slot, "a damaged page of the store's map cannot be made again");
                continue;
            }
            tracing::warn!(slot, "a damaged page of the store's map is written again");
            let place = u64::from(slot) * 2 + u64::from(current.copy);
            file.write_at(&page, place * as_u64(PAGE))?;
            written = true;
        }
        if written {
            file.sync_data()?;
        }
        Ok(())
    }

    /// Writes both copies of the superblock if one of them is damaged.
    fn renew_superblock(&mut self) -> Result<(), StoreFailure> {
        let intact = (0..2u64).all(|copy| {
            let mut page = AlignedBuf::zeroed(PAGE);
            self.super_file.read_at(&mut page, copy * as_u64(PAGE)).is_ok()
                && Superblock::decode(&page).is_ok_and(|sb| sb.store == self.superblock.store)
        });
        if intact {
            return Ok(());
        }
        tracing::warn!("a copy of the store's superblock is damaged; it is written anew");
        for _ in 0..2 {
            let superblock =
                Superblock { sequence: self.superblock.sequence + 1, ..self.superblock };
            write_superblock(&*self.super_file, &superblock)?;
            self.superblock = superblock;
        }
        Ok(())
    }
}
