//! Processes that get no further file descriptor (N37): what is open goes on, nothing else is opened.
//!
//! - A node, a member or the client that dials fails at once, and tries again.
//! - Whoever dials one of them is taken in by its kernel, and nobody answers the hello.
//! - A member opens no file: what its log or its snapshots need one for fails, and its process ends. A
//!   node's store opens all of its files at its start.
//! - A process that ends is not started before there are descriptors again.

use crate::faults::Fault;
use crate::net::Host;
use crate::world::{Event, World};
use ashlar_types::{NodeId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who gets none, until when.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    gone: BTreeMap<Host, Time>,
}

impl World {
    /// A process gets no further descriptor for so long.
    pub(crate) fn no_descriptors(&mut self, host: Host, length: Duration) {
        let until = self.descriptors.gone.entry(host).or_default();
        *until = (*until).max(self.now + length);
        if let Host::Member(member) = host {
            self.control.refuse_files(member, true);
        }
        self.schedule_in(length, Event::Fault(Fault::Descriptors { host }));
    }

    /// It gets them again, unless a later want lasts.
    pub(crate) fn descriptors_again(&mut self, host: Host) {
        let now = self.now;
        if self.descriptors.gone.get(&host).is_none_or(|until| *until > now) {
            return;
        }
        self.descriptors.gone.remove(&host);
        match host {
            Host::Member(member) => self.control.refuse_files(member, false),
            Host::Node(node) => self.schedule_in(Duration::ZERO, Event::Start { node }),
            Host::Client => {}
        }
    }

    /// Whether a process gets no descriptor at present.
    pub(crate) fn has_no_descriptors(&self, host: Host) -> bool {
        self.descriptors.gone.contains_key(&host)
    }

    /// The same of one that needs a descriptor now.
    pub(crate) fn lacks_descriptor(&mut self, host: Host) -> bool {
        let lacks = self.has_no_descriptors(host);
        if lacks {
            self.tally.note("descriptors missed");
        }
        lacks
    }

    /// Whether a process stands still or cannot accept: a connection is made by its kernel, and nobody
    /// answers.
    pub(crate) fn is_mute(&mut self, host: Host) -> bool {
        self.is_paused(host) || self.lacks_descriptor(host)
    }

    /// Whether a node that would start has to wait for descriptors.
    pub(crate) fn start_waits(&mut self, node: NodeId) -> bool {
        self.lacks_descriptor(Host::Node(node))
    }

    /// Everybody gets descriptors.
    pub(crate) fn all_descriptors_again(&mut self) {
        let hosts: Vec<Host> = self.descriptors.gone.keys().copied().collect();
        for host in hosts {
            self.descriptors.gone.insert(host, self.now);
            self.descriptors_again(host);
        }
    }
}
