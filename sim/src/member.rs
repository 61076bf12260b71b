//! A control-plane member of the simulation: the real member over simulated disks.

use crate::replace::address;
use ashlar_controlplane::member::{
    Input, Member, MemberDisks, MemberError, MemberOptions, Now, Output,
};
use ashlar_controlplane_core::sharing::PEERS_PER_NODE_MAX;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::disk::Disk;
use ashlar_env::disk::mem::{MemDisk, Survivors};
use ashlar_env::meta::MemStore;
use ashlar_log::LogOptions;
use ashlar_types::{Time, ZoneId};
use ashlar_zone_raft::{RaftOptions, Start};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Members of the zone.
pub(crate) const MEMBERS: u64 = 3;
/// One of so many next changes of a log is the one that power fails in.
const TEAR_WITHIN: u64 = 4;
/// Wall clock at the beginning of every run: any moment will do.
const WALL_MILLIS: u64 = 1_300_000_000_000;

/// One member.
#[derive(Debug)]
pub(crate) struct SimMember {
    id: u64,
    zone: ZoneId,
    /// Counts processes; events of an earlier one are void.
    pub(crate) life: u64,
    log: Arc<MemDisk>,
    snapshots: Arc<MemDisk>,
    meta: Arc<MemStore>,
    process: Option<Member>,
    /// Was added to the zone.
    joins: bool,
    /// Seconds that its wall clock goes wrong by.
    pub(crate) wall_wrong_seconds: i64,
}

impl SimMember {
    pub(crate) fn new(zone: ZoneId, id: u64) -> Self {
        Self {
            id,
            zone,
            life: 0,
            log: Arc::new(MemDisk::new()),
            snapshots: Arc::new(MemDisk::new()),
            meta: Arc::new(MemStore::new()),
            process: None,
            joins: false,
            wall_wrong_seconds: 0,
        }
    }

    /// One that was added to the zone.
    pub(crate) fn added(zone: ZoneId, id: u64) -> Self {
        Self { joins: true, ..Self::new(zone, id) }
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) const fn process(&self) -> Option<&Member> {
        self.process.as_ref()
    }

    /// Starts the process on what the disks hold.
    pub(crate) fn start(&mut self, seed: u64) -> Result<(), MemberError> {
        self.life += 1;
        let first = self.life == 1;
        let members = if self.joins { 0 } else { MEMBERS };
        let start = if first && self.joins { Start::Join } else { Start::bootstrap_if(first) };
        let options = MemberOptions {
            zone: self.zone,
            raft: RaftOptions {
                id: self.id,
                voters: (1..=members).collect(),
                start,
                heartbeat_ticks: 2,
                election_ticks: 6,
                // Small, so that segments are cut and recycled within a run.
                log: LogOptions { segment_bytes: 256 << 10, spare_segments: 1 },
            },
            addresses: (1..=members).map(|id| (id, address(id))).collect::<BTreeMap<_, _>>(),
            zone_secret: [7; 32],
            small_chunks: true,
            peers_per_node_max: PEERS_PER_NODE_MAX,
            compact_after: 40,
            keep_entries: 8,
        };
        let disks = MemberDisks {
            log: Arc::clone(&self.log) as Arc<dyn Disk>,
            snapshots: Arc::clone(&self.snapshots) as Arc<dyn Disk>,
            meta: self.meta.clone(),
        };
        let dice = |purpose| {
            let purpose = format!("member {} life {} {purpose}", self.id, self.life);
            Box::new(SeededDice::stream(seed, &purpose))
        };
        let (elections, ids) = (dice("elections"), dice("ids"));
        self.process = Some(Member::open(options, disks, elections, ids)?);
        Ok(())
    }

    /// A sector of what the log has synced turns to rubbish; false if there is none. The process
    /// must be down.
    pub(crate) fn rot_log(&mut self) -> bool {
        let names = self.log.list().unwrap_or_default();
        // Within the first records of each file: there are later ones, so this is no torn tail.
        let bytes = (4_096..4_608).step_by(16);
        let flip = |name: &String| bytes.clone().all(|at| self.log.flip(name, at).is_ok());
        names.iter().filter(|name| flip(name)).count() > 0
    }

    /// Nothing more finds room on its disk, or everything does again.
    pub(crate) fn fill_disk(&mut self, full: bool) {
        self.log.set_capacity(full.then_some(0));
        self.snapshots.set_capacity(full.then_some(0));
    }

    /// It opens no file any more, or does again.
    pub(crate) fn refuse_files(&self, refused: bool) {
        self.log.refuse_files(refused);
        self.snapshots.refuse_files(refused);
    }

    /// Power fails in the middle of one of the next writes of its log.
    pub(crate) fn tear_log(&self, dice: &mut SeededDice) {
        self.log.stop_after(1 + dice.below(TEAR_WITHIN));
    }

    /// The process dies; what was not synced may be lost, torn or kept. True if power failed in the
    /// middle of a write: then each file's last write ends within a sector.
    pub(crate) fn crash(&mut self, dice: &mut SeededDice) -> bool {
        self.process = None;
        let torn = self.log.is_powered_off();
        if torn {
            self.log.crash_with(Survivors::Torn, dice);
        } else {
            self.log.crash(dice);
        }
        self.snapshots.crash(dice);
        self.meta.crash();
        torn
    }

    /// Gives the process an input, if it runs.
    pub(crate) fn handle(
        &mut self,
        now: Time,
        input: Input,
        out: &mut Vec<Output>,
    ) -> Result<(), MemberError> {
        let Some(member) = &mut self.process else { return Ok(()) };
        let right = WALL_MILLIS + now.as_nanos() / 1_000_000;
        let wall_millis = right.saturating_add_signed(self.wall_wrong_seconds * 1_000);
        member.handle(Now { time: now, wall_millis }, input, out)
    }
}
