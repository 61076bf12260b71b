//! A zone in this process: nodes that share one content (replication is assumed), speak real
//! frames on real sockets and can be killed, and a control plane that speaks gRPC.

use ashlar_proto::frame::{Frame, FrameQueue, next_frame, push_frame, push_message};
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_server::{VolumeService, VolumeServiceServer};
use ashlar_types::message::data::{
    DATA_PROTOCOL_VERSION, DataMessage, HelloReply, HelloRole, Refusal, Stamp,
};
use ashlar_types::{
    BLOCK_SIZE, BlockData, ChunkConfig, ChunkId, ChunkIndex, Epoch, Generation, Geometry,
    Incarnation, NodeId, ReplicaId, StartNumber, StoreId, Sums, VolumeId,
};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const NODES: u32 = 3;

/// What all nodes and the control plane know.
pub(crate) struct World {
    pub(crate) volume: VolumeId,
    geometry: Geometry,
    pub(crate) generation: u64,
    attached: bool,
    /// The volume's policy; 0: its requests wait.
    error_after_millis: u64,
    tokens: BTreeMap<String, u64>,
    pub(crate) configs: Vec<ChunkConfig>,
    blocks: BTreeMap<(u32, u32), (u32, Bytes)>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    pub(crate) writes: u64,
    /// Sessions seen, in order.
    pub(crate) sessions: Vec<u64>,
}

#[derive(Clone)]
pub(crate) struct Zone {
    pub(crate) world: Arc<Mutex<World>>,
    nodes: Arc<Mutex<BTreeMap<NodeId, CancellationToken>>>,
    pub(crate) control: Arc<Mutex<Option<CancellationToken>>>,
    control_address: SocketAddr,
}

fn replica(node: u32) -> ReplicaId {
    let store = StoreId(u128::from(node));
    ReplicaId { node: NodeId(node), store, incarnation: Incarnation(1) }
}

impl Zone {
    /// Within a runtime.
    pub(crate) async fn start(size_bytes: u64) -> Self {
        let volume = VolumeId { zone: "a".parse().unwrap(), uuid: 9 };
        let geometry = Geometry::new(size_bytes, 1 << 20).unwrap();
        let configs = (0..geometry.chunk_count()).map(|index| ChunkConfig {
            chunk: ChunkId { volume, index: ChunkIndex(index) },
            blocks: geometry.chunk_blocks(),
            epoch: Epoch(1),
            elected: Epoch(1),
            generation: Generation(0),
            primary: replica(1 + index % NODES),
            in_sync: (1..=NODES).map(replica).collect(),
            learners: vec![],
            stale: vec![],
            copies_wanted: 3,
            copies_min: 2,
        });
        let world = World {
            volume,
            geometry,
            generation: 0,
            attached: false,
            error_after_millis: 0,
            tokens: BTreeMap::new(),
            configs: configs.collect(),
            blocks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            writes: 0,
            sessions: vec![],
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control_address = listener.local_addr().unwrap();
        let zone = Self {
            world: Arc::new(Mutex::new(world)),
            nodes: Arc::default(),
            control: Arc::default(),
            control_address,
        };
        zone.run_control(listener);
        for node in 1..=NODES {
            zone.start_node(NodeId(node)).await;
        }
        zone
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        // The first one is nobody: every call must find its way to the second.
        vec!["127.0.0.1:1".to_owned(), self.control_address.to_string()]
    }

    fn run_control(&self, listener: TcpListener) {
        let stop = CancellationToken::new();
        *self.control.lock().unwrap() = Some(stop.clone());
        let service = VolumeServiceServer::new(self.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        ashlar_env::task::spawn_named("test-control", async move {
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, stop.cancelled());
            served.await.unwrap();
        });
    }

    /// The control plane is gone, with its listener.
    pub(crate) fn stop_control(&self) {
        self.control.lock().unwrap().take().unwrap().cancel();
    }

    pub(crate) async fn start_node(&self, node: NodeId) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.world.lock().unwrap().addresses.insert(node, address);
        let stop = CancellationToken::new();
        self.nodes.lock().unwrap().insert(node, stop.clone());
        let world = self.world.clone();
        ashlar_env::task::spawn_named("test-node", async move {
            loop {
                let stream = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (world, stop) = (world.clone(), stop.clone());
                ashlar_env::task::spawn_named("test-link", async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(node, world, stream) => {}
                    }
                });
            }
        });
    }

    /// The node is gone; its chunks get the next node as primary, if asked to.
    pub(crate) fn kill_node(&self, node: NodeId) {
        self.nodes.lock().unwrap().remove(&node).unwrap().cancel();
    }

    /// Requests of the volume fail after so long.
    pub(crate) fn set_error_after(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.world.lock().unwrap().error_after_millis = millis;
    }

    pub(crate) fn elect_away_from(&self, node: NodeId) {
        for config in &mut self.world.lock().unwrap().configs {
            if config.primary.node == node {
                config.epoch = config.epoch.next();
                config.elected = config.epoch;
                config.primary = replica(1 + node.0 % NODES);
                config.in_sync.retain(|r| r.node != node);
            }
        }
    }
}

async fn serve(node: NodeId, world: Arc<Mutex<World>>, mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut input = BytesMut::new();
    let mut queue = FrameQueue::default();
    let mut out = BytesMut::new();
    loop {
        while let Some(frame) = next_frame(&mut input).unwrap() {
            match frame {
                Frame::Hello(hello) => {
                    if let HelloRole::Client { session, .. } = hello.role {
                        world.lock().unwrap().sessions.push(session.0);
                    }
                    let welcome = HelloReply::Welcome {
                        version: DATA_PROTOCOL_VERSION,
                        node,
                        stores: vec![StoreId(u128::from(node.0))],
                        start: StartNumber(1),
                    };
                    push_frame(&Frame::HelloReply(welcome), &mut queue);
                }
                Frame::Message(message) => {
                    let answer = world.lock().unwrap().answer(node, message);
                    push_message(&answer, &mut queue);
                }
                Frame::HelloReply(_) => panic!("a client answers no hello"),
            }
        }
        while !queue.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 16];
            let used = queue.io_slices(&mut slices);
            slices[..used].iter().for_each(|slice| out.extend_from_slice(slice));
            let len = slices[..used].iter().map(|slice| slice.len()).sum();
            queue.advance(len);
        }
        if stream.write_all_buf(&mut out).await.is_err() {
            return;
        }
        if matches!(stream.read_buf(&mut input).await, Ok(0) | Err(_)) {
            return;
        }
    }
}

impl World {
    fn answer(&mut self, node: NodeId, message: DataMessage) -> DataMessage {
        match message {
            DataMessage::FindConfig { id, chunk } => {
                let config = Box::new(self.configs[chunk.index.0 as usize].clone());
                DataMessage::ConfigIs { id, config }
            }
            DataMessage::Read { id, stamp, range } => {
                if let Some(refusal) = self.refuse(node, stamp) {
                    return DataMessage::Refused { id, refusal };
                }
                let chunk = stamp.chunk.index.0;
                let blocks: Vec<_> =
                    range.blocks().map(|block| self.blocks.get(&(chunk, block))).collect();
                let sums = blocks.iter().map(|found| found.map(|(sum, _)| *sum)).collect();
                let data: Vec<u8> = blocks.iter().flatten().flat_map(|(_, b)| b.to_vec()).collect();
                let data = Bytes::from(data);
                DataMessage::ReadDone {
                    id,
                    data: BlockData { range, sums: Sums::Mixed(sums), data },
                }
            }
            DataMessage::Write { id, stamp, data } => {
                if let Some(refusal) = self.refuse(node, stamp) {
                    return DataMessage::Refused { id, refusal };
                }
                self.writes += 1;
                for (block, content) in data.iter() {
                    let place = (stamp.chunk.index.0, block);
                    match content {
                        Some((sum, bytes)) => {
                            assert_eq!(bytes.len(), BLOCK_SIZE);
                            self.blocks.insert(place, (sum, bytes));
                        }
                        None => drop(self.blocks.remove(&place)),
                    }
                }
                DataMessage::WriteDone { id }
            }
            other => panic!("a client sent {other:?}"),
        }
    }

    fn refuse(&self, node: NodeId, stamp: Stamp) -> Option<Refusal> {
        let current = Generation(self.generation);
        let config = Box::new(self.configs[stamp.chunk.index.0 as usize].clone());
        if stamp.generation != current {
            return Some(Refusal::WrongGeneration { current });
        }
        if config.primary.node != node {
            return Some(Refusal::NotPrimary(config));
        }
        (config.epoch != stamp.epoch).then_some(Refusal::WrongEpoch(config))
    }

    fn map(&self) -> v1::VolumeMap {
        let volume = v1::Volume {
            id: self.volume.to_string(),
            name: "demo".to_owned(),
            geometry: Some(self.geometry.into()),
            generation: self.generation,
            error_after_millis: self.error_after_millis,
            ..Default::default()
        };
        v1::VolumeMap {
            members: Vec::new(),
            volume: Some(volume),
            generation: self.generation,
            geometry: Some(self.geometry.into()),
            chunks: self.configs.iter().map(Into::into).collect(),
            nodes: self
                .addresses
                .iter()
                .map(|(node, address)| v1::PeerAddress {
                    node: node.0,
                    store: StoreId(u128::from(node.0)).to_string(),
                    primary_address: address.to_string(),
                    replication_address: address.to_string(),
                })
                .collect(),
        }
    }

    fn raise_generation(&mut self) {
        self.generation += 1;
        for config in &mut self.configs {
            config.epoch = config.epoch.next();
            config.generation = Generation(self.generation);
        }
    }
}

#[tonic::async_trait]
impl VolumeService for Zone {
    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        if request.volume != "demo" && request.volume != world.volume.to_string() {
            return Err(ApiError::new(Reason::VolumeNotFound, "no such volume").into());
        }
        if !world.tokens.contains_key(&request.client_token) {
            if world.attached && !request.force {
                return Err(ApiError::new(Reason::VolumeInUse, "attached elsewhere").into());
            }
            world.raise_generation();
            world.attached = true;
            let generation = world.generation;
            world.tokens.insert(request.client_token, generation);
        }
        let map = Some(world.map());
        Ok(Response::new(v1::AttachVolumeResponse { map, token: vec![], dry_run: false }))
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::DetachVolumeResponse>, Status> {
        let mut world = self.world.lock().unwrap();
        if request.into_inner().generation != world.generation {
            return Err(ApiError::new(Reason::Fenced, "another attachment").into());
        }
        world.raise_generation();
        world.attached = false;
        Ok(Response::new(v1::DetachVolumeResponse { volume: None, dry_run: false }))
    }

    async fn salvage_volume(
        &self,
        _request: Request<v1::SalvageVolumeRequest>,
    ) -> Result<Response<v1::SalvageVolumeResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn acknowledge_risk(
        &self,
        _request: Request<v1::AcknowledgeRiskRequest>,
    ) -> Result<Response<v1::AcknowledgeRiskResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn get_volume_map(
        &self,
        _request: Request<v1::GetVolumeMapRequest>,
    ) -> Result<Response<v1::GetVolumeMapResponse>, Status> {
        let map = Some(self.world.lock().unwrap().map());
        Ok(Response::new(v1::GetVolumeMapResponse { map, token: Vec::new() }))
    }

    async fn create_volume(
        &self,
        _request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn grow_volume(
        &self,
        _request: Request<v1::GrowVolumeRequest>,
    ) -> Result<Response<v1::GrowVolumeResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn delete_volume(
        &self,
        _request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn list_volumes(
        &self,
        _request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }

    async fn get_volume(
        &self,
        _request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::GetVolumeResponse>, Status> {
        Err(Status::unimplemented("not in this zone"))
    }
}
