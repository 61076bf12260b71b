//! Tries to connect to nodes that fell silent: a port that refuses tells more than silence.

use crate::machine::Handle;
use crate::member::Input;
use ashlar_controlplane_core::observe::ProbeResult;
use ashlar_env::task::spawn_named;
use ashlar_types::NodeId;
use ashlar_types::message::data::Network;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

/// A live host answers or refuses within a round trip; this is many of them.
const PROBE_WITHIN: Duration = Duration::from_millis(300);
/// Tries under way at a time.
const PROBES_MAX: usize = 64;

/// One try.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) node: NodeId,
    pub(crate) network: Network,
    pub(crate) address: String,
}

/// Carries out tries until the queue ends.
pub(crate) async fn run(mut probes: mpsc::Receiver<Probe>, member: Handle) {
    let slots = Arc::new(Semaphore::new(PROBES_MAX));
    while let Some(probe) = probes.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let member = member.clone();
        let task = spawn_named("probe", async move {
            let result = connect(&probe.address).await;
            let Probe { node, network, .. } = probe;
            member.input(Input::Probed { node, network, result });
            drop(slot);
        });
        drop(task);
    }
}

async fn connect(address: &str) -> ProbeResult {
    match tokio::time::timeout(PROBE_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(_)) => ProbeResult::Connected,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => ProbeResult::Refused,
        Ok(Err(_)) | Err(_) => ProbeResult::NoAnswer,
    }
}
