//! Both halves of a node as one value, for the simulator and for tests: what one half tells the other
//! arrives at once, unless the data core stands still.

use crate::beats::{BeatCore, BeatEffect, BeatInput, BeatNews};
use crate::context::Identity;
use crate::durable::DurableState;
use crate::input::Input;
use crate::machine::DataCore;
use crate::outbox::{Effect, Link, Outbox};
use crate::timing::Timing;
use alloc::vec::Vec;
use ashlar_types::message::data::DataMessage;
use ashlar_types::{StoreId, Time};
use core::ops::Deref;

/// A node.
#[derive(Debug)]
pub struct NodeCore {
    data: DataCore,
    beats: BeatCore,
    /// What the data core has not taken yet.
    news: Vec<BeatNews>,
    /// The data core stands still.
    stalled: bool,
}

impl NodeCore {
    /// As [`DataCore::new`].
    #[must_use]
    pub fn new(
        now: Time,
        me: Identity,
        timing: Timing,
        recovered: impl IntoIterator<Item = (StoreId, DurableState)>,
        out: &mut Outbox,
    ) -> Self {
        let data = DataCore::new(now, me, timing, recovered, out);
        let beats = BeatCore::new(now, me, timing);
        let mut node = Self { data, beats, news: Vec::new(), stalled: false };
        node.exchange(now, out);
        node
    }

    /// Handles one input, by the half that it is for. While the data core stands still, only what is
    /// for the beats may come ([`Self::is_for_beats`]); time passes for them alone.
    ///
    /// # Panics
    /// If another input comes while the data core stands still: whoever stalls it keeps the rest.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        assert!(
            !self.stalled || Self::is_for_beats(&input),
            "an input for a core that stands still"
        );
        match input {
            Input::Frame {
                from: Link::Peer(node, network),
                message: message @ (DataMessage::Beat { .. } | DataMessage::BeatReply { .. }),
            } => self.beat(now, BeatInput::Frame(node, network, message), out),
            Input::Tick => {
                // The data core first: what it has settled leaves with this beat.
                if !self.stalled {
                    self.data.handle(now, Input::Tick, out);
                    self.exchange(now, out);
                }
                self.beat(now, BeatInput::Tick, out);
            }
            Input::LinkUp { node, network, process } => {
                self.beat(now, BeatInput::LinkUp(node, network), out);
                self.data.handle(now, Input::LinkUp { node, network, process }, out);
            }
            Input::LinkDown { node, network, refused } => {
                self.beat(now, BeatInput::LinkDown(node, network), out);
                self.data.handle(now, Input::LinkDown { node, network, refused }, out);
            }
            other => self.data.handle(now, other, out),
        }
        self.exchange(now, out);
    }

    /// Whether an input can be taken while the data core stands still.
    #[must_use]
    pub const fn is_for_beats(input: &Input) -> bool {
        matches!(
            input,
            Input::Tick
                | Input::Frame {
                    message: DataMessage::Beat { .. } | DataMessage::BeatReply { .. },
                    ..
                }
        )
    }

    /// The data core stands still, or goes on: it takes what it missed with the next input.
    pub const fn stall(&mut self, stalled: bool) {
        self.stalled = stalled;
    }

    /// Whether the data core stands still.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.stalled
    }

    fn beat(&mut self, now: Time, input: BeatInput, out: &mut Outbox) {
        let mut effects = Vec::new();
        self.beats.handle(now, input, &mut effects);
        for effect in effects {
            match effect {
                BeatEffect::Send(node, network, message) => {
                    out.push(Effect::Send { to: Link::Peer(node, network), message });
                }
                BeatEffect::Tell(news) => self.news.push(news),
            }
        }
    }

    /// Hands over between the halves until neither has anything for the other.
    fn exchange(&mut self, now: Time, out: &mut Outbox) {
        loop {
            let orders: Vec<_> = out.drain_orders().collect();
            let news = if self.stalled { Vec::new() } else { core::mem::take(&mut self.news) };
            if orders.is_empty() && news.is_empty() {
                return;
            }
            for order in orders {
                self.beat(now, BeatInput::Order(order), out);
            }
            for news in news {
                self.data.handle(now, Input::Beats(news), out);
            }
        }
    }
}

impl Deref for NodeCore {
    type Target = DataCore;
    fn deref(&self) -> &DataCore {
        &self.data
    }
}
