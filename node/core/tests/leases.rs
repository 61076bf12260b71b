//! Read leases, each rule on one node alone; what several nodes do together is judged in `sim/`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ashlar_node_core::Input;
use ashlar_types::message::cluster::ControlDown;
use ashlar_types::message::data::{DataMessage, Stamp};
use ashlar_types::{
    BlockRange, ChunkConfig, ChunkId, Epoch, Lsn, NodeId, RequestId, StartNumber, Time,
};
use common::*;
use std::time::Duration;

type Sent = Vec<(NodeId, DataMessage)>;

fn read(id: u64, epoch: u64) -> DataMessage {
    let stamp: Stamp = stamp(epoch);
    DataMessage::Read { id: RequestId(id), stamp, range: BlockRange::new(0, 1) }
}

fn is_read(sent: &Sent) -> bool {
    sent.iter().any(|(_, m)| matches!(m, DataMessage::ReadDone { .. }))
}

fn asks(sent: &Sent) -> bool {
    sent.iter().any(|(_, m)| matches!(m, DataMessage::Confirm { .. }))
}

/// Number of the beat among what was sent, and what it says of exceptions to `peer`.
fn beat_to(sent: &Sent, peer: u32) -> Option<(u64, Vec<(ChunkId, Epoch)>)> {
    sent.iter().find_map(|(to, message)| match message {
        DataMessage::Beat { number, adopted, .. } if *to == NodeId(peer) => {
            Some((*number, adopted.clone()))
        }
        _ => None,
    })
}

fn grant(number: u64, start: u64, except: &[(ChunkId, Epoch)]) -> DataMessage {
    grant_at(number, start, Time::ZERO, except)
}

/// The same by a granter whose clock shows `clock`.
fn grant_at(number: u64, start: u64, clock: Time, except: &[(ChunkId, Epoch)]) -> DataMessage {
    let except = except.to_vec();
    DataMessage::BeatReply { number, start: StartNumber(start), clock, granted: true, except }
}

/// A serving primary, 150 ms after its last beat; gives that beat's number.
fn beating() -> (Hands, u64) {
    let mut hands = serving(config(1));
    let sent = hands.tick_after(Duration::from_millis(150));
    let (number, _) = beat_to(&sent, 2).unwrap();
    (hands, number)
}

/// The same with leases of both secondaries.
fn leased() -> (Hands, u64) {
    let (mut hands, number) = beating();
    hands.peer_says(2, grant(number, 1, &[]));
    hands.peer_says(3, grant(number, 1, &[]));
    (hands, number)
}

#[test]
fn a_leased_primary_reads_without_asking_and_an_unleased_one_asks() {
    let (mut hands, number) = beating();
    hands.peer_says(2, grant(number, 1, &[]));
    let sent = hands.client_says(read(1, 1));
    assert!(asks(&sent), "one of two leases is none");
    assert!(!is_read(&hands.answer_reads(7)));
    // The other lease comes while the question is open: the read needs no answer any more.
    hands.peer_says(3, grant(number, 1, &[]));
    assert!(is_read(&hands.tick_after(Duration::from_millis(10))));
    let sent = hands.client_says(read(2, 1));
    assert!(!asks(&sent));
    assert!(is_read(&hands.answer_reads(7)));
}

#[test]
fn a_lease_counts_from_the_sending_of_its_beat_and_is_looked_at_after_the_content_was_read() {
    let (mut hands, _) = leased();
    hands.client_says(read(1, 1));
    hands.now = hands.now + Duration::from_millis(399);
    assert!(is_read(&hands.answer_reads(7)));
    let (mut hands, number) = leased();
    hands.client_says(read(1, 1));
    hands.now = hands.now + Duration::from_millis(400);
    let sent = hands.answer_reads(7);
    assert!(!is_read(&sent), "a pause between the request and the reply went unnoticed");
    assert!(asks(&sent), "a read without a proof must ask for one");
    // A reply that was long on its way renews from the sending of the beat, not from now.
    hands.peer_says(2, grant(number, 1, &[]));
    hands.peer_says(3, grant(number, 1, &[]));
    let sent = hands.feed(Input::BatchEnd);
    assert!(!is_read(&sent));
}

#[test]
fn only_the_answer_to_a_beat_that_was_sent_renews() {
    let (mut hands, number) = beating();
    for peer in [2, 3] {
        hands.peer_says(peer, grant(number + 1, 1, &[]));
    }
    assert!(asks(&hands.client_says(read(1, 1))));
}

#[test]
fn a_lease_of_a_process_that_has_not_acknowledged_the_term_covers_nothing() {
    let (mut hands, number) = beating();
    hands.peer_says(2, grant(number, 1, &[]));
    hands.peer_says(3, grant(number, 2, &[]));
    assert!(asks(&hands.client_says(read(1, 1))), "node 3 restarted since it took part");
    let again = DataMessage::MirrorAck {
        chunk: chunk(),
        epoch: Epoch(1),
        lsn: Lsn::opening(term(1, 1)),
        start: StartNumber(2),
        fill: None,
    };
    hands.peer_says(3, again);
    assert!(!asks(&hands.client_says(read(2, 1))));
}

#[test]
fn an_excepted_chunk_is_not_covered_until_its_epoch_is_adopted_and_said_so() {
    let (mut hands, number) = leased();
    hands.peer_says(3, grant(number, 1, &[(chunk(), Epoch(2))]));
    // The answer to the same beat over the other network, sent before: it brings nothing back.
    hands.peer_says(3, grant(number, 1, &[]));
    assert!(asks(&hands.client_says(read(1, 1))));
    let sent = hands.tick_after(Duration::from_millis(150));
    assert_eq!(beat_to(&sent, 3).unwrap().1, [], "told of an epoch that is not adopted here");
    hands.feed(order(ControlDown::Configs(vec![config(2)])));
    let sent = hands.tick_after(Duration::from_millis(150));
    let (number, told) = beat_to(&sent, 3).unwrap();
    assert_eq!(told, [(chunk(), Epoch(2))]);
    hands.peer_says(2, grant(number, 1, &[]));
    hands.peer_says(3, grant(number, 1, &[]));
    assert!(!asks(&hands.client_says(read(2, 2))));
}

/// Node 3 is primary from this epoch on, with 2.
fn taken_from_1(epoch: u64) -> ChunkConfig {
    ChunkConfig {
        elected: Epoch(epoch),
        primary: replica(3),
        in_sync: vec![replica(3), replica(2)],
        stale: vec![(replica(1), Default::default())],
        ..config(epoch)
    }
}

fn collect(config: ChunkConfig) -> DataMessage {
    let of = term(config.elected.0, 1);
    DataMessage::Collect { config: Box::new(config), term: of }
}

fn confirms(sent: &Sent) -> bool {
    sent.iter().any(|(_, m)| matches!(m, DataMessage::Collected { .. }))
}

fn granted(sent: &Sent) -> Option<Vec<(ChunkId, Epoch)>> {
    sent.iter().find_map(|(_, message)| match message {
        DataMessage::BeatReply { granted: true, except, .. } => Some(except.clone()),
        _ => None,
    })
}

/// Node 2 follows node 1 and has been up for long enough that no earlier grant can stand.
fn settled_member() -> Hands {
    let (mut hands, _) = following();
    hands.tick_after(Duration::from_secs(1));
    hands
}

#[test]
fn an_adoption_that_takes_a_chunk_is_confirmed_only_when_the_lease_has_run_out() {
    let mut hands = settled_member();
    let sent = hands.peer_says(1, beat());
    assert_eq!(granted(&sent), Some(vec![]));
    hands.peer_says(3, collect(taken_from_1(2)));
    hands.sync();
    assert!(!confirms(&hands.tick_after(Duration::from_millis(499))));
    assert!(confirms(&hands.tick_after(Duration::from_millis(1))));
}

#[test]
fn without_a_lease_given_an_adoption_is_confirmed_at_once() {
    let mut hands = settled_member();
    hands.peer_says(3, collect(taken_from_1(2)));
    assert!(confirms(&hands.sync()));
}

#[test]
fn a_chunk_that_was_taken_is_excepted_until_the_holder_has_adopted_its_epoch() {
    let mut hands = settled_member();
    hands.peer_says(3, collect(taken_from_1(2)));
    hands.sync();
    let beat = |adopted: &[(ChunkId, Epoch)]| DataMessage::Beat {
        number: 1,
        adopted: adopted.to_vec(),
        short_of_space: vec![],
        has_control: false,
        behind_millis: 0,
    };
    let except = vec![(chunk(), Epoch(2))];
    assert_eq!(granted(&hands.peer_says(1, beat(&[]))), Some(except.clone()));
    assert_eq!(granted(&hands.peer_says(1, beat(&[(chunk(), Default::default())]))), Some(except));
    assert_eq!(granted(&hands.peer_says(1, beat(&[(chunk(), Epoch(2))]))), Some(vec![]));
}

#[test]
fn after_a_restart_a_whole_grant_is_waited_for() {
    let mut hands = settled_member();
    hands.peer_says(1, beat());
    // The adoption is durable, its confirmation is not out: the process ends.
    hands.feed(order(ControlDown::Configs(vec![taken_from_1(2)])));
    hands.sync();
    let (mut hands, _) = Hands::new(2, 2, hands.crash());
    hands.link_up(3, 1);
    hands.peer_says(3, collect(taken_from_1(2)));
    hands.sync();
    assert!(!confirms(&hands.tick_after(Duration::from_millis(499))));
    assert!(confirms(&hands.tick_after(Duration::from_millis(1))));
}

#[test]
fn a_new_primary_waits_for_the_lease_that_its_own_node_gave() {
    let mut hands = settled_member();
    hands.peer_says(1, beat());
    let alone = ChunkConfig {
        elected: Epoch(2),
        primary: replica(2),
        in_sync: vec![replica(2)],
        stale: vec![(replica(1), Default::default()), (replica(3), Default::default())],
        ..config(2)
    };
    hands.feed(order(ControlDown::Configs(vec![alone])));
    let opened = |hands: &Hands| {
        let last = hands.core.durable(chunk()).unwrap().last;
        last == Lsn::opening(term(2, 1))
    };
    hands.sync();
    hands.tick_after(Duration::from_millis(499));
    assert!(!opened(&hands), "opened while the former primary may read");
    hands.tick_after(Duration::from_millis(1));
    assert!(opened(&hands));
}

/// Whether a primary reads by its leases after seven seconds of beats whose answers take `way` each
/// way, when node 3's clock shows `percent` of what this node's shows.
fn reads_by_leases(percent: u64, way: Duration) -> bool {
    let mut hands = serving(config(1));
    let begun = hands.now;
    hands.now = hands.now + way * 2;
    for _ in 0..47 {
        let sent = hands.tick_after(Duration::from_millis(150) - way * 2);
        let (number, _) = beat_to(&sent, 2).unwrap();
        hands.now = hands.now + way;
        let ours = hands.now.since(begun);
        let theirs = Time::ZERO + ours * u32::try_from(percent).unwrap() / 100;
        hands.now = hands.now + way;
        hands.peer_says(2, grant_at(number, 1, Time::ZERO + ours, &[]));
        hands.peer_says(3, grant_at(number, 1, theirs, &[]));
    }
    !asks(&hands.client_says(read(1, 1)))
}

#[test]
fn leases_of_a_granter_whose_clock_runs_ahead_are_not_used() {
    for way in [0, 40].map(Duration::from_millis) {
        assert!(reads_by_leases(100, way));
        assert!(reads_by_leases(50, way), "a slow granter binds itself for longer");
        assert!(reads_by_leases(122, way), "within what leases allow for");
        assert!(!reads_by_leases(130, way), "{way:?}");
    }
}

#[test]
fn what_was_erased_is_excepted_until_its_primary_has_gone_on() {
    let (mut hands, _) = following();
    let excepted = |sent: &Sent| {
        sent.iter().find_map(|(_, message)| match message {
            DataMessage::BeatReply { except, .. } => Some(except.clone()),
            _ => None,
        })
    };
    assert_eq!(excepted(&hands.peer_says(1, beat())), Some(vec![]));
    hands.feed(order(ControlDown::Erase(vec![(chunk(), replica(2))])));
    hands.sync();
    assert!(hands.core.durable(chunk()).is_none());
    assert_eq!(excepted(&hands.peer_says(1, beat())), Some(vec![(chunk(), Epoch(2))]));
}
