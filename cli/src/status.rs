//! `ashlar status`: all zones on one screen.
//!
//! Members, nodes, volumes and what is stuck, with why and what happens next. Everything comes from
//! one call to the leader of each zone; nothing is computed here but words. A zone that does not
//! answer is named, and the others are shown.

use std::time::Duration;

use ashlar_client::daemon::DaemonStatus;
use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use serde::Serialize;

use crate::connect::{self, Zone};
use crate::controlplane::MemberView;
use crate::failure::Failure;
use crate::missing::MissingZone;
use crate::node::NodeView;
use crate::render::{Output, Show, columns};
use crate::volume::{ChunksView, VolumeView};
use crate::{Global, attach, completion, process};

/// How `ashlar status` is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this zone.
    #[arg(long, add = completion::zones())]
    zone: Option<String>,
}

/// Longest wait for one zone while others have answered.
const EACH_ZONE_WITHIN: Duration = Duration::from_secs(3);

/// Prints the state of all zones.
///
/// # Errors
/// When no control plane can be reached, or none has a leader.
pub(crate) fn run(arguments: Arguments, global: &Global, output: &Output) -> Result<(), Failure> {
    process::end_on_broken_pipe();
    let control = Zone::find(global)?;
    let names: Vec<String> = match arguments.zone {
        Some(zone) => vec![zone],
        None => control.zones()?.zones.into_iter().map(|zone| zone.name).collect(),
    };
    let within = Duration::from_secs(global.timeout);
    let within = if names.len() > 1 { within.min(EACH_ZONE_WITHIN) } else { within };
    let asked = async {
        let asks = names.iter().map(|zone| status_of(&control, zone, within));
        futures::future::join_all(asks).await
    };
    let mut view = RegionView::default();
    for (zone, answer) in names.iter().zip(connect::runtime()?.block_on(asked)) {
        match answer {
            Ok(status) => view.zones.push(StatusView::from(&status)),
            // The only zone: what went wrong is the answer.
            Err(failure) if names.len() == 1 => return Err(failure),
            Err(failure) => view
                .unreachable_zones
                .push(MissingZone { zone: zone.clone(), cause: failure.why_in_one_line() }),
        }
    }
    (view.attached_here, view.silent_here) = attach::here(global);
    output.show(&view)
}

async fn status_of(
    control: &Zone,
    zone: &str,
    within: Duration,
) -> Result<v1::GetStatusResponse, Failure> {
    let request = v1::GetStatusRequest { zone: zone.to_owned() };
    control
        .call(&format!("show the status of zone {zone}"), within, |channel| {
            let mut request = tonic::Request::new(request.clone());
            request.set_timeout(within);
            async move { ClusterServiceClient::new(channel).get_status(request).await }
        })
        .await
}

/// All zones as they are printed.
#[derive(Debug, Default, Serialize)]
struct RegionView {
    zones: Vec<StatusView>,
    unreachable_zones: Vec<MissingZone>,
    /// What this host has attached, as its daemons say.
    attached_here: Vec<DaemonStatus>,
    /// What it has attached without a daemon that answers.
    silent_here: Vec<attach::Silent>,
}

impl Show for RegionView {
    fn table(&self) -> String {
        let mut parts: Vec<String> =
            self.zones.iter().map(|zone| format!("{}\n", zone.table())).collect();
        parts.extend(self.attached_here.iter().map(here_sentence));
        parts.extend(self.silent_here.iter().map(|silent| {
            let attach::Silent { name, cause } = silent;
            format!(
                "attached here: {name}, but its daemon does not answer ({cause}); ashlar doctor"
            )
        }));
        parts.extend(self.unreachable_zones.iter().map(MissingZone::sentence));
        parts.join("\n").trim_end().to_owned()
    }
}

/// A zone as it is printed.
#[derive(Debug, Serialize)]
struct StatusView {
    zone: String,
    health: &'static str,
    leader: u64,
    term: u64,
    applied_index: u64,
    members: Vec<MemberView>,
    nodes: Vec<NodeView>,
    chunks: ChunksView,
    volumes: Vec<VolumeView>,
    stuck: Vec<StuckView>,
    erasing_replicas: u32,
    /// Many nodes are lost, or were a while ago.
    interruption: Option<InterruptionView>,
}

#[derive(Debug, Serialize)]
struct InterruptionView {
    on: bool,
    since_millis: u64,
    lost: u32,
    searches_per_second: u32,
}

impl InterruptionView {
    fn sentence(&self) -> String {
        let Self { on, since_millis, lost, searches_per_second } = self;
        if *on {
            format!(
                "large interruption for {} s: {lost} nodes are lost; copies that may come back are \
                 waited for, and only chunks with a single copy left or waiting writes look for \
                 another node",
                since_millis / 1000
            )
        } else {
            format!(
                "after a large interruption: each node looks for at most {searches_per_second} new \
                 homes a second"
            )
        }
    }
}

#[derive(Debug, Serialize)]
struct StuckView {
    chunk: String,
    cause: String,
    since_millis: u64,
    blocked_on: Vec<String>,
    next_action: String,
}

impl From<&v1::GetStatusResponse> for StatusView {
    fn from(answer: &v1::GetStatusResponse) -> Self {
        let members: Vec<MemberView> = answer.members.iter().map(MemberView::from).collect();
        let nodes: Vec<NodeView> = answer.nodes.iter().map(NodeView::from).collect();
        let chunks = answer.chunks.as_ref().map(ChunksView::from).unwrap_or_default();
        let all_here =
            members.iter().all(MemberView::is_whole) && nodes.iter().all(NodeView::is_up);
        let interrupted = answer.interruption.as_ref().is_some_and(|i| i.on);
        let health = match chunks.health() {
            "whole" if all_here && !interrupted => "ok",
            "stuck" => "impaired",
            _ => "warning",
        };
        Self {
            zone: answer.zone.clone(),
            health,
            leader: answer.leader,
            term: answer.term,
            applied_index: answer.applied_index,
            members,
            nodes,
            chunks,
            volumes: answer.volumes.iter().map(VolumeView::from).collect(),
            stuck: answer.stuck.iter().map(StuckView::from).collect(),
            erasing_replicas: answer.erasing_replicas,
            interruption: answer.interruption.as_ref().map(|i| InterruptionView {
                on: i.on,
                since_millis: i.since_millis,
                lost: i.lost,
                searches_per_second: i.searches_per_second,
            }),
        }
    }
}

impl From<&v1::StuckChunk> for StuckView {
    fn from(stuck: &v1::StuckChunk) -> Self {
        let chunk = stuck.chunk.clone().unwrap_or_default();
        Self {
            chunk: format!("{}/{}", chunk.volume, chunk.index),
            cause: stuck.cause.clone(),
            since_millis: stuck.since_millis,
            blocked_on: stuck.blocked_on.iter().map(|node| format!("node-{node}")).collect(),
            next_action: stuck.next_action.clone(),
        }
    }
}

impl Show for StatusView {
    fn table(&self) -> String {
        let mut parts = vec![format!("zone {}: {}", self.zone, self.health)];
        parts.push(format!(
            "control plane: member {} leads in term {}, {} entries applied",
            self.leader, self.term, self.applied_index
        ));
        parts.push(columns(MemberView::HEADER, self.members.iter().map(MemberView::row)));
        parts.extend(self.members.iter().filter_map(MemberView::forgetful_sentence));
        parts.push(String::new());
        parts.push(columns(NodeView::HEADER, self.nodes.iter().map(NodeView::row)));
        parts.extend(self.nodes.iter().flat_map(NodeView::move_sentences));
        parts.push(String::new());
        parts.extend(self.interruption.as_ref().map(InterruptionView::sentence));
        parts.push(self.chunks.sentence());
        if !self.volumes.is_empty() {
            parts.push(columns(VolumeView::HEADER, self.volumes.iter().map(VolumeView::row)));
        }
        parts.extend(self.volumes.iter().filter_map(VolumeView::waits_sentence));
        parts.extend(self.volumes.iter().filter_map(VolumeView::risk_sentence));
        for stuck in &self.stuck {
            parts.push(format!(
                "stuck: {} for {} s: {}; waits for {}; next: {}",
                stuck.chunk,
                stuck.since_millis / 1000,
                stuck.cause,
                stuck.blocked_on.join(", "),
                stuck.next_action
            ));
        }
        if self.erasing_replicas > 0 {
            parts.push(format!(
                "{} replicas of deleted volumes wait for their holders to erase them",
                self.erasing_replicas
            ));
        }
        parts.join("\n")
    }
}

/// One attachment of this host, in words.
fn here_sentence(attached: &DaemonStatus) -> String {
    let name = if attached.name.is_empty() { &attached.volume } else { &attached.name };
    let mut text =
        format!("attached here: {name}, nbd+unix:///?socket={}", attached.nbd_socket.display());
    for place in &attached.mounts {
        text.push_str(&format!(", mounted on {}", place.display()));
    }
    if attached.requests > 0 {
        text.push_str(&format!(", {} requests in progress", attached.requests));
    }
    if !attached.nodes_down.is_empty() {
        let nodes: Vec<String> =
            attached.nodes_down.iter().map(|node| format!("node-{node}")).collect();
        text.push_str(&format!(", no connection to {}", nodes.join(", ")));
    }
    if let Some(fenced) = &attached.fenced {
        text.push_str(&format!(", fenced: {fenced}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> v1::GetStatusResponse {
        v1::GetStatusResponse {
            zone: "a".to_owned(),
            leader: 1,
            members: vec![v1::Member {
                id: 1,
                leader: true,
                reachable: true,
                ..Default::default()
            }],
            nodes: vec![v1::Node { id: 1, state: v1::NodeState::Up.into(), ..Default::default() }],
            chunks: Some(v1::ChunkCounts { total: 1, whole: 1, degraded: 0, stuck: 0 }),
            ..Default::default()
        }
    }

    #[test]
    fn a_zone_is_ok_only_when_everything_is() {
        assert_eq!(StatusView::from(&answer()).health, "ok");
        let mut lame = answer();
        lame.members[0].reachable = false;
        assert_eq!(StatusView::from(&lame).health, "warning");
        let mut dead = answer();
        dead.nodes[0].state = v1::NodeState::Dead.into();
        assert_eq!(StatusView::from(&dead).health, "warning");
        let mut stuck = answer();
        stuck.chunks = Some(v1::ChunkCounts { total: 1, whole: 0, degraded: 0, stuck: 1 });
        assert_eq!(StatusView::from(&stuck).health, "impaired");
    }

    #[test]
    fn a_zone_that_does_not_answer_is_named_below_the_others() {
        let region = RegionView {
            zones: vec![StatusView::from(&answer())],
            unreachable_zones: vec![MissingZone { zone: "b".into(), cause: "it is off".into() }],
            attached_here: Vec::new(),
            silent_here: vec![attach::Silent { name: "demo".into(), cause: "asleep".into() }],
        };
        let table = region.table();
        assert!(table.starts_with("zone a: ok\n"), "{table}");
        assert!(table.contains("\nattached here: demo, but its daemon does not answer (asleep)"));
        assert!(table.ends_with("\nzone b is missing: it is off"), "{table}");
    }

    #[test]
    fn a_forgetful_member_is_shown_with_the_remedy() {
        let mut forgetful = answer();
        forgetful.members[0].forgetful = "its log is damaged".to_owned();
        forgetful.members[0].remedy = "remove it".to_owned();
        let view = StatusView::from(&forgetful);
        assert_eq!(view.health, "warning");
        let table = view.table();
        assert!(table.contains("forgetful"), "{table}");
        assert!(
            table.contains("member-1 does not take part: its log is damaged; next: remove it"),
            "{table}"
        );
    }

    #[test]
    fn what_is_stuck_says_why_and_what_comes_next() {
        let mut stuck = answer();
        stuck.stuck.push(v1::StuckChunk {
            chunk: Some(v1::ChunkId { volume: "vol-a-0".to_owned(), index: 3 }),
            cause: "one copy left".to_owned(),
            since_millis: 2500,
            blocked_on: vec![2],
            next_action: "node-2 comes back".to_owned(),
        });
        let table = StatusView::from(&stuck).table();
        assert!(table.contains(
            "stuck: vol-a-0/3 for 2 s: one copy left; waits for node-2; next: node-2 comes back"
        ));
    }
}
