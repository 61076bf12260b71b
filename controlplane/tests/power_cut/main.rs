//! Power cuts under a member of a control plane on a real file system: what it has committed is
//! there after one, and it starts again.
//!
//! A zone of one member works in a folder on a file system in an image in memory: Raft's log,
//! snapshots taken every few entries, applied state in sled. At a random moment its process is
//! stopped, the image as it is then is copied, the copy mounted and a member started on it. What sat in
//! the page cache is lost. A control without the fdatasync of its log's segments must lose, or the harness
//! shows nothing.
//!
//! Needs the right to mount a loop device; without it the test says so and judges nothing. 14 cuts
//! (ext4 and xfs in turn), 250 with `ASHLAR_NIGHTLY` set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test"
)]

mod image;

use ashlar_controlplane::member::{
    Input, Member, MemberDisks, MemberOptions, Now, Output, SessionKey, TICK_MILLIS,
};
use ashlar_controlplane_core::sharing::PEERS_PER_NODE_MAX;
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_env::disk::{Disk, RealDisk, Unsynced};
use ashlar_env::meta::{SledOptions, SledStore, SledTuning};
use ashlar_types::message::cluster::{CLUSTER_PROTOCOL_VERSION, Registration};
use ashlar_types::{NodeId, StartNumber, StoreId, Time};
use ashlar_zone_raft::{RaftOptions, Start};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SUBJECT: &str = "ASHLAR_MEMBER_CUT_SUBJECT";
const FOLDER: &str = "ASHLAR_MEMBER_CUT_FOLDER";

#[test]
fn a_member_keeps_what_it_has_committed() {
    let lost = image::cut_often("member");
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_member_without_the_sync_of_its_log_loses_something() {
    let lost = image::cut_until_lost("member without log");
    assert!(lost.is_some() || !image::is_possible(), "the harness cuts no power");
}

#[test]
fn a_member_whose_log_goes_through_the_page_cache_keeps_as_much() {
    let lost = image::cut_until_lost("member through the page cache");
    assert_eq!(lost, None);
}

/// Copies a folder with everything in it.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The metadata store is a cache: flipped bits, a cut-off file, nothing left. The log was cut behind
/// snapshots meanwhile, so that neither alone leads to the state.
#[test]
fn a_member_rebuilds_a_damaged_metadata_store_from_snapshot_and_log() {
    const NODES: u32 = 130;
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let mut zone = Zone::open(&whole, "member").unwrap();
    zone.serve();
    (1..=NODES).for_each(|n| zone.register(n));
    zone.member.close().unwrap();
    drop(zone);
    let flips = if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 200 } else { 12 };
    let mut dice = SeededDice::new(12);
    for case in 0..flips + 2 {
        let folder = dir.path().join(format!("case {case}"));
        copy_folder(&whole, &folder);
        let meta = folder.join("meta");
        let mut bytes = std::fs::read(meta.join("db")).unwrap();
        match case {
            0 => std::fs::remove_dir_all(&meta).unwrap(),
            1 => bytes.truncate(bytes.len() / 2),
            _ => {
                let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
                let at = usize::try_from(dice.below(used as u64)).unwrap();
                *bytes.get_mut(at).unwrap() ^= 1 << dice.below(8);
            }
        }
        if case > 0 {
            std::fs::write(meta.join("db"), &bytes).unwrap();
        }
        assert_eq!(find(&folder, NODES), Ok(()), "case {case}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// The working process: this test does nothing unless the harness starts it.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let subject = std::env::var(SUBJECT).unwrap();
    let mut zone = Zone::open(&PathBuf::from(folder), &subject).unwrap();
    zone.serve();
    for n in 1.. {
        zone.register(n);
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {n}").and_then(|()| out.flush()).unwrap();
    }
}

/// Whether a member on this folder knows everything up to `acknowledged`.
fn find(folder: &Path, acknowledged: u32) -> Result<(), String> {
    let mut zone = Zone::open(folder, "member")?;
    zone.serve();
    match (1..=acknowledged).find(|n| zone.member.state().node(NodeId(*n)).is_none()) {
        Some(n) => Err(format!("{n} of {acknowledged} is missing")),
        None => Ok(()),
    }
}

/// A zone of one member, driven by hand.
struct Zone {
    member: Member,
    millis: u64,
}

impl Zone {
    fn open(folder: &Path, subject: &str) -> Result<Self, String> {
        let disk = |name: &str| -> Arc<dyn Disk> {
            let folder = folder.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            let disk = Arc::new(RealDisk::open(&folder).unwrap());
            match (subject, name) {
                ("member without log", "log") => Arc::new(Unsynced::files(disk, "")),
                ("member through the page cache", "log") => Arc::new(Unsynced::none(disk)),
                _as_it_is => disk,
            }
        };
        let new = !folder.join("log").exists();
        let options = MemberOptions {
            zone: "a".parse().unwrap(),
            raft: RaftOptions {
                id: 1,
                voters: vec![1],
                start: Start::bootstrap_if(new),
                heartbeat_ticks: 2,
                election_ticks: 10,
                log: ashlar_log::LogOptions { segment_bytes: 256 << 10, spare_segments: 1 },
            },
            addresses: BTreeMap::from([(1, "127.0.0.1:1".to_owned())]),
            zone_secret: [7; 32],
            small_chunks: false,
            peers_per_node_max: PEERS_PER_NODE_MAX,
            compact_after: 40,
            keep_entries: 8,
        };
        let meta = SledOptions { folder: folder.join("meta"), tuning: SledTuning::default() };
        let (meta, _) = SledStore::open(&meta).map_err(|error| error.to_string())?;
        let disks =
            MemberDisks { log: disk("log"), snapshots: disk("snapshots"), meta: Arc::new(meta) };
        let dice = || Box::new(SeededDice::system());
        let member =
            Member::open(options, disks, dice(), dice()).map_err(|error| error.to_string())?;
        // The parts of the folder are entries of the folder itself.
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).unwrap();
        Ok(Self { member, millis: 1_000 })
    }

    fn feed(&mut self, input: Input) -> Vec<Output> {
        let now = Now { time: Time::from_millis(self.millis), wall_millis: self.millis };
        let mut out = Vec::new();
        self.member.handle(now, input, &mut out).unwrap();
        out
    }

    fn serve(&mut self) {
        for _ in 0..1_000 {
            if self.member.is_serving() {
                return;
            }
            self.millis += TICK_MILLIS;
            self.feed(Input::Tick);
        }
        panic!("the only member never leads");
    }

    /// Commits that there is a node of this number.
    fn register(&mut self, n: u32) {
        let session = SessionKey(n.into());
        let [_, a, b, c] = n.to_be_bytes();
        let registration = Registration {
            version: CLUSTER_PROTOCOL_VERSION,
            zone: "a".parse().unwrap(),
            node: NodeId(n),
            stores: vec![StoreId(n.into())],
            start: StartNumber(1),
            primary_address: format!("10.{a}.{b}.{c}:1"),
            replication_address: format!("10.{a}.{b}.{c}:2"),
            rack: String::new(),
        };
        self.feed(Input::NodeOpened { session, registration });
        for _ in 0..100 {
            if self.member.state().node(NodeId(n)).is_some() {
                self.feed(Input::NodeClosed { session });
                return;
            }
            self.millis += TICK_MILLIS;
            self.feed(Input::Tick);
        }
        panic!("node {n} is never registered");
    }
}
