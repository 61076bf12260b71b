//! What calls place before anything of it is committed, and what nodes say of their racks.

use super::*;

fn big(name: &str, gib: u64) -> Request {
    Request::CreateVolume(v1::CreateVolumeRequest {
        name: name.into(),
        size_bytes: gib << 30,
        client_token: format!("create-{name}"),
        ..Default::default()
    })
}

#[test]
fn two_calls_at_once_are_not_promised_the_same_room() {
    // Four nodes of 8 GiB: three copies of 7 GiB are all that fits.
    let mut world = World::new(41);
    world.settle();
    let leader = world.serving().unwrap();
    // Neither is committed when the other is placed: no message goes between the members yet.
    let first = world.call(leader, big("first", 7), 5_000);
    let second = world.call(leader, big("second", 7), 5_000);
    assert!(!world.answers.contains_key(&first));
    let refused = world.answers.remove(&second).unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::InsufficientVolumeCapacity, "{refused:?}");
    world.until("an answer", |world| world.answers.contains_key(&first));
    world.answers.remove(&first).unwrap().unwrap();
    // What is committed counts once: when it is gone, there is room for as much again.
    let volume = "first".to_owned();
    let request = v1::DeleteVolumeRequest { volume, ..Default::default() };
    world.ask(&Request::DeleteVolume(request)).unwrap();
    world.ask(&big("third", 7)).unwrap();
}

#[test]
fn a_rack_is_kept_shown_and_changed_and_one_that_is_no_label_is_refused() {
    let mut world = World::new(42);
    world.settle();
    let leader = world.serving().unwrap();
    let shown = |world: &mut World| match world
        .ask(&Request::ListNodes(v1::ListNodesRequest::default()))
        .unwrap()
    {
        Reply::ListNodes(list) => list.nodes[0].rack.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown(&mut world), "");
    for (number, rack) in [(1_001, "r7"), (1_002, "r8"), (1_003, "")] {
        let session = SessionKey(number);
        let registration = Registration { rack: rack.into(), ..registration(1) };
        world.feed(leader, Input::NodeOpened { session, registration });
        world.until("the label is committed", |world| shown(world) == rack);
    }
    let registration = Registration { rack: "row 7".into(), ..registration(1) };
    let session = SessionKey(1_004);
    let now = world.now();
    let mut out = Vec::new();
    let member = world.hosts.get_mut(&leader).unwrap().member.as_mut().unwrap();
    member.handle(now, Input::NodeOpened { session, registration }, &mut out).unwrap();
    let refused = out.iter().find_map(|output| match output {
        Output::CloseNode { session: SessionKey(1_004), error } => Some(error),
        _other => None,
    });
    let refused = refused.unwrap();
    assert_eq!(refused.reason, Reason::InvalidRegistration);
    assert!(refused.message.contains("rack"), "{refused:?}");
}
