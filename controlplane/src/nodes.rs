//! Streams of storage nodes, as `ashlar/v1/node.proto` describes them.

use crate::machine::{Handle, NODE_QUEUE};
use crate::member::{Input, SessionKey};
use ashlar_env::task::spawn_named;
use ashlar_proto::convert::NodeMessage;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_types::message::cluster::Registration;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long a node may take to introduce itself.
const REGISTER_WITHIN: Duration = Duration::from_secs(5);

/// Accepts streams.
#[derive(Debug)]
pub(crate) struct NodeReceiver {
    pub(crate) member: Handle,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl v1::node_service_server::NodeService for NodeReceiver {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::NodeDown, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut stream = request.into_inner();
        let registration = tokio::select! {
            first = tokio::time::timeout(REGISTER_WITHIN, introduction(&mut stream)) => {
                first.unwrap_or_else(|_| Err(silent()))?
            }
            () = self.stop.cancelled() => return Err(stopping()),
        };
        let (sender, messages) = mpsc::channel(NODE_QUEUE);
        let session = self.member.node_opened(registration, sender)?;
        let (member, stop) = (self.member.clone(), self.stop.clone());
        let task = spawn_named("node-stream", async move {
            tokio::select! {
                () = listen(&mut stream, session, &member) => {}
                () = stop.cancelled() => {}
            }
            member.input(Input::NodeClosed { session });
        });
        drop(task);
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

async fn introduction(stream: &mut Streaming<v1::NodeUp>) -> Result<Registration, Status> {
    let wrong = |text: String| ApiError::new(Reason::InvalidRegistration, text).to_status();
    let first = stream.message().await?;
    let first = first.ok_or_else(|| wrong("the stream ended before a registration".into()))?;
    match NodeMessage::try_from(&first) {
        Ok(NodeMessage::Registration(registration)) => Ok(registration),
        Ok(NodeMessage::Up(_)) => Err(wrong("the first message must be a registration".into())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Passes on what a node says, until it ends or says what is no message.
async fn listen(stream: &mut Streaming<v1::NodeUp>, session: SessionKey, member: &Handle) {
    loop {
        let wire = match stream.message().await {
            Ok(Some(wire)) => wire,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(%status, "a node's stream broke");
                return;
            }
        };
        let message = match NodeMessage::try_from(&wire) {
            Ok(NodeMessage::Up(message)) => message,
            Ok(NodeMessage::Registration(_)) => {
                tracing::warn!("a node introduced itself twice; its stream is ended");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a node said what is no message; its stream is ended");
                return;
            }
        };
        // Reports must not be lost one by one: the node comes back and says everything again.
        if !member.input(Input::NodeSaid { session, message }) {
            tracing::warn!("the member is behind; a node's stream is ended");
            return;
        }
    }
}

fn silent() -> Status {
    let text = format!("no registration within {} s", REGISTER_WITHIN.as_secs());
    ApiError::new(Reason::InvalidRegistration, text).into()
}

fn stopping() -> Status {
    ApiError::new(Reason::ShuttingDown, "this member is shutting down; dial another one").into()
}
