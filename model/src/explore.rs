//! Runs a scene through the checker: every state within its budgets, breadth first, so that a
//! counterexample is a shortest one.

use crate::properties;
use crate::scene::Scene;
use crate::zone::{Action, Zone};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

/// Threads of a run: the machines that decide about a landing have two cores.
const THREADS: usize = 2;

/// A scene as the checker sees it.
#[derive(Debug)]
pub(crate) struct Explored(pub(crate) Scene);

impl Model for Explored {
    type State = Zone;
    type Action = Action;

    fn init_states(&self) -> Vec<Zone> {
        vec![Zone::first(&self.0)]
    }

    fn actions(&self, zone: &Zone, actions: &mut Vec<Action>) {
        zone.possible(&self.0, actions);
    }

    fn next_state(&self, zone: &Zone, action: Action) -> Option<Zone> {
        zone.after(&self.0, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.0)
    }
}

/// An invariant that does not hold, with the shortest way there.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The invariant.
    pub property: &'static str,
    /// What happened, one event a line.
    pub trace: Vec<String>,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The scene.
    pub scene: &'static str,
    /// Different states found.
    pub states: usize,
    /// Events on the longest of the shortest ways.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Everything within the budgets was explored.
    pub complete: bool,
    /// Invariants that do not hold.
    pub broken: Vec<Broken>,
    /// What the scene should have reached and did not.
    pub unreached: Vec<&'static str>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scene, states, depth, took, .. } = self;
        let rate = u128::try_from(*states).unwrap_or_default() * 1000 / took.as_millis().max(1);
        write!(f, "{scene}: {states} states, depth {depth}, {took:.1?}, {rate} states/s")?;
        if !self.complete {
            write!(f, ", not all explored")?;
        }
        for broken in &self.broken {
            write!(f, "\nBROKEN: {}", broken.property)?;
            for (number, event) in (1..).zip(&broken.trace) {
                write!(f, "\n  {number:3} {event}")?;
            }
        }
        if !self.unreached.is_empty() {
            write!(f, "\nnever reached: {:?}", self.unreached)?;
        }
        Ok(())
    }
}

/// Explores a scene until everything is explored, the first invariant is broken, or time is up.
#[must_use]
pub fn explore(scene: Scene, at_most: Duration) -> Report {
    run(scene, at_most, HasDiscoveries::AnyFailures)
}

/// Explores a scene until this invariant is broken, everything is explored, or time is up.
#[must_use]
pub fn seek(scene: Scene, at_most: Duration, property: &'static str) -> Report {
    run(scene, at_most, HasDiscoveries::AllOf(BTreeSet::from([property])))
}

fn run(scene: Scene, at_most: Duration, until: HasDiscoveries) -> Report {
    let began = Instant::now();
    let (name, reaches) = (scene.name, scene.reaches.clone());
    let checker = Explored(scene).checker().threads(THREADS).timeout(at_most).finish_when(until);
    let checker = checker.spawn_bfs().join();
    let took = began.elapsed();
    let mut found = checker.discoveries();
    let unreached = reaches.into_iter().filter(|name| found.remove(name).is_none()).collect();
    let broken: Vec<Broken> = found
        .into_iter()
        .map(|(property, path)| {
            let events = path.into_actions();
            Broken { property, trace: events.iter().map(|event| format!("{event:?}")).collect() }
        })
        .collect();
    Report {
        scene: name,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took,
        complete: took < at_most && broken.is_empty(),
        broken,
        unreached,
    }
}
