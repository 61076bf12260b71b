//! What clients ask.

use super::DataCore;
use crate::outbox::{ConnectionId, Effect, Link, Outbox};
use crate::replica::Role;
use alloc::boxed::Box;
use ashlar_types::Time;
use ashlar_types::message::data::{DataMessage, NotReady, Refusal, Stamp};

impl DataCore {
    /// A request of a client: the session is admitted, the chunk's primary takes it from there.
    pub(super) fn on_client(
        &mut self,
        now: Time,
        connection: ConnectionId,
        message: DataMessage,
        out: &mut Outbox,
    ) {
        let reply = |message| Effect::Send { to: Link::Client(connection), message };
        let (id, stamp) = match &message {
            DataMessage::Read { id, stamp, .. } | DataMessage::Write { id, stamp, .. } => {
                (*id, *stamp)
            }
            DataMessage::FindConfig { id, chunk } => {
                let answer = match self.config(*chunk) {
                    Some(config) => {
                        DataMessage::ConfigIs { id: *id, config: Box::new(config.clone()) }
                    }
                    None => DataMessage::Refused { id: *id, refusal: Refusal::UnknownChunk },
                };
                out.push(reply(answer));
                return;
            }
            // Anything else is not a client's to say.
            _other => return,
        };
        if !self.replicas.contains_key(&stamp.chunk) {
            out.push(reply(DataMessage::Refused { id, refusal: Refusal::UnknownChunk }));
            return;
        }
        if let Some(refusal) = self.admit_session(now, stamp, out) {
            out.push(reply(DataMessage::Refused { id, refusal }));
            return;
        }
        self.touched.insert(stamp.chunk);
        self.with_replica(now, stamp.chunk, out, |replica, context| match &mut replica.role {
            Role::Primary(primary) => {
                primary.on_client(connection, message, &mut replica.durable, context);
            }
            // If it was the primary, another is to be elected: until then nobody serves.
            Role::Suspect if replica.durable.config.primary == replica.durable.replica => {
                let refusal = Refusal::NotReady(NotReady::OpeningTerm);
                context.reply(connection, DataMessage::Refused { id, refusal });
            }
            Role::Member(_) | Role::Out | Role::Suspect => {
                let config = Box::new(replica.durable.config.clone());
                let refusal = Refusal::NotPrimary(config);
                context.reply(connection, DataMessage::Refused { id, refusal });
            }
        });
    }

    /// The newest session of the newest generation speaks. Older ones end before it does: what waits
    /// for them must not get its position behind what the newer one asks for (design.md 4.8).
    pub(super) fn admit_session(
        &mut self,
        now: Time,
        stamp: Stamp,
        out: &mut Outbox,
    ) -> Option<Refusal> {
        let (volume, session) = (stamp.chunk.volume, (stamp.generation, stamp.session));
        let newest = self.sessions.entry(volume).or_default();
        if session > *newest {
            *newest = session;
            self.with_primaries(now, out, |primary, durable, context| {
                if durable.config.chunk.volume == volume {
                    primary.end_older_sessions(session, context);
                }
            });
            return None;
        }
        (session.0 == newest.0 && session.1 < newest.1).then_some(Refusal::SessionEnded)
    }
}
