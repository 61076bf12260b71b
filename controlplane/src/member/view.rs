//! The state as operators see it: volumes, maps, nodes, status.

use super::lead::Lead;
use super::{Member, Now, salvage, sessions};
use ashlar_controlplane_core::balance::{self, Share};
use ashlar_controlplane_core::command::NodeRecord;
use ashlar_controlplane_core::describe::{self, Counts, Health};
use ashlar_controlplane_core::drain;
use ashlar_controlplane_core::observe::Observations;
use ashlar_controlplane_core::state::{Attachment, Volume, ZoneState};
use ashlar_controlplane_core::verdict::{self, Verdict, Verdicts};
use ashlar_proto::v1;
use ashlar_types::message::cluster::SearchBudget;
use ashlar_types::{NodeId, StoreId, ZoneId};

/// Most stuck chunks that are listed.
const STUCK_LISTED_MAX: usize = 100;

/// The state and what the leader makes of it at one moment.
pub(super) struct View<'a> {
    now: Now,
    zone: ZoneId,
    state: &'a ZoneState,
    seen: Option<&'a Observations>,
    verdicts: Verdicts,
    /// `ip:port` of the members of the control plane.
    members: Vec<String>,
}

impl<'a> View<'a> {
    pub(super) fn new(now: Now, member: &'a Member) -> Self {
        let seen = member.lead.as_ref().map(|lead| &lead.seen);
        let state = &member.state;
        let verdicts =
            seen.map(|seen| verdict::judge_all(now.time, state, seen)).unwrap_or_default();
        let members = member.members().addresses.into_values().collect();
        Self { now, zone: member.options.zone, state, seen, verdicts, members }
    }

    fn counts(&self, volume: &Volume) -> Counts {
        self.seen
            .map(|seen| describe::volume_counts(volume.id, self.state, seen, &self.verdicts))
            .unwrap_or_default()
    }

    pub(super) fn volume(&self, volume: &Volume) -> v1::Volume {
        let state = match (&volume.attachment, volume.ready) {
            (Some(_), _) => v1::VolumeState::InUse,
            (None, true) => v1::VolumeState::Available,
            (None, false) => v1::VolumeState::Creating,
        };
        v1::Volume {
            id: volume.id.to_string(),
            name: volume.name.clone(),
            geometry: Some(volume.geometry.into()),
            copies_wanted: volume.copies_wanted.into(),
            copies_min: volume.copies_min.into(),
            state: state.into(),
            generation: volume.generation.0,
            attachment: volume.attachment.as_ref().map(|attachment| v1::Attachment {
                client_name: attachment.client_name.clone(),
                generation: volume.generation.0,
                since_unix_millis: attachment.since_millis,
                waits: self.attach_waits(volume, attachment),
                old_client_fenced_by: self
                    .state
                    .fenced(volume.id)
                    .map_or_else(String::new, |said| said.by.clone()),
            }),
            chunks: Some(wire_counts(self.counts(volume))),
            created_unix_millis: volume.created_millis,
            chunks_at_risk: u32::try_from(self.state.at_risk(volume.id).count())
                .unwrap_or(u32::MAX),
            at_risk: Vec::new(),
            error_after_millis: self.state.error_after_millis(volume.id),
            growing_to_bytes: self.state.grows_to(volume.id).unwrap_or(0),
        }
    }

    /// Why the attach call waits, or would. A leader that has not listened yet does not know.
    fn attach_waits(&self, volume: &Volume, made: &Attachment) -> Option<v1::AttachmentWaits> {
        let seen = self.seen.filter(|seen| seen.may_judge(self.now.time))?;
        let stuck = describe::attach_stuck(volume, self.state, seen)?;
        Some(v1::AttachmentWaits {
            cause: stuck.cause,
            since_millis: self.now.wall_millis.saturating_sub(made.since_millis),
            blocked_on: stuck.blocked_on.iter().map(|node| node.0).collect(),
            next_action: stuck.next_action,
        })
    }

    /// The same with what salvages may have lost, chunk by chunk.
    pub(super) fn whole_volume(&self, volume: &Volume) -> v1::Volume {
        v1::Volume { at_risk: salvage::at_risk(volume, self.state), ..self.volume(volume) }
    }

    pub(super) fn map(&self, volume: &Volume) -> v1::VolumeMap {
        v1::VolumeMap {
            volume: Some(self.whole_volume(volume)),
            generation: volume.generation.0,
            geometry: Some(volume.geometry.into()),
            // Those that it grows by come with the size.
            chunks: self.state.told_configs(volume).map(Into::into).collect(),
            nodes: sessions::peers(self.state).iter().map(Into::into).collect(),
            members: self.members.clone(),
        }
    }

    pub(super) fn nodes(&self) -> Vec<v1::Node> {
        let shares =
            self.seen.map(|seen| balance::shares(self.now.time, self.state, seen, &self.verdicts));
        let share = |node| shares.as_ref().and_then(|shares| shares.get(&node)).copied();
        self.state
            .nodes()
            .map(|record| {
                let verdict = self.verdicts.get(&record.node);
                let state = match verdict {
                    Some(
                        Verdict::Up { .. }
                        | Verdict::Hidden { fresh: true }
                        | Verdict::Relayed { .. },
                    ) => v1::NodeState::Up,
                    Some(Verdict::Dead { .. }) => v1::NodeState::Dead,
                    Some(Verdict::Unknown { .. } | Verdict::Hidden { fresh: false }) | None => {
                        v1::NodeState::Unknown
                    }
                };
                let seen = self.seen.and_then(|seen| seen.node(record.node));
                let beat = seen.and_then(|view| view.last_beat);
                let space = seen.map_or((0, 0), |view| view.space());
                v1::Node {
                    id: record.node.0,
                    store: record.first_store().to_string(),
                    state: state.into(),
                    cause: verdict.map(|v| v.cause().to_owned()).unwrap_or_default(),
                    primary_address: record.primary_address.clone(),
                    replication_address: record.replication_address.clone(),
                    capacity_bytes: space.0,
                    used_bytes: space.1,
                    heartbeat_millis_ago: beat.map_or(0, |at| self.millis_since(at)),
                    start: record.start.0,
                    replicas: u32::try_from(self.state.replicas_on(record.node))
                        .unwrap_or(u32::MAX),
                    primaries: self.state.primaries_on(record.node),
                    zone: self.zone.to_string(),
                    stores: record.stores.iter().map(|id| self.store(record.node, *id)).collect(),
                    drain: self.drain(record.node),
                    rack: record.rack.clone(),
                    peers: u32::try_from(self.state.peers_of(record.node)).unwrap_or(u32::MAX),
                    promised_bytes: self.promised_on(record),
                    balance: share(record.node).map(wire_share),
                }
            })
            .collect()
    }

    /// Bytes that are promised on a node's stores.
    fn promised_on(&self, record: &NodeRecord) -> u64 {
        record.stores.iter().map(|store| self.state.allocated_on(record.node, *store)).sum()
    }

    /// How far the drain of a node is, if it is drained.
    fn drain(&self, node: NodeId) -> Option<v1::Drain> {
        let record = self.state.draining().find(|record| record.node == node)?;
        let seen = self.seen?;
        let progress = drain::progress(node, self.state, seen, &self.verdicts);
        let blocked = progress
            .named
            .into_iter()
            .map(|one| v1::BlockedCopy { chunk: Some(one.chunk.into()), cause: one.cause });
        Some(v1::Drain {
            since_unix_millis: record.since_millis,
            replicas: progress.replicas,
            moving: progress.moving,
            blocked: progress.blocked,
            erasing: progress.erasing,
            first_blocked: blocked.collect(),
        })
    }

    fn store(&self, node: NodeId, store: StoreId) -> v1::Store {
        let seen = self.seen.and_then(|seen| seen.node(node));
        let told = seen.and_then(|view| view.store(store)).map(v1::Store::from);
        let replicas = self.state.replicas_on_store(node, store);
        v1::Store {
            id: store.to_string(),
            replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
            ..told.unwrap_or_default()
        }
    }

    fn millis_since(&self, at: ashlar_types::Time) -> u64 {
        u64::try_from(self.now.time.since(at).as_millis()).unwrap_or(u64::MAX)
    }

    fn stuck(&self, seen: &Observations) -> Vec<v1::StuckChunk> {
        self.state
            .configs()
            .filter_map(|config| match describe::health(config, self.state, seen, &self.verdicts) {
                Health::Whole | Health::Degraded => None,
                Health::Stuck(stuck) => Some(v1::StuckChunk {
                    chunk: Some(config.chunk.into()),
                    cause: stuck.cause,
                    since_millis: seen
                        .stuck_since(config.chunk)
                        .map_or(0, |since| self.millis_since(since)),
                    blocked_on: stuck.blocked_on.iter().map(|node| node.0).collect(),
                    next_action: stuck.next_action,
                }),
            })
            .take(STUCK_LISTED_MAX)
            .collect()
    }
}

fn interruption(now: Now, lead: &Lead) -> Option<v1::Interruption> {
    let budget = lead.interruption.budget(now.time);
    let on = lead.interruption.is_on();
    (budget != SearchBudget::FULL).then(|| v1::Interruption {
        on: on.is_some(),
        since_millis: on.map_or(0, |(since, _)| {
            u64::try_from(now.time.since(since).as_millis()).unwrap_or(u64::MAX)
        }),
        lost: on.map_or(0, |(_, lost)| u32::try_from(lost).unwrap_or(u32::MAX)),
        searches_per_second: budget.per_second,
    })
}

const fn wire_share(share: Share) -> v1::Balance {
    let Share { leaving, coming, due_out, due_in } = share;
    v1::Balance { leaving, coming, due_out, due_in }
}

fn wire_counts(counts: Counts) -> v1::ChunkCounts {
    v1::ChunkCounts {
        total: counts.total,
        whole: counts.whole,
        degraded: counts.degraded,
        stuck: counts.stuck,
    }
}

impl Member {
    /// Everything on one screen.
    pub(super) fn status(&self, now: Now) -> v1::GetStatusResponse {
        let view = View::new(now, self);
        let raft = self.driver.status();
        let mut all = Counts::default();
        let volumes: Vec<v1::Volume> = self
            .state
            .volumes()
            .map(|volume| {
                all.add_all(view.counts(volume));
                view.volume(volume)
            })
            .collect();
        v1::GetStatusResponse {
            zone: self.options.zone.to_string(),
            leader: raft.leader.unwrap_or(0),
            term: raft.term,
            applied_index: self.applied.0,
            members: self.member_views(),
            nodes: view.nodes(),
            chunks: Some(wire_counts(all)),
            volumes,
            stuck: view.seen.map(|seen| view.stuck(seen)).unwrap_or_default(),
            erasing_replicas: u32::try_from(self.state.erasures().count()).unwrap_or(u32::MAX),
            interruption: self.lead.as_ref().and_then(|lead| interruption(now, lead)),
        }
    }
}
