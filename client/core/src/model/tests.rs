//! The machine against the model, and against changed copies of itself that must fail.

use super::judge::{User, fill};
use super::zone::{CHUNKS, Zone, config};
use crate::{Done, Effect, Fence, Input, OpError, OpId, Outbox, Request, WaitPolicy};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use ashlar_types::message::data::{DataMessage, Refusal};
use ashlar_types::{Generation, Geometry, NodeId, SessionId, Time};
use core::time::Duration;

/// Which rule of the machine is switched off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    OverlapOrder,
}

fn run(seed: u64, broken: Broken) -> Zone {
    let mut zone = Zone::new(seed, WaitPolicy::Wait);
    for chunk in &mut zone.core.chunks {
        chunk.order.broken = broken == Broken::OverlapOrder;
    }
    let mut user = User::new();
    for _ in 0..3_000 {
        if user.open_count() < 24 && zone.rng.chance(40) {
            user.submit(&mut zone);
        }
        zone.step();
        user.take_answers(&mut zone);
    }
    zone.calm = true;
    // Answers that were dropped without a word need one reset of the silent connection.
    for _ in 0..40_000 {
        if user.is_done() {
            break;
        }
        zone.step();
        user.take_answers(&mut zone);
    }
    assert!(user.is_done(), "requests are stuck: {:?}", zone.core.status());
    assert!(user.errors.is_empty(), "errors reached the user: {:?}", user.errors);
    assert!(user.reads > 50);
    assert!(zone.core.is_idle());
    user.judge_end(&zone);
    zone
}

#[test]
fn no_acknowledged_write_is_lost_or_undone_whatever_the_nodes_do() {
    for seed in 0..60 {
        run(seed, Broken::Nothing);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(7, Broken::Nothing).sent, run(7, Broken::Nothing).sent);
}

#[test]
#[should_panic(expected = "block")]
fn without_the_order_of_overlapping_writes_a_resend_undoes_a_later_write() {
    for seed in 0..60 {
        run(seed, Broken::OverlapOrder);
    }
}

/// One message to one node, waited for.
fn first_sent(zone: &mut Zone) -> (NodeId, SessionId, DataMessage) {
    let mut out = Outbox::new();
    let submit =
        Input::Submit { op: OpId(1), request: Request::Write { first: 0, payload: fill(9, 1) } };
    zone.core.handle(zone.now, submit, &mut out);
    let volume = zone.core.settings.volume;
    let configs = (0..CHUNKS).map(|i| config(volume, i)).collect();
    zone.core.handle(zone.now, Input::Map { configs }, &mut out);
    let links: Vec<_> = out
        .drain(..)
        .filter_map(|e| match e {
            Effect::Connect { node, session } => Some((node, session)),
            _ => None,
        })
        .collect();
    for (node, session) in links {
        zone.core.handle(zone.now, Input::LinkUp { node, session }, &mut out);
    }
    out.into_iter()
        .find_map(|e| match e {
            Effect::Send { node, session, message: message @ DataMessage::Write { .. } } => {
                Some((node, session, message))
            }
            _ => None,
        })
        .expect("the write is sent once the link is up")
}

fn write_id(message: &DataMessage) -> ashlar_types::RequestId {
    match message {
        DataMessage::Write { id, .. } => *id,
        _ => panic!("not a write"),
    }
}

fn results(out: &Outbox) -> Vec<Result<Done, OpError>> {
    out.iter()
        .filter_map(|e| match e {
            Effect::Complete { result, .. } => Some(result.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_newer_generation_ends_everything_for_good() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let (node, session, message) = first_sent(&mut zone);
    let mut out = Outbox::new();
    zone.core.handle(zone.now, Input::Submit { op: OpId(2), request: Request::Flush }, &mut out);
    let refusal = Refusal::WrongGeneration { current: Generation(4) };
    let message = DataMessage::Refused { id: write_id(&message), refusal };
    zone.core.handle(zone.now, Input::Message { node, session, message }, &mut out);
    let fence = Fence::Generation { current: Generation(4), ours: Generation(3) };
    assert_eq!(results(&out), vec![Err(OpError::Fenced(fence)); 2]);
    assert!(out.iter().any(|e| matches!(e, Effect::Disconnect { .. })));
    out.clear();
    let read = Request::Read { first: 0, count: 1 };
    zone.core.handle(zone.now, Input::Submit { op: OpId(3), request: read }, &mut out);
    assert_eq!(results(&out), [Err(OpError::Fenced(fence))]);
    assert_eq!(zone.core.next_wake(zone.now), None);
}

#[test]
fn a_configuration_of_a_newer_generation_fences_too() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    first_sent(&mut zone);
    let mut newer = config(zone.core.settings.volume, 1);
    newer.generation = Generation(9);
    newer.epoch = newer.epoch.next();
    let mut out = Outbox::new();
    zone.core.handle(zone.now, Input::Map { configs: vec![newer] }, &mut out);
    assert!(matches!(results(&out)[..], [Err(OpError::Fenced(Fence::Generation { .. }))]));
}

#[test]
fn an_answer_on_an_ended_connection_means_nothing() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let (node, session, message) = first_sent(&mut zone);
    let mut out = Outbox::new();
    zone.core.handle(zone.now, Input::LinkDown { node, session }, &mut out);
    let late = DataMessage::WriteDone { id: write_id(&message) };
    zone.core.handle(zone.now, Input::Message { node, session, message: late }, &mut out);
    assert!(results(&out).is_empty());
}

#[test]
fn an_answer_of_the_wrong_kind_ends_the_connection_and_the_request_is_sent_again() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let (node, session, message) = first_sent(&mut zone);
    let data = ashlar_types::BlockData::holes(ashlar_types::BlockRange::new(0, 1));
    let wrong = DataMessage::ReadDone { id: write_id(&message), data };
    let mut out = Outbox::new();
    zone.core.handle(zone.now, Input::Message { node, session, message: wrong }, &mut out);
    assert!(results(&out).is_empty());
    assert!(
        out.iter().any(|e| matches!(e, Effect::Disconnect { session: s, .. } if *s == session))
    );
    zone.now = zone.now + Duration::from_secs(3);
    zone.core.handle(zone.now, Input::Tick, &mut out);
    assert!(out.iter().any(
        |e| matches!(e, Effect::Connect { node: n, session: s } if *n == node && *s > session)
    ));
}

#[test]
fn silence_makes_the_client_ask_members_and_the_control_plane() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    first_sent(&mut zone);
    let mut out = Outbox::new();
    let mut asked = (false, false);
    for _ in 0..80 {
        zone.now = zone.now + Duration::from_millis(10);
        zone.core.handle(zone.now, Input::Tick, &mut out);
        for effect in out.drain(..) {
            let early = zone.now.since(Time::from_millis(1)) < Duration::from_millis(500);
            match effect {
                Effect::Send { message: DataMessage::FindConfig { .. }, .. }
                | Effect::Connect { .. } => {
                    assert!(!early, "asked before 500 ms of silence");
                    asked.0 = true;
                }
                Effect::RefreshMap => asked.1 = true,
                _ => {}
            }
        }
    }
    assert_eq!(asked, (true, true));
}

#[test]
fn under_the_policy_of_an_error_after_a_time_requests_end_then_and_keep_their_place() {
    let policy = WaitPolicy::EioAfter(Duration::from_secs(2));
    let mut zone = Zone::new(1, policy);
    let (node, session, message) = first_sent(&mut zone);
    let mut out = Outbox::new();
    zone.now = zone.now + Duration::from_secs(3);
    zone.core.handle(zone.now, Input::Tick, &mut out);
    assert_eq!(results(&out), [Err(OpError::TimedOut)]);
    out.clear();
    let write = Request::Write { first: 0, payload: fill(2, 1) };
    zone.core.handle(zone.now, Input::Submit { op: OpId(2), request: write }, &mut out);
    let sends = |out: &Outbox| {
        out.iter()
            .filter(|e| matches!(e, Effect::Send { message: DataMessage::Write { .. }, .. }))
            .count()
    };
    assert_eq!(sends(&out), 0, "the first write is still in flight");
    let done = DataMessage::WriteDone { id: write_id(&message) };
    zone.core.handle(zone.now, Input::Message { node, session, message: done }, &mut out);
    assert_eq!((sends(&out), results(&out).len()), (1, 0));
}

#[test]
fn requests_that_cannot_be_are_refused_with_the_reason() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let end = u64::from(CHUNKS * 16);
    let short = crate::Payload { sums: vec![1, 2], data: bytes::Bytes::new() };
    for request in [
        Request::Read { first: end, count: 1 },
        Request::Read { first: u64::MAX, count: u32::MAX },
        Request::Zero { first: 0, count: 0 },
        Request::Write { first: 0, payload: short },
    ] {
        let mut out = Outbox::new();
        zone.core.handle(zone.now, Input::Submit { op: OpId(5), request }, &mut out);
        assert!(matches!(results(&out)[..], [Err(OpError::Range(_) | OpError::Content)]));
    }
    assert!(zone.core.is_idle());
}

#[test]
fn requests_in_flight_stay_within_the_bound_of_a_connection() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    zone.calm = true;
    first_sent(&mut zone);
    let mut out = Outbox::new();
    let mut op = 10;
    while zone.core.has_room() {
        op += 1;
        let request = Request::Read { first: 0, count: 1 };
        zone.core.handle(zone.now, Input::Submit { op: OpId(op), request }, &mut out);
    }
    assert!(op > 3_000);
    let reads =
        out.iter().filter(|e| matches!(e, Effect::Send { message: DataMessage::Read { .. }, .. }));
    assert!(reads.count() <= ashlar_types::limit::REQUESTS_PER_CONNECTION_MAX);
    zone.core.check();
}

#[test]
fn an_answer_to_a_number_that_was_retired_means_nothing() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let (node, session, message) = first_sent(&mut zone);
    let mut newer = config(zone.core.settings.volume, 0);
    newer.epoch = newer.epoch.next();
    let mut out = Outbox::new();
    // The same primary under a newer epoch: what is in flight there stays, and is not sent twice.
    zone.core.handle(zone.now, Input::Map { configs: vec![newer] }, &mut out);
    assert!(!out.iter().any(|e| matches!(e, Effect::Send { .. })));
    let refusal = Refusal::WrongEpoch(Box::new(config(zone.core.settings.volume, 0)));
    let refused = DataMessage::Refused { id: write_id(&message), refusal };
    zone.core.handle(zone.now, Input::Message { node, session, message: refused }, &mut out);
    let again = out.drain(..).find_map(|e| match e {
        Effect::Send { message: message @ DataMessage::Write { .. }, .. } => Some(message),
        _ => None,
    });
    let again = again.expect("sent again at once under the epoch that is known by now");
    let late = DataMessage::WriteDone { id: write_id(&message) };
    zone.core.handle(zone.now, Input::Message { node, session, message: late }, &mut out);
    assert!(results(&out).is_empty(), "the first number was retired");
    let done = DataMessage::WriteDone { id: write_id(&again) };
    zone.core.handle(zone.now, Input::Message { node, session, message: done }, &mut out);
    assert_eq!(results(&out), [Ok(Done::Written)]);
}

#[test]
fn an_older_configuration_never_replaces_a_newer_one() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    first_sent(&mut zone);
    let mut newer = config(zone.core.settings.volume, 1);
    newer.epoch = newer.epoch.next();
    let mut foreign = newer.clone();
    foreign.chunk.volume.uuid += 1;
    foreign.epoch = foreign.epoch.next();
    let mut broken = newer.clone();
    broken.epoch = broken.epoch.next();
    broken.in_sync.clear();
    let older = config(zone.core.settings.volume, 1);
    let mut out = Outbox::new();
    let configs = vec![newer.clone(), foreign, broken, older];
    zone.core.handle(zone.now, Input::Map { configs }, &mut out);
    assert!(zone.core.configs().any(|known| *known == newer));
    assert_eq!(zone.core.configs().count(), CHUNKS as usize);
}

#[test]
fn a_node_that_takes_the_connection_and_says_nothing_is_asked_about_elsewhere() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let mut out = Outbox::new();
    let volume = zone.core.settings.volume;
    let configs = (0..CHUNKS).map(|i| config(volume, i)).collect();
    zone.core.handle(zone.now, Input::Map { configs }, &mut out);
    let read = Input::Submit { op: OpId(1), request: Request::Read { first: 0, count: 1 } };
    zone.core.handle(zone.now, read, &mut out);
    let dialled = |out: &Outbox| out.iter().filter(|e| matches!(e, Effect::Connect { .. })).count();
    assert_eq!(dialled(&out), 1, "the primary alone");
    for _ in 0..70 {
        zone.now = zone.now + Duration::from_millis(10);
        zone.core.handle(zone.now, Input::Tick, &mut out);
    }
    assert_eq!(dialled(&out), 3, "the other members too");
    assert!(out.iter().any(|e| matches!(e, Effect::RefreshMap)));
}

#[test]
fn a_volume_that_grows_takes_requests_up_to_its_new_end_and_never_fewer_than_before() {
    let mut zone = Zone::new(1, WaitPolicy::Wait);
    let (node, session, message) = first_sent(&mut zone);
    let (end, known) = (u64::from(CHUNKS * 16), zone.core.geometry());
    let beyond = |zone: &mut Zone, op: u64| {
        let mut out = Outbox::new();
        let request = Request::Write { first: end, payload: fill(2, 1) };
        zone.core.handle(zone.now, Input::Submit { op: OpId(op), request }, &mut out);
        results(&out)
    };
    let grow = |zone: &mut Zone, size_bytes: u64, chunk_bytes: u64| {
        let geometry = Geometry::new(size_bytes, chunk_bytes).unwrap();
        zone.core.handle(zone.now, Input::Grow { geometry }, &mut Outbox::new());
    };
    assert!(matches!(beyond(&mut zone, 2)[..], [Err(OpError::Range(_))]));
    // A map that knows of a chunk before the size does is no size.
    let newer = config(zone.core.settings.volume, CHUNKS);
    let map = Input::Map { configs: vec![newer.clone()] };
    zone.core.handle(zone.now, map.clone(), &mut Outbox::new());
    assert!(matches!(beyond(&mut zone, 3)[..], [Err(OpError::Range(_))]));
    let size = known.size_bytes();
    grow(&mut zone, size - 4096, known.chunk_bytes());
    grow(&mut zone, 2 * size, 2 * known.chunk_bytes());
    assert_eq!(zone.core.geometry(), known, "smaller, or of other chunks");
    grow(&mut zone, size + known.chunk_bytes(), known.chunk_bytes());
    zone.core.handle(zone.now, map, &mut Outbox::new());
    assert!(zone.core.configs().any(|config| *config == newer));
    assert!(beyond(&mut zone, 4).is_empty(), "it is on its way");
    grow(&mut zone, size, known.chunk_bytes());
    assert!(beyond(&mut zone, 5).is_empty(), "what was told late takes nothing back");
    // What was in flight is answered as if nothing had happened.
    let done = DataMessage::WriteDone { id: write_id(&message) };
    let mut out = Outbox::new();
    zone.core.handle(zone.now, Input::Message { node, session, message: done }, &mut out);
    assert_eq!(results(&out), [Ok(Done::Written)]);
}
