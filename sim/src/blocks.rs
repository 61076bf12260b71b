//! Blocks of all replicas of a simulated node.

use ashlar_node_core::Record;
use ashlar_types::{BlockData, BlockRange, ChunkId, Sums};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// Content of one block with its checksum.
pub(crate) type Block = (u32, Bytes);

/// Content of every written block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    /// By number; what lies behind the end was never written.
    chunks: BTreeMap<ChunkId, Vec<Option<Block>>>,
}

impl Blocks {
    /// Takes a record in.
    pub(crate) fn apply(&mut self, record: &Record) {
        if let Record::Erase { chunk } = record {
            self.chunks.remove(chunk);
        }
        let Some(data) = record.content() else { return };
        let blocks = self.chunks.entry(record.chunk()).or_default();
        let end = at(data.range.end());
        if blocks.len() < end {
            blocks.resize(end, None);
        }
        for (block, content) in data.iter() {
            if let Some(slot) = blocks.get_mut(at(block)) {
                *slot = content;
            }
        }
    }

    /// A block, if it was written.
    pub(crate) fn get(&self, chunk: ChunkId, block: u32) -> Option<&Block> {
        self.chunks.get(&chunk)?.get(at(block))?.as_ref()
    }

    /// Puts a content into a block, whatever the records say.
    pub(crate) fn put(&mut self, chunk: ChunkId, block: u32, content: Block) {
        if let Some(slot) = self.chunks.get_mut(&chunk).and_then(|all| all.get_mut(at(block))) {
            *slot = Some(content);
        }
    }

    /// Content of a range.
    pub(crate) fn read(&self, chunk: ChunkId, range: BlockRange) -> BlockData {
        let found: Vec<Option<&Block>> =
            range.blocks().map(|block| self.get(chunk, block)).collect();
        let sums = Sums::Mixed(found.iter().map(|b| b.map(|(sum, _)| *sum)).collect());
        let data = match found.as_slice() {
            [Some((_, bytes))] => bytes.clone(),
            several => {
                let mut data = BytesMut::new();
                for (_, bytes) in several.iter().flatten() {
                    data.extend_from_slice(bytes);
                }
                data.freeze()
            }
        };
        BlockData { range, sums, data }
    }

    /// Checksums of all blocks of a chunk: equal replicas have equal ones.
    pub(crate) fn sums(&self, chunk: ChunkId) -> BTreeMap<u32, u32> {
        let blocks = self.chunks.get(&chunk).map_or(&[][..], Vec::as_slice);
        let sum = |(block, content): (u32, &Option<Block>)| {
            content.as_ref().map(|(sum, _)| (block, *sum))
        };
        (0..).zip(blocks).filter_map(sum).collect()
    }
}

fn at(block: u32) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}
