//! Map pages that cannot be read although they were current: whom they concern.
//!
//! The digest of the superblock says that a current page is missing, not which. A page that a crash
//! tore is undecodable too, but never current. So the undecodable pages are put to the proof: those
//! whose stored checksum makes the digest whole were the current ones, and all others are intact.
//!
//! Whose blocks such a page described follows from the slot's other copy: pages of a slot are
//! written in turns, and between two owners lies a page that says free. If the older page names an
//! owner, the damaged one was that owner's, or free.

use ashlar_types::ChunkId;

use super::doubt::Doubt;
use super::map::digest_of;

/// A page that is neither intact nor blank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotten {
    pub(crate) slot: u32,
    /// Its checksum as stored, and as it comes out.
    pub(crate) stored: u32,
    pub(crate) computed: u32,
    /// The slot's other copy, if that counts instead: its checksum and whose it was.
    pub(crate) other: Option<(u32, Option<ChunkId>)>,
}

impl Rotten {
    /// What the digest is too small by if this page was current, by either checksum.
    fn lack(&self, crc: u32) -> u64 {
        let instead = self.other.map_or(0, |(crc, _)| digest_of(self.slot, crc));
        digest_of(self.slot, crc).wrapping_sub(instead)
    }
}

/// Doubts the owners of what is missing: `lacking` is the digest of the superblock less that of all
/// pages that count.
pub(crate) fn judge(lacking: u64, rotten: &[Rotten], doubt: &mut Doubt) {
    let all = rotten.iter().map(|page| page.lack(page.stored)).fold(0, u64::wrapping_add);
    let one =
        |page: &&Rotten| [page.stored, page.computed].map(|c| page.lack(c)).contains(&lacking);
    let proven: Vec<&Rotten> = match rotten.iter().find(one) {
        Some(page) => vec![page],
        None if all == lacking => rotten.iter().collect(),
        None => Vec::new(),
    };
    if proven.is_empty() {
        doubt.add_all();
    }
    for page in proven {
        match page.other {
            Some((_, Some(owner))) => doubt.add(owner),
            Some((_, None)) | None => doubt.add_all(),
        }
    }
}
