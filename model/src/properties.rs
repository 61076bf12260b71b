//! What must hold in every state, and what must happen in some.

use crate::explore::Explored;
use crate::member::is_fenced;
use crate::primary::{Phase, required};
use crate::scene::{FAILED_OVER, LEASE_READ, PROMOTED, READ, RETIRED, Scene};
use crate::words::NodeId;
use crate::zone::Zone;
use stateright::Property;

/// Invariant 1.
pub const ONE_ACKNOWLEDGES: &str = "at most one node can acknowledge";
/// Invariant 2.
pub const NOTHING_LOST: &str = "no acknowledged write is lost";
/// Invariant 3.
pub const LINEARIZABLE: &str = "reads are linearizable";
/// Invariant 4.
pub const ELECTED_IN_SYNC: &str = "only members of the last in-sync set become primary";
/// Invariant 5.
pub const RETIRED_LATE: &str = "no replica is retired before enough owners are confirmed";
/// Invariant 5, at the node.
pub const MEMBERS_KEPT: &str = "no order erases a replica of the current configuration";
/// Invariant 6.
pub const IDENTICAL: &str = "in-sync replicas are identical when quiet";

/// All properties of a scene: invariants first, then what it must reach.
pub(crate) fn of(scene: &Scene) -> Vec<Property<Explored>> {
    let always = Property::<Explored>::always;
    let sometimes = Property::<Explored>::sometimes;
    let mut all = vec![
        always(ONE_ACKNOWLEDGES, |model, zone| {
            let able = |id: &NodeId| can_acknowledge(&model.0, zone, *id);
            (0..zone.nodes.len()).filter(able).count() <= 1
        }),
        always(NOTHING_LOST, |_, zone| {
            zone.config()
                .in_sync
                .iter()
                .all(|node| zone.judge.has_acknowledged(zone.nodes[node].stable.value))
        }),
        always(LINEARIZABLE, |_, zone| zone.judge.is_linearizable()),
        always(ELECTED_IN_SYNC, |_, zone| {
            zone.configs.windows(2).all(|pair| {
                let [old, new] = pair else { return true };
                let kept = new.primary == old.primary || old.in_sync.contains(new.primary);
                kept && new.in_sync.is_within(old.in_sync.union(old.learners))
            })
        }),
        always(RETIRED_LATE, |_, zone| !zone.seen.retired_early),
        always(MEMBERS_KEPT, |_, zone| {
            let config = zone.config();
            // A learner may not have heard of it yet; who is in sync has, and keeps it.
            config.in_sync.iter().all(|n| zone.nodes[n].stable.held == config.incarnation[n])
        }),
        always(IDENTICAL, |_, zone| !is_quiet(zone) || are_identical(zone)),
    ];
    let reached: [Property<Explored>; 5] = [
        sometimes(FAILED_OVER, |_, zone| {
            let acknowledged = zone.judge.acknowledged.iter().flatten();
            acknowledged.into_iter().any(|lsn| lsn.term.elected > 1)
        }),
        sometimes(PROMOTED, |_, zone| {
            zone.configs.windows(2).any(|pair| match pair {
                [old, new] => !new.in_sync.is_within(old.in_sync),
                _ => false,
            })
        }),
        sometimes(LEASE_READ, |model, zone| model.0.has_leases() && zone.seen.read),
        sometimes(READ, |_, zone| zone.seen.read),
        sometimes(RETIRED, |_, zone| zone.seen.erased && zone.spent.retirements > 0),
    ];
    all.extend(reached.into_iter().filter(|property| scene.reaches.contains(&property.name)));
    all
}

/// Whether a write that this node would take now could be acknowledged: it serves, and nobody whose
/// copy counts would refuse it.
fn can_acknowledge(scene: &Scene, zone: &Zone, id: NodeId) -> bool {
    let node = &zone.nodes[id];
    let Some(primary) = node.primary() else { return false };
    let (epoch, term) = (node.now.config.epoch, primary.term);
    let accepts = |other: NodeId| {
        let now = &zone.nodes[other].now;
        !is_fenced(scene, now.floor(), now.term, epoch, term)
    };
    primary.is_serving()
        && scene.may_acknowledge(&node.now.config)
        && required(scene, &node.now, id).iter().all(accepts)
}

/// Everybody has adopted the current configuration, and nothing is uncommitted.
fn is_quiet(zone: &Zone) -> bool {
    let config = zone.config();
    let Some(primary) = zone.nodes[config.primary].primary() else { return false };
    let last = zone.nodes[config.primary].now.last;
    let settled = |id: NodeId| {
        let node = &zone.nodes[id];
        node.now.config.epoch == config.epoch && !node.dirty && node.now.last == last
    };
    primary.phase == Phase::Serving
        && primary.committed == last
        && config.in_sync.iter().all(settled)
}

fn are_identical(zone: &Zone) -> bool {
    let config = zone.config();
    let content = |id: NodeId| zone.nodes[id].stable.value;
    config.in_sync.iter().all(|id| content(id) == content(config.primary))
}
