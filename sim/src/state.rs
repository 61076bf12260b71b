//! What every host is at a moment, in words, and what an event changed of it.
//!
//! For people who step through a run (`ashlar sim replay SEED --diff`) or read why one failed: nothing
//! here is judged, and nothing of it is computed in any other run.

use crate::member::SimMember;
use crate::net::Host;
use crate::node::SimNode;
use crate::world::World;
use ashlar_types::{ChunkConfig, ChunkId};
use std::collections::BTreeMap;

/// Facts of one subject (a host, a replica at a host, the networks), by name.
type Facts = BTreeMap<&'static str, String>;

/// All subjects, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(BTreeMap<String, Facts>);

impl State {
    fn note(&mut self, subject: String, facts: impl IntoIterator<Item = (&'static str, String)>) {
        self.0.insert(subject, facts.into_iter().collect());
    }

    /// A line for each subject.
    pub(crate) fn lines(&self) -> Vec<String> {
        Self::default().changes_to(self)
    }

    /// What became of `self`: a line for each subject that changed.
    pub(crate) fn changes_to(&self, next: &Self) -> Vec<String> {
        let gone = self.0.keys().filter(|name| !next.0.contains_key(*name));
        let mut lines: Vec<String> = gone.map(|name| format!("{name}: gone")).collect();
        for (name, facts) in &next.0 {
            let empty = Facts::new();
            let known = self.0.get(name).unwrap_or(&empty);
            let changed: Vec<String> = facts
                .iter()
                .filter_map(|(fact, value)| match known.get(fact) {
                    Some(before) if before == value => None,
                    Some(before) => Some(format!("{fact} {before} => {value}")),
                    None => Some(format!("{fact} {value}")),
                })
                .collect();
            let lost = known.keys().filter(|fact| !facts.contains_key(*fact));
            let lost = lost.map(|fact| format!("{fact} gone"));
            let all: Vec<String> = changed.into_iter().chain(lost).collect();
            if !all.is_empty() {
                lines.push(format!("{name}: {}", all.join(", ")));
            }
        }
        lines
    }
}

/// Who has which part in a configuration.
fn parts(config: &ChunkConfig) -> String {
    let list = |replicas: &mut dyn Iterator<Item = String>| replicas.collect::<Vec<_>>().join(" ");
    let name = |r: &ashlar_types::ReplicaId| format!("{}.{}", r.node, r.incarnation.0);
    let mut text = name(&config.primary);
    let secondaries = list(&mut config.secondaries().map(|r| name(&r)));
    let learners = list(&mut config.learners.iter().map(name));
    let stale = list(&mut config.stale.iter().map(|(r, _)| name(r)));
    for (word, who) in [("+", secondaries), ("filling", learners), ("stale", stale)] {
        if !who.is_empty() {
            text.push_str(&format!(" {word} {who}"));
        }
    }
    text
}

impl World {
    /// Everything, as it is now.
    pub(crate) fn state(&self) -> State {
        let mut state = State::default();
        for (id, node) in &self.nodes {
            let process = self.process_of(Host::Node(*id), node.is_up(), node.off);
            let stream = self.control.stream_to(*id);
            let stream = stream.map_or("none".into(), |member| format!("member-{member}"));
            let unsynced = node.unsynced().to_string();
            let facts =
                [("process", process), ("control plane", stream), ("unsynced records", unsynced)];
            state.note(id.to_string(), facts);
            self.note_replicas(&mut state, &id.to_string(), node);
        }
        for (id, member) in self.control.members() {
            let up = member.process().is_some();
            let process = self.process_of(Host::Member(id), up, false);
            state.note(format!("member-{id}"), member_facts(process, member));
        }
        for config in self.control.configs() {
            let facts = [
                ("epoch", config.epoch.to_string()),
                ("generation", config.generation.0.to_string()),
                ("replicas", parts(config)),
            ];
            state.note(format!("committed {}", self.name_of(config.chunk)), facts);
        }
        if let Some(client) = &self.client {
            let sessions =
                self.sessions.iter().map(|(node, (session, ..))| format!("{node} #{}", session.0));
            let facts = [
                ("unanswered", client.unfinished().to_string()),
                ("connected", sessions.collect::<Vec<_>>().join(" ")),
                ("process", self.process_of(Host::Client, true, false)),
            ];
            state.note("client".into(), facts);
        }
        state.note("networks".into(), self.net.troubles(self.now));
        state
    }

    fn process_of(&self, host: Host, up: bool, off: bool) -> String {
        match (up, off) {
            (true, _) if self.is_paused(host) => "stands still",
            (true, _) => "up",
            (false, true) => "without power",
            (false, false) => "down",
        }
        .into()
    }

    /// A chunk; of another volume than the one under load, with that one's name.
    fn name_of(&self, chunk: ChunkId) -> String {
        match chunk.index.0 {
            index if self.volume == Some(chunk.volume) => format!("chunk {index}"),
            index => format!("chunk {index} of {}", chunk.volume),
        }
    }

    fn note_replicas(&self, state: &mut State, name: &str, node: &SimNode) {
        let Some(core) = node.core() else { return };
        for report in core.reports() {
            let Some(durable) = core.durable(report.chunk) else { continue };
            let proposal = durable.proposal.map_or("none".into(), |p| format!("{p:?}"));
            let facts = [
                ("is", format!("{:?}", report.state)),
                ("epoch", durable.config.epoch.to_string()),
                ("durable epoch", report.adopted.to_string()),
                ("generation", durable.config.generation.0.to_string()),
                ("replicas", parts(&durable.config)),
                ("term", durable.term.to_string()),
                ("last", durable.last.to_string()),
                ("committed", durable.committed.to_string()),
                ("uncommitted", durable.uncommitted.len().to_string()),
                ("proposal", proposal),
            ];
            state.note(format!("{name} {}", self.name_of(report.chunk)), facts);
        }
    }
}

fn member_facts(process: String, member: &SimMember) -> Vec<(&'static str, String)> {
    let mut facts = vec![("process", process)];
    if let Some(running) = member.process() {
        facts.push(("raft", format!("{:?}", running.raft_status())));
        facts.push(("applied", running.applied_index().to_string()));
        facts.push(("serves", running.is_serving().to_string()));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_changed_came_and_went_and_nothing_else() {
        let mut before = State::default();
        before.note("node-1".into(), [("process", "up".into()), ("unsynced", "0".into())]);
        before.note("node-1 chunk 0".into(), [("last", "1.1.4".into())]);
        let mut after = State::default();
        after.note("node-1".into(), [("process", "down".into()), ("unsynced", "0".into())]);
        after.note("node-2".into(), [("process", "up".into())]);
        let lines = before.changes_to(&after);
        let wanted = ["node-1 chunk 0: gone", "node-1: process up => down", "node-2: process up"];
        assert_eq!(lines, wanted);
        assert_eq!(after.changes_to(&after.clone()), Vec::<String>::new());
    }
}
