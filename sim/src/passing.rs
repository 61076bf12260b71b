//! Volumes that come and go beside the one under load: their chunks are placed, filled, moved and erased
//! like any other. An operator asks for each of them as a command does, again until there is an answer. In
//! the end nothing is left of a deleted volume, neither in the zone's state nor on a node.

use crate::node::SimNode;
use crate::world::{Event, World};
use ashlar_controlplane::member::{Reply, Request};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::VolumeId;
use ashlar_types::limit::CHUNK_BYTES_FLOOR;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between an answer, or none, and the next call.
const NEXT_CALL: Duration = Duration::from_millis(300);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A volume that is deleted after so long.
    For(Duration),
    /// Its deletion.
    Gone,
}

/// Volumes that nobody writes to.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    turn: u64,
    /// Asked for, by name.
    wanted: BTreeMap<String, Wanted>,
    deleted: BTreeSet<VolumeId>,
}

impl Passing {
    /// Whether the zone has said that a volume is deleted.
    pub(crate) fn is_deleted(&self, volume: VolumeId) -> bool {
        self.deleted.contains(&volume)
    }
}

impl World {
    /// The operator wants another volume, for so long.
    pub(crate) fn begin_passing(&mut self, length: Duration) {
        self.passing.turn += 1;
        let name = format!("passing-{}", self.passing.turn);
        self.passing.wanted.insert(name.clone(), Wanted::For(length));
        self.passing_again(name);
    }

    pub(crate) fn passing_again(&mut self, name: String) {
        let Some(wanted) = self.passing.wanted.get(&name).copied() else { return };
        self.control.find_leader();
        self.ask(match wanted {
            Wanted::For(_) => Request::CreateVolume(v1::CreateVolumeRequest {
                client_token: format!("create-{name}"),
                name,
                size_bytes: CHUNK_BYTES_FLOOR,
                copies: 3,
                chunk_bytes: CHUNK_BYTES_FLOOR,
                ..Default::default()
            }),
            Wanted::Gone => Request::DeleteVolume(v1::DeleteVolumeRequest {
                client_token: format!("delete-{name}"),
                volume: name,
                ..Default::default()
            }),
        });
    }

    /// A call has an answer, or none; true if it was for such a volume.
    pub(crate) fn passing_answered(
        &mut self,
        request: &Request,
        result: Option<&Result<Reply, ApiError>>,
    ) -> bool {
        let name = match request {
            Request::CreateVolume(request) => request.name.clone(),
            Request::DeleteVolume(request) => request.volume.clone(),
            _another => return false,
        };
        match result {
            Some(Ok(Reply::CreateVolume(_))) => {
                if let Some(Wanted::For(length)) = self.passing.wanted.get(&name).copied() {
                    self.tally.note("volumes made beside");
                    self.passing.wanted.insert(name.clone(), Wanted::Gone);
                    self.schedule_in(length, Event::PassingAgain { name });
                }
            }
            Some(Ok(Reply::DeleteVolume(reply))) => {
                self.tally.note("volumes deleted");
                self.passing.wanted.remove(&name);
                if let Ok(volume) = reply.volume_id.parse::<VolumeId>() {
                    self.passing.deleted.insert(volume);
                    self.watch.forget(volume);
                }
            }
            // An answer to the same call, asked before, was on its way when this one was given up.
            Some(Err(error)) if error.reason == Reason::VolumeNotFound => {
                self.passing.wanted.remove(&name);
            }
            _again => self.schedule_in(NEXT_CALL, Event::PassingAgain { name }),
        }
        true
    }

    /// What was not made by now is not asked for any more; what was made is deleted.
    pub(crate) fn give_up_passing(&mut self) {
        self.passing.wanted.retain(|_, wanted| *wanted == Wanted::Gone);
    }

    /// Whether every such volume is deleted, and nothing of it left.
    pub(crate) fn is_cleared(&self) -> bool {
        let deleted = |volume| self.passing.is_deleted(volume);
        let named = self.control.configs().any(|config| deleted(config.chunk.volume));
        // What was on a disk that is gone is not there to be erased.
        let erasing = self.control.state().is_some_and(|state| {
            let mut erasures = state.erasures();
            erasures.any(|(chunk, replica)| deleted(chunk.volume) && !state.is_store_gone(replica))
        });
        let mut cores = self.nodes.values().filter_map(SimNode::core);
        let held = cores.any(|core| core.reports().any(|report| deleted(report.chunk.volume)));
        self.passing.wanted.is_empty() && !named && !erasing && !held
    }
}
