//! Commands as each version writes them: what is in a log is read by every later release.

use super::*;
use crate::command::{COMMAND_VERSION, Evidence, Place};

/// Version 6: replicas that are away with their store.
const VERSION_6: &str = "\
    06000900000000000000060200000061000000000000000100000000000000000000000000000000\
    00000003000000000000000001000000010000000000000000000000000000000100000000000000\
    02000000020000000000000000000000000000000100000000000000046100000000000000010000\
    000000000000000000000000000100000003000000000000000a0100000001000000000000000000\
    0000000000000100000000000000020000004d000000000000000000000000000000020000000200\
    00000000000000000000000000000100000000000000";

/// Version 7: what an operator states of an attachment.
const VERSION_7: &str = "\
    070009000000000000000e6100000000000000010000000000000000000000000000000300000000\
    00000003000000616461";

#[test]
fn statements_about_attachments_are_written_as_version_7_has_them() {
    let (volume, generation, by) = (volume_id(1), Generation(3), "ada".into());
    holds(VERSION_7, 7, Action::StateFenced { volume, generation, by });
}

/// Version 8: drain.
const VERSION_8: &str =
    "080009000000000000000f0105000000746f6b656e86b35174c4df1fc468733af8c9294e950300000001";

#[test]
fn a_drain_is_written_as_version_8_has_it() {
    let token = Some(token_use("token", "parameters"));
    holds(VERSION_8, 8, Action::Drain { token, node: NodeId(3), cancel: true });
}

/// Version 9: racks of nodes. Before, a node ended with its other stores.
const VERSION_9: &str = "\
    0900090000000000000000070000000700000000000000000000000000000001000000000000000b\
    0000003132372e312e312e373a310b0000003132372e322e312e373a31010000006b000000000000\
    000000000000000000020000007237";
const NODE_OF_VERSION_8: &str = "\
    0800090000000000000000070000000700000000000000000000000000000001000000000000000b\
    0000003132372e312e312e373a310b0000003132372e322e312e373a31010000006b000000000000\
    000000000000000000";

#[test]
fn a_node_is_written_as_version_9_has_it_and_read_as_version_8_had_it() {
    let stores = [StoreId(7), StoreId(107)].into();
    let node = NodeRecord { stores, rack: "r7".into(), ..record(7) };
    holds(VERSION_9, 9, Action::RegisterNode { node: node.clone() });
    let node = NodeRecord { rack: String::new(), ..node };
    holds(NODE_OF_VERSION_8, 8, Action::RegisterNode { node });
}

/// Version 9: how long requests of a volume wait. Before, its places were the last that was said.
const CREATION_OF_VERSION_9: &str = "\
    09000900000000000000010061000000000000000100000000000000000000000000000001000000\
    76000000040000000000000004000000000201010000000200000001000000020000000100000002\
    00000001000000000000000000000000000000020000000000000000000000000000003075000000\
    000000";
const CREATION_OF_VERSION_8: &str = "\
    08000900000000000000010061000000000000000100000000000000000000000000000001000000\
    76000000040000000000000004000000000201010000000200000001000000020000000100000002\
    0000000100000000000000000000000000000002000000000000000000000000000000";

#[test]
fn a_volume_is_written_as_version_9_has_it_and_read_as_version_8_had_it() {
    let place = |node: u32| Place { node: NodeId(node), store: StoreId(node.into()) };
    let creation = |millis| Action::CreateVolume {
        token: None,
        volume: volume_id(1),
        name: "v".into(),
        geometry: Geometry::new(64 * MIB, 64 * MIB).unwrap(),
        copies_wanted: 2,
        copies_min: 1,
        placement: crate::command::Placement([[place(1), place(2)].into()].into()),
        error_after: ErrorAfter { millis },
    };
    holds(CREATION_OF_VERSION_9, 9, creation(30_000));
    holds(CREATION_OF_VERSION_8, 8, creation(0));
}

/// Version 10: growth.
const GROWTH_OF_VERSION_10: &str = "\
    0a000900000000000000100061000000000000000100000000000000000000000000000000000008\
    00000000010000000200000001000000020000000100000002000000010000000000000000000000\
    0000000002000000000000000000000000000000";
const END_OF_GROWTH_OF_VERSION_10: &str = "\
    0a000900000000000000110100000061000000000000000100000000000000000000000000000000\
    00000800000000";

#[test]
fn a_growth_is_written_as_version_10_has_it() {
    let place = |node: u32| Place { node: NodeId(node), store: StoreId(node.into()) };
    let placement = crate::command::Placement([[place(1), place(2)].into()].into());
    let (volume, size_bytes) = (volume_id(1), 128 * MIB);
    let growth = Action::GrowVolume { token: None, volume, size_bytes, placement };
    holds(GROWTH_OF_VERSION_10, 10, growth);
    let grown = [(volume, size_bytes)].into();
    holds(END_OF_GROWTH_OF_VERSION_10, 10, Action::FinishGrowth { grown });
}

#[test]
fn replicas_that_are_away_are_written_as_version_6_has_them() {
    let replica = |node: u32| ReplicaId {
        node: NodeId(node),
        store: StoreId(u128::from(node)),
        incarnation: ashlar_types::Incarnation(1),
    };
    let (proposer, away) = (replica(1), replica(2));
    let evidence = Evidence::StoreAway {};
    let place = Place { node: NodeId(2), store: StoreId(77) };
    let changes = [
        (0, ChangeKind::RemoveSecondary { proposer, replica: away, evidence }),
        (1, ChangeKind::AddLearnerInstead { proposer, place, away }),
    ];
    let changes = changes
        .map(|(index, kind)| ChunkChange { chunk: chunk(index), epoch: Epoch(3), kind })
        .into();
    holds(VERSION_6, 6, Action::Change { changes });
}

/// Whether the bytes are read as this command, and, while their version is the newest, written so.
fn holds(fixture: &str, version: u16, action: Action) {
    let command = Command { at_millis: 9, action };
    let written: String = command.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let digit = |at: usize| u8::from_str_radix(&fixture[2 * at..2 * at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..fixture.len() / 2).map(digit).collect();
    assert_eq!(Command::decode(&bytes).as_ref(), Ok(&command), "{written}");
    if COMMAND_VERSION == version {
        assert_eq!(written, fixture);
    }
}
