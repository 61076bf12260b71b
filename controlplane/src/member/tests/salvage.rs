//! An operator's salvage at a member: what is said, what is done once, and who is cut off.

use super::*;
use ashlar_types::{ChunkIndex, ReplicaId};

impl World {
    fn dies(&mut self, node: NodeId) {
        let host = self.nodes.get_mut(&node.0).unwrap();
        host.dead = true;
        if let Some((member, session)) = host.session.take() {
            self.feed(member, Input::NodeClosed { session });
        }
    }

    fn first_config(&self) -> Option<ChunkConfig> {
        let member = self.hosts[&self.serving()?].member.as_ref()?;
        let config = member.state().configs().find(|c| c.chunk.index == ChunkIndex(0));
        config.cloned()
    }

    /// The primary of the first chunk dies, and another one is elected.
    fn primary_dies(&mut self) -> ReplicaId {
        let config = self.first_config().unwrap();
        self.dies(config.primary.node);
        self.until("another primary", |world| {
            world.first_config().is_some_and(|now| now.primary != config.primary)
        });
        config.primary
    }

    /// The first chunk has one stale replica that lives, and its only one in sync is dead.
    fn lose(&mut self) -> (ReplicaId, ReplicaId) {
        self.settle();
        self.create("v").unwrap();
        self.settle();
        let stale = self.primary_dies();
        self.primary_dies();
        let last = self.first_config().unwrap().primary;
        self.dies(last.node);
        self.nodes.get_mut(&stale.node.0).unwrap().dead = false;
        self.until("the last one in sync is declared dead, and the stale one is back", |world| {
            let list = world.try_ask(Request::ListNodes(v1::ListNodesRequest::default()));
            let Some(Ok(Reply::ListNodes(list))) = list else { return false };
            let is = |id: NodeId, state| {
                list.nodes.iter().any(|node| node.id == id.0 && node.state() == state)
            };
            is(last.node, v1::NodeState::Dead) && is(stale.node, v1::NodeState::Up)
        });
        (stale, last)
    }

    fn salvage(&mut self, request: v1::SalvageVolumeRequest) -> Result<Salvaged, ApiError> {
        match self.ask(&Request::SalvageVolume(request))? {
            Reply::SalvageVolume(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }
}

type Salvaged = v1::SalvageVolumeResponse;

fn wish(fenced: &[ReplicaId]) -> v1::SalvageVolumeRequest {
    v1::SalvageVolumeRequest {
        volume: "v".into(),
        chunks: vec![0],
        fenced_nodes: fenced.iter().map(|replica| replica.node.0).collect(),
        operator: "an operator".into(),
        client_token: "salvage".into(),
        ..Default::default()
    }
}

#[test]
fn a_salvage_says_what_it_would_do_then_does_it_once_and_keeps_the_record() {
    let mut world = World::new(21);
    let (stale, last) = world.lose();
    let before = world.first_config().unwrap();
    let dry = v1::SalvageVolumeRequest { dry_run: true, ..wish(&[last]) };
    let planned = world.salvage(dry).unwrap();
    assert_eq!((planned.dry_run, planned.chunks.len(), planned.revoked.len()), (true, 1, 1));
    assert_eq!(planned.chunks[0].step(), v1::SalvageStep::TakesOver);
    assert_eq!(planned.chunks[0].replica, Some(stale.into()));
    assert_eq!((planned.chunks[0].offset_bytes, planned.chunks[0].length_bytes), (0, 64 * MIB));
    assert_eq!(world.first_config().unwrap(), before, "a dry run changed something");

    let done = world.salvage(wish(&[last])).unwrap();
    assert_eq!((&done.chunks, &done.revoked), (&planned.chunks, &planned.revoked));
    let config = world.first_config().unwrap();
    assert_eq!((config.primary, config.in_sync.clone()), (stale, vec![stale]));
    let volume = done.volume.unwrap();
    assert_eq!((volume.generation, volume.chunks_at_risk), (1, 1));
    assert_eq!(volume.at_risk[0].by, "an operator");
    // The same call again is the same salvage, not another one.
    let again = world.salvage(wish(&[last])).unwrap();
    assert_eq!(again.volume.unwrap().generation, 1);
    assert_eq!(
        (again.chunks.len(), again.chunks[0].complete_to),
        (1, volume.at_risk[0].complete_to)
    );
    let other = v1::SalvageVolumeRequest { chunks: vec![0, 1], ..wish(&[last]) };
    assert_eq!(world.salvage(other).unwrap_err().reason, Reason::IdempotentParameterMismatch);

    let acknowledge = |dry_run| {
        let (volume, client_token) = ("v".into(), "acknowledge".into());
        Request::AcknowledgeRisk(v1::AcknowledgeRiskRequest { volume, client_token, dry_run })
    };
    for (dry_run, left) in [(true, 1), (false, 0)] {
        let Ok(Reply::AcknowledgeRisk(reply)) = world.ask(&acknowledge(dry_run)) else { panic!() };
        assert_eq!((reply.acknowledged.len(), reply.dry_run), (1, dry_run));
        assert_eq!(reply.volume.unwrap().chunks_at_risk, left);
    }
}

#[test]
fn what_is_wrong_with_a_salvage_is_said_by_reason_and_field() {
    let mut world = World::new(22);
    let (stale, last) = world.lose();
    let fresh = |request| v1::SalvageVolumeRequest { client_token: String::new(), ..request };
    let operator = String::new();
    let cases = [
        (wish(&[]), Reason::NodeNotFenced, "fenced_nodes"),
        (wish(&[last, stale]), Reason::NodeLives, "fenced_nodes"),
        (
            v1::SalvageVolumeRequest { from_node: last.node.0, ..wish(&[last]) },
            Reason::NoSalvageCandidate,
            "from_node",
        ),
        (
            v1::SalvageVolumeRequest { chunks: vec![4], ..wish(&[last]) },
            Reason::InvalidParameter,
            "chunks",
        ),
        (
            v1::SalvageVolumeRequest { fenced_stores: vec!["x".into()], ..wish(&[]) },
            Reason::InvalidParameter,
            "fenced_stores",
        ),
        (
            v1::SalvageVolumeRequest { operator, ..wish(&[last]) },
            Reason::InvalidParameter,
            "operator",
        ),
    ];
    for (request, reason, field) in cases {
        let error = world.salvage(fresh(request)).unwrap_err();
        assert_eq!((error.reason, error.fields[0].0.as_str()), (reason, field), "{error}");
    }
    // A chunk with somebody in sync who lives is left alone.
    let healthy = {
        let member = world.hosts[&world.serving().unwrap()].member.as_ref().unwrap();
        let lives = |r: &ReplicaId| !world.nodes[&r.node.0].dead;
        let chunk = member.state().configs().find(|c| c.in_sync.iter().any(lives)).unwrap().chunk;
        chunk.index.0
    };
    let request = v1::SalvageVolumeRequest { chunks: vec![healthy], ..wish(&[]) };
    let error = world.salvage(fresh(request.clone())).unwrap_err();
    assert_eq!(error.reason, Reason::NothingToSalvage, "{error}");
    let planned = world.salvage(v1::SalvageVolumeRequest { dry_run: true, ..request }).unwrap();
    assert_eq!(planned.chunks[0].step(), v1::SalvageStep::LeftAlone);
}

#[test]
fn a_node_that_comes_while_its_store_is_being_revoked_is_cut_off() {
    let mut world = World::new(23);
    let (_, last) = world.lose();
    let leader = world.serving().unwrap();
    let call = world.call(leader, Request::SalvageVolume(wish(&[last])), 5_000);
    assert!(!world.answers.contains_key(&call), "it is committed at once");
    // What it says of itself is known, so its stream is open at once.
    let session = SessionKey(9_999);
    let registration = registration(last.node.0);
    world.feed(leader, Input::NodeOpened { session, registration });
    let is_open = |world: &World| {
        let member = world.hosts[&leader].member.as_ref().unwrap();
        member.lead.as_ref().unwrap().sessions.contains_key(&session)
    };
    assert!(is_open(&world));
    world.trace.clear();
    world.until("an answer", |world| world.answers.contains_key(&call));
    world.answers.remove(&call).unwrap().unwrap();
    assert!(!is_open(&world), "a node with a revoked store keeps its stream");
    let told = |line: &String| line.contains("SessionKey(9999)") && line.contains("StoreRevoked");
    assert!(world.trace.iter().any(told), "nobody told it why");
    // Nor is it heard through a peer.
    let (by, session) = {
        let lives = |(_, node): &(&u32, &Node)| !node.dead && node.session.is_some();
        let (number, node) = world.nodes.iter().find(lives).unwrap();
        (*number, node.session.unwrap().1)
    };
    assert_ne!(by, last.node.0);
    let beat = ControlUp::Heartbeat(Heartbeat::default());
    let message = relayed(last.node.0, beat);
    world.feed(leader, Input::NodeSaid { session, message });
    let member = world.hosts[&leader].member.as_ref().unwrap();
    assert!(member.lead.as_ref().unwrap().relays.is_empty());
}
