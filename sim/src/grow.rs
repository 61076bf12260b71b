//! An operator's growth of the volume: asked for as a command is, again until there is an answer, and held
//! to what it promises: the client is told of a size only with the chunks for it, each of which serves, and
//! in the end it has the size that was agreed to.

use crate::client::SimClient;
use crate::world::{Event, World};
use ashlar_client_core as client;
use ashlar_controlplane::member::{Reply, Request};
use ashlar_proto::reason::ApiError;
use ashlar_proto::v1;
use ashlar_types::{ChunkConfig, ChunkId, Geometry};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between an answer, or none, and the next call; and between two looks of the client.
const NEXT_CALL: Duration = Duration::from_millis(300);

/// How often a swarm has the volume grow.
const GROWTHS_MAX: u64 = 4;

/// What an operator wants.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    /// Asked for, without a good answer yet.
    asking: Option<u64>,
    /// What the zone has agreed to.
    agreed: Option<u64>,
    turn: u64,
    /// Chunks that have served at some time.
    served: BTreeSet<ChunkId>,
}

impl Growth {
    /// These chunks serve now.
    pub(crate) fn note_served(&mut self, serving: impl Iterator<Item = ChunkId>) {
        if self.turn > 0 {
            self.served.extend(serving);
        }
    }
}

impl World {
    /// Whether a swarm may have the volume grow: there is a client that will follow it, and a growth is not
    /// asked for already.
    pub(crate) fn may_grow(&self) -> bool {
        self.client.is_some() && self.growth.asking.is_none() && self.growth.turn < GROWTHS_MAX
    }

    /// The operator asks for a volume that is larger by so many chunks.
    pub(crate) fn begin_growth(&mut self, chunks: u64) {
        let Some(geometry) = self.client.as_ref().map(SimClient::geometry) else { return };
        let has = self.growth.asking.or(self.growth.agreed).unwrap_or(geometry.size_bytes());
        self.growth.turn += 1;
        self.growth.asking = Some(has + chunks * geometry.chunk_bytes());
        self.grow_again();
    }

    /// The next call, of the operator or of the client that looks for what was agreed to.
    pub(crate) fn grow_again(&mut self) {
        let Some(volume) = self.volume else { return };
        if let Some(size_bytes) = self.growth.asking {
            self.control.find_leader();
            self.ask(Request::GrowVolume(v1::GrowVolumeRequest {
                volume: volume.to_string(),
                size_bytes,
                client_token: format!("grow-{}", self.growth.turn),
                dry_run: false,
            }));
        } else if !self.is_grown() {
            self.refresh_map();
            self.schedule_in(NEXT_CALL, Event::GrowAgain);
        }
    }

    /// A call has an answer, or none; true if it was the operator's.
    pub(crate) fn growth_answered(
        &mut self,
        request: &Request,
        result: Option<&Result<Reply, ApiError>>,
    ) -> bool {
        let Request::GrowVolume(request) = request else { return false };
        if self.growth.asking == Some(request.size_bytes) {
            match result {
                Some(Ok(_)) => {
                    self.tally.note("growths");
                    self.growth.agreed = self.growth.asking.take();
                }
                Some(Err(_)) => self.tally.note("growths to be asked for again"),
                None => {}
            }
            self.schedule_in(NEXT_CALL, Event::GrowAgain);
        }
        true
    }

    /// The client hears of the map: of its size, and then of who has the chunks.
    pub(crate) fn client_maps(&mut self, map: &v1::VolumeMap) {
        let configs: Vec<ChunkConfig> =
            map.chunks.iter().filter_map(|config| ChunkConfig::try_from(config).ok()).collect();
        let geometry = map.geometry.as_ref().and_then(|wire| Geometry::try_from(wire).ok());
        let known = self.client.as_ref().map(SimClient::geometry);
        if let (Some(told), Some(known)) = (geometry, known)
            && told.size_bytes() > known.size_bytes()
        {
            self.judge_growth(known, told, &configs);
            self.client_input(client::Input::Grow { geometry: told });
            if let Some(client) = &mut self.client {
                client.grown();
            }
            self.tally.note("growths that the client followed");
        }
        self.client_input(client::Input::Map { configs });
    }

    /// Whether every new chunk has served by now.
    fn judge_growth(&mut self, known: Geometry, told: Geometry, configs: &[ChunkConfig]) {
        for index in known.chunk_count()..told.chunk_count() {
            let config = configs.iter().find(|config| config.chunk.index.0 == index);
            let served = config.is_some_and(|config| self.growth.served.contains(&config.chunk));
            if !served {
                let detail = format!("chunk {index} has never served: {config:?}");
                self.judge.violated(self.now, "a size before its chunks", detail);
            }
        }
    }

    /// Whether the client has the size that was agreed to, and nothing is asked for.
    pub(crate) fn is_grown(&self) -> bool {
        let has = self.client.as_ref().map_or(0, |client| client.geometry().size_bytes());
        self.growth.asking.is_none() && self.growth.agreed.is_none_or(|agreed| has >= agreed)
    }
}
