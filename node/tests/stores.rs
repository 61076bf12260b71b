//! Nodes with several stores, each a disk: what fails with one of them, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod zone;

use ashlar_node::RunError;
use ashlar_node::store::OpenError;
use ashlar_types::message::cluster::{Change, RemovalReason};
use ashlar_types::{BlockRange, ChunkConfig, Epoch, NodeId};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use zone::client::filled;
use zone::{Node, Zone, lone_config, until};

/// A file system of its own that can be filled to the brim; taken off at the end.
struct Mount(PathBuf);

impl Mount {
    /// `None` if this process may not mount.
    fn tmpfs(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m");
        let arguments = ["-t", "tmpfs", "-o", &size, "none"];
        let mounted = Command::new("mount").args(arguments).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    /// Not a byte is left.
    fn fill(&self) {
        let mut file =
            std::fs::File::options().append(true).create(true).open(self.filler()).unwrap();
        for size in [1 << 20, 4096] {
            let bytes = vec![1; size];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// The disk under a store's journal is gone: the next write to it fails.
fn break_journal(mount: &Mount, store: &Path) {
    mount.fill();
    let journal = store.join("journal");
    let bytes = std::fs::metadata(&journal).unwrap().len();
    let punched = Command::new("fallocate")
        .args(["--punch-hole", "--offset", "0", "--length", &bytes.to_string()])
        .arg(&journal)
        .status();
    assert!(punched.unwrap().success());
    mount.fill();
}

#[test]
fn a_node_goes_on_without_a_store_that_fails_and_hurts_no_replica_of_the_other() {
    let disks = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::tmpfs(&disks.path().join("2/two"), 320) else {
        assert!(std::env::var_os("CI").is_none(), "cannot mount");
        eprintln!("SKIP: this test mounts a file system");
        return;
    };
    let root = disks.path().display();
    let stores = format!("stores = [\"{root}/{{node}}/one\", \"{root}/{{node}}/two/store\"]");
    let mut zone = Zone::start_with(21, 3, &stores);
    let start = zone.registration(2).start;
    let ids = zone.registration(2).stores;
    assert_eq!(ids.len(), 2);
    // Chunk 0 on node 2's first disk, chunk 1 on its second.
    let first = zone.members(0, 1, &[1, 2, 3]);
    let mut second = zone.members(1, 1, &[1, 2, 3]);
    second.in_sync[1] = zone.replica_on(2, 1);
    zone.configure(&first);
    zone.configure(&second);
    let mut client = zone.client(1);
    client.must_write_to(0, 1, filled(0, 2, 1));
    client.must_write_to(1, 1, filled(0, 2, 2));

    break_journal(&mount, &disks.path().join("2/two/store"));
    // This write cannot become durable there; it is done once the replica has left.
    let waiting = client.write_to(1, 1, filled(4, 1, 3));
    until("the primary to hear that the replica is gone", || {
        zone.control().proposals().into_iter().find(|proposal| {
            let gone = RemovalReason::ReportedGone;
            let wanted = Change::RemoveSecondary { replica: second.in_sync[1], reason: gone };
            proposal.chunk == second.chunk && proposal.change == wanted
        })
    });
    until("the node to introduce itself without the store", || {
        (zone.registration(2).stores == ids[..1]).then_some(())
    });
    assert_eq!(zone.registration(2).start, start, "the process has gone on");
    let removed = second.in_sync[1];
    let second = ChunkConfig {
        epoch: Epoch(2),
        in_sync: vec![second.in_sync[0], second.in_sync[2]],
        stale: vec![(removed, Default::default())],
        ..second
    };
    zone.configure(&second);
    client.must_finish(waiting);
    client.must_write_to(1, 2, filled(5, 1, 4));
    // The other disk never noticed: every write of chunk 0 is on node 2 as well.
    client.must_write_to(0, 1, filled(9, 1, 5));
    let heartbeat = until("a heartbeat of what is left", || {
        let heartbeat = zone.control().heartbeat(NodeId(2))?;
        (heartbeat.stores.len() == 1).then_some(heartbeat)
    });
    assert_eq!(heartbeat.stores[0].store, ids[0]);

    // With the disk exchanged it comes back with two: the first is what it was, the other is new.
    zone.stop_node(2);
    std::fs::remove_dir_all(disks.path().join("2/two/store")).unwrap();
    std::fs::remove_file(mount.filler()).unwrap();
    zone.start_node(2);
    let back = until("the node with both disks", || {
        let registration = zone.registration(2);
        (registration.stores.len() == 2).then_some(registration)
    });
    assert_eq!(back.stores[0], ids[0]);
    assert_ne!(back.stores[1], ids[1], "an empty disk is another store");
    assert!(back.start > start);
    client.must_write_to(0, 1, filled(10, 1, 6));
    assert_eq!(client.must_read(1, BlockRange::new(9, 2)), [5, 6]);
}

#[test]
fn what_a_store_is_not_is_refused_by_name_and_a_broken_disk_is_gone_without() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let control = zone::control::ControlPlane::start();
    let config = |stores: &[&PathBuf]| {
        let config = lone_config(22, folder.path(), &[control.address()]);
        config.with_stores(stores.iter().map(|store| (*store).clone()).collect()).unwrap()
    };
    let registered = || until("a registration", || control.registration(NodeId(1)));
    let mut node = Node::start(config(&[&one, &two]));
    let both = until("both stores", || {
        let registration = registered();
        (registration.stores.len() == 2).then_some(registration)
    });
    node.stop().unwrap();

    // Another node's.
    let mut foreign = config(&[&one, &two]);
    foreign.node = NodeId(9);
    let refused = Node::start(foreign).join();
    let foreign = |cause: &OpenError| matches!(cause, OpenError::Foreign { .. });
    assert!(
        matches!(&refused, Err(RunError::Store { cause, .. }) if foreign(cause)),
        "{refused:?}"
    );

    // A copy of a disk beside it.
    let copy = folder.path().join("copy");
    let copied = Command::new("cp").arg("-a").args([&one, &copy]).status().unwrap();
    assert!(copied.success());
    let refused = Node::start(config(&[&one, &copy, &two])).join();
    let Err(RunError::SameStore(twins)) = refused else { panic!("{refused:?}") };
    assert_eq!(twins.store, both.stores[0]);
    assert!(twins.one.ends_with("one") && twins.other.ends_with("copy"), "{twins:?}");

    // The disks in another order are the same stores, and all of them start higher than before.
    let mut node = Node::start(config(&[&two, &one]));
    let turned = until("a later start", || {
        let registration = registered();
        (registration.start > both.start).then_some(registration)
    });
    assert_eq!(turned.stores, [both.stores[1], both.stores[0]]);
    node.stop().unwrap();

    // One store alone for a few starts; then both again: no number is used twice.
    let mut last = turned.start;
    for stores in [vec![&one], vec![&one], vec![&one, &two], vec![&two]] {
        let mut node = Node::start(config(&stores));
        let next = until("a later start", || {
            let registration = registered();
            (registration.start > last).then_some(registration)
        });
        assert_eq!(next.stores.len(), stores.len());
        last = next.start;
        node.stop().unwrap();
    }

    // A disk that cannot be read: the node starts with the other one.
    std::fs::remove_file(two.join("super")).unwrap();
    std::fs::create_dir(two.join("super")).unwrap();
    let mut node = Node::start(config(&[&one, &two]));
    let left = until("a start without the broken disk", || {
        let registration = registered();
        (registration.start > last).then_some(registration)
    });
    assert_eq!(left.stores, [both.stores[0]]);
    node.stop().unwrap();
    // With no disk at all there is nothing to start with.
    let refused = Node::start(config(&[&two])).join();
    assert!(matches!(refused, Err(RunError::Store { .. })), "{refused:?}");
}
