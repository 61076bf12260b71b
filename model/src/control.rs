//! The control plane, abstract: a register that holds the configuration, changed by compare and
//! set on the epoch. Follows `controlplane/core/src/change.rs`. Whether a change is wise it does
//! not ask: an election may come at any time, as if every judgement about who is dead were wrong.

use crate::mutation::Mutation;
use crate::primary::Primary;
use crate::scene::Scene;
use crate::words::{Body, CONTROL, Config, Message, NodeId};
use crate::zone::{Action, Zone};

impl Zone {
    /// Changes that may be committed now.
    pub(crate) fn possible_changes(&self, scene: &Scene, actions: &mut Vec<Action>) {
        let config = self.config();
        let (spent, primary) = (self.spent, config.primary);
        if spent.elections < scene.elections {
            let stale_too = scene.mutation == Mutation::StaleElected;
            let fit = if stale_too { config.in_sync.union(config.stale) } else { config.in_sync };
            actions.extend(fit.without(primary).iter().map(Action::Elect));
            // As if agreement were never in the way: whether it was given decides nothing that is
            // looked at here.
            if scene.agrees {
                let others = config.in_sync.without(primary);
                actions.extend(others.iter().map(Action::ElectAgreed));
            }
        }
        // Only a primary proposes these, and only one that knows the current epoch; or nobody does
        // (decisions/0014).
        let proposes = scene.unasked || self.nodes[primary].now.config.epoch == config.epoch;
        if proposes && spent.removals < scene.removals {
            actions.extend(config.in_sync.without(primary).iter().map(Action::RemoveSecondary));
            actions.extend(config.learners.iter().map(Action::RemoveLearner));
        }
        let serves =
            scene.unasked || self.nodes[primary].primary().is_some_and(Primary::is_serving);
        if proposes && serves && spent.learners < scene.learners {
            actions.extend(config.stale.iter().map(Action::ReadoptStale));
            let free = (0..scene.nodes).filter(|n| !config.names(*n) && !config.stale.contains(*n));
            actions.extend(free.map(Action::AddLearner));
        }
        if spent.retirements < scene.retirements && self.may_retire(scene) {
            actions.extend(config.stale.iter().map(Action::Retire));
        }
    }

    /// Enough replicas are in sync at a later epoch, and each has recorded that durably.
    fn may_retire(&self, scene: &Scene) -> bool {
        let config = self.config();
        let recorded = config.in_sync.iter().all(|node| {
            let stable = &self.nodes[node].stable;
            stable.config.epoch >= config.epoch && stable.held == config.incarnation[node]
        });
        let enough = config.in_sync.len() >= scene.copies_wanted;
        (enough && recorded) || scene.mutation == Mutation::RetirementBeforeOwnership
    }

    fn commit(&mut self, change: impl FnOnce(&mut Config)) {
        let mut next = self.config();
        next.epoch += 1;
        change(&mut next);
        self.configs.push(next);
    }

    pub(crate) fn reconfigure(&mut self, scene: &Scene, action: Action) {
        match action {
            Action::Elect(node) => {
                self.spent.elections += 1;
                self.commit(|config| {
                    let old = std::mem::replace(&mut config.primary, node);
                    config.in_sync = config.in_sync.without(old).with(node);
                    config.stale = config.stale.with(old).without(node);
                    config.elected = config.epoch;
                });
            }
            Action::ElectAgreed(node) => {
                self.spent.elections += 1;
                self.commit(|config| {
                    config.primary = node;
                    config.elected = config.epoch;
                });
            }
            Action::RemoveSecondary(node) => {
                self.spent.removals += 1;
                self.commit(|config| {
                    config.in_sync = config.in_sync.without(node);
                    config.stale = config.stale.with(node);
                });
            }
            Action::AddLearner(node) => {
                self.spent.learners += 1;
                self.commit(|config| {
                    config.learners = config.learners.with(node);
                    config.incarnation[node] = config.epoch;
                });
            }
            Action::ReadoptStale(node) => {
                self.spent.learners += 1;
                self.commit(|config| {
                    config.stale = config.stale.without(node);
                    config.learners = config.learners.with(node);
                    config.readopting = config.readopting.with(node);
                });
            }
            Action::RemoveLearner(node) => self.remove_learner(node),
            Action::Retire(node) => self.retire(scene, node),
            _other => {}
        }
    }

    /// A learner that was in sync once turns stale again, another is forgotten and erased.
    fn remove_learner(&mut self, node: NodeId) {
        self.spent.removals += 1;
        let once = self.config().readopting.contains(node);
        let incarnation = self.config().incarnation[node];
        self.commit(|config| {
            config.learners = config.learners.without(node);
            config.readopting = config.readopting.without(node);
            if once {
                config.stale = config.stale.with(node);
            } else {
                config.incarnation[node] = 0;
            }
        });
        if !once {
            self.order_erasure(node, incarnation);
        }
    }

    fn retire(&mut self, scene: &Scene, node: NodeId) {
        self.spent.retirements += 1;
        self.seen.retired_early |= self.owners().len() < scene.copies_wanted;
        let incarnation = self.config().incarnation[node];
        self.commit(|config| {
            config.stale = config.stale.without(node);
            config.incarnation[node] = 0;
        });
        self.order_erasure(node, incarnation);
    }

    fn order_erasure(&mut self, to: NodeId, incarnation: u8) {
        let body = Body::Erase { epoch: self.config().epoch, incarnation };
        self.post(vec![Message { from: CONTROL, to, body }]);
    }

    /// A proposal of a promotion has arrived: a compare-and-set like any other.
    pub(crate) fn promote(&mut self, epoch: u8, learner: NodeId) {
        let config = self.config();
        if config.epoch != epoch || !config.learners.contains(learner) {
            return;
        }
        self.commit(|next| {
            next.learners = next.learners.without(learner);
            next.readopting = next.readopting.without(learner);
            next.in_sync = next.in_sync.with(learner);
        });
    }
}
