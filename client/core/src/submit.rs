//! Takes requests in: splits them into parts, gives each part its place in the order of writes.

use crate::input::{Effect, OpError, OpId, Outbox, PARTS_PER_REQUEST_MAX, Payload, Request};
use crate::op::{Content, Op, OpKind, Part, PartState};
use crate::tick::PART_RETRY;
use crate::volume::VolumeCore;
use alloc::vec::Vec;
use ashlar_types::backoff::Backoff;
use ashlar_types::limit::IO_BLOCKS_MAX;
use ashlar_types::{BLOCK_SIZE, BlockData, BlockRange, ChunkIndex, Geometry, Sums, Time};

impl VolumeCore {
    pub(crate) fn on_submit(&mut self, now: Time, id: OpId, request: Request, out: &mut Outbox) {
        if let Some(fence) = self.fenced {
            out.push(Effect::Complete { op: id, result: Err(OpError::Fenced(fence)) });
            return;
        }
        let number = self.number_next;
        self.number_next += 1;
        let planned = match request {
            Request::Flush => {
                self.flushes.push_back((number, id));
                self.end_flushes(out);
                return;
            }
            Request::Read { first, count } => {
                let parts = ranges(self.settings.geometry, first, count, IO_BLOCKS_MAX);
                parts.map(|parts| (OpKind::Read(Vec::new()), with(parts, |_| Content::Read)))
            }
            Request::Zero { first, count } => {
                let parts = ranges(self.settings.geometry, first, count, u32::MAX);
                let zero = |place: &Place| Content::Write(BlockData::holes(place.range));
                parts.map(|parts| (OpKind::Write, with(parts, zero)))
            }
            Request::Reserve { first, count } => {
                let parts = ranges(self.settings.geometry, first, count, IO_BLOCKS_MAX);
                parts.map(|parts| {
                    let turns_left = u32::try_from(parts.len()).unwrap_or(u32::MAX);
                    (OpKind::Reserve { turns_left }, with(parts, |_| Content::Reserve))
                })
            }
            Request::Write { first, payload } => {
                write_parts(self.settings.geometry, first, payload)
                    .map(|parts| (OpKind::Write, parts))
            }
        };
        let planned = planned.and_then(|(kind, parts)| {
            if self.parts.room() < parts.len() { Err(OpError::Full) } else { Ok((kind, parts)) }
        });
        match planned {
            Ok((kind, parts)) => self.take_in(now, id, number, kind, parts, out),
            Err(error) => out.push(Effect::Complete { op: id, result: Err(error) }),
        }
    }

    fn take_in(
        &mut self,
        now: Time,
        id: OpId,
        number: u64,
        kind: OpKind,
        parts: Vec<(Place, Content)>,
        out: &mut Outbox,
    ) {
        let op = Op {
            number,
            kind,
            parts_left: u32::try_from(parts.len()).unwrap_or(u32::MAX),
            submitted: now,
            failed: None,
            reported: false,
        };
        if op.writes() {
            self.writes_open.insert(number);
        }
        self.ops.insert(id, op);
        for (place, content) in parts {
            let part = Part {
                op: id,
                chunk: place.chunk,
                range: place.range,
                skipped_blocks: place.skipped_blocks,
                content,
                state: PartState::Ordered,
                backoff: Backoff::new(PART_RETRY),
                unreadable: 0,
            };
            let writes = part.is_write();
            // Room was checked for all parts together, and places lie within the volume.
            let Some(slot) = self.parts.insert(part) else { continue };
            let Some(chunk) = self.chunk_mut(place.chunk) else { continue };
            chunk.parts += 1;
            if !writes || chunk.order.enter(slot, place.range) {
                self.admit(now, slot, out);
            }
        }
    }

    /// A part has no earlier overlapping write in front of it (any more).
    pub(crate) fn admit(&mut self, now: Time, slot: u16, out: &mut Outbox) {
        let Some(part) = self.parts.get_mut(slot) else { return };
        if !matches!(part.content, Content::Reserve) {
            self.route(now, slot, out);
            return;
        }
        part.state = PartState::Held;
        let id = part.op;
        let Some(op) = self.ops.get_mut(&id) else { return };
        if let OpKind::Reserve { turns_left } = &mut op.kind {
            *turns_left -= 1;
            if *turns_left == 0 {
                out.push(Effect::Turn { op: id });
            }
        }
    }

    pub(crate) fn on_fill(&mut self, now: Time, id: OpId, payload: Payload, out: &mut Outbox) {
        let slots = self.held_parts(id);
        let blocks: usize =
            slots.iter().filter_map(|s| self.parts.get(*s)).map(|p| p.range.count as usize).sum();
        if slots.is_empty() {
            return; // Fenced or timed out meanwhile: the user has been told.
        }
        if payload.sums.len() != blocks || payload.data.len() != blocks * BLOCK_SIZE {
            self.end_reservation(now, id, Some(OpError::Content), out);
            return;
        }
        for slot in slots {
            let Some(part) = self.parts.get_mut(slot) else { continue };
            let Some(data) = slice(&payload, part.skipped_blocks, part.range) else { continue };
            part.content = Content::Write(data);
            self.route(now, slot, out);
        }
    }

    pub(crate) fn on_abandon(&mut self, now: Time, id: OpId, out: &mut Outbox) {
        self.end_reservation(now, id, None, out);
    }

    fn end_reservation(&mut self, now: Time, id: OpId, error: Option<OpError>, out: &mut Outbox) {
        let slots = self.held_parts(id);
        if let Some(op) = self.ops.get_mut(&id) {
            op.failed = error.or(op.failed);
        }
        for slot in slots {
            self.end_part(now, slot, out);
        }
    }

    /// The parts of a reservation whose turn has come.
    fn held_parts(&self, id: OpId) -> Vec<u16> {
        let turn =
            matches!(self.ops.get(&id).map(|op| &op.kind), Some(OpKind::Reserve { turns_left: 0 }));
        let held = |part: &Part| part.op == id && part.state == PartState::Held;
        self.parts.iter().filter(|(_, p)| turn && held(p)).map(|(slot, _)| slot).collect()
    }
}

/// Where a part lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    chunk: ChunkIndex,
    range: BlockRange,
    skipped_blocks: u32,
}

fn with(places: Vec<Place>, content: impl Fn(&Place) -> Content) -> Vec<(Place, Content)> {
    places.into_iter().map(|place| (place, content(&place))).collect()
}

/// Pieces of at most `blocks_max` blocks, none of which crosses a chunk border.
fn ranges(
    geometry: Geometry,
    first: u64,
    count: u32,
    blocks_max: u32,
) -> Result<Vec<Place>, OpError> {
    let mut places = Vec::new();
    for part in geometry.split(first, count).map_err(OpError::Range)? {
        for range in part.range.pieces(blocks_max) {
            if places.len() >= PARTS_PER_REQUEST_MAX {
                return Err(OpError::TooLarge);
            }
            let skipped_blocks = part.skipped_blocks + (range.first - part.range.first);
            places.push(Place { chunk: part.chunk, range, skipped_blocks });
        }
    }
    Ok(places)
}

fn write_parts(
    geometry: Geometry,
    first: u64,
    payload: Payload,
) -> Result<Vec<(Place, Content)>, OpError> {
    let count = u32::try_from(payload.sums.len()).map_err(|_| OpError::TooLarge)?;
    if payload.data.len() != payload.sums.len() * BLOCK_SIZE {
        return Err(OpError::Content);
    }
    let places = ranges(geometry, first, count, IO_BLOCKS_MAX)?;
    if let [place] = places.as_slice() {
        let data =
            BlockData { range: place.range, sums: Sums::Full(payload.sums), data: payload.data };
        return Ok(alloc::vec![(*place, Content::Write(data))]);
    }
    places
        .into_iter()
        .map(|place| {
            let data = slice(&payload, place.skipped_blocks, place.range);
            data.map(|data| (place, Content::Write(data))).ok_or(OpError::Content)
        })
        .collect()
}

fn slice(payload: &Payload, skipped: u32, range: BlockRange) -> Option<BlockData> {
    let from = usize::try_from(skipped).ok()?;
    let to = from + usize::try_from(range.count).ok()?;
    let sums = payload.sums.get(from..to)?.to_vec();
    let data = payload.data.slice(from * BLOCK_SIZE..to * BLOCK_SIZE);
    Some(BlockData { range, sums: Sums::Full(sums), data })
}
