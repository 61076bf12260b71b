//! Writes that wait for space (design.md section 8): delete and trim always work.
//!
//! A store that is full takes its records in order, so a write without room would hold up the trim
//! behind it that makes some. So writes are held before they have a position, while there is still
//! room for those that have one: at the first replica, of those that every write needs, whose node
//! says that little is left.

use super::{Primary, Request};
use crate::context::Context;
use crate::durable::ReplicaDurable;

impl Primary {
    /// Whether a request has to wait until a store that needs room for it has more.
    pub(super) fn waits_for_space(
        &self,
        what: &Request,
        durable: &ReplicaDurable,
        context: &Context<'_>,
    ) -> bool {
        let Request::Write(data) = what else { return false };
        data.data_blocks() > 0 && self.is_short_of_space(durable, context)
    }

    /// Time has passed: what waited for space goes on, if there is some.
    pub(super) fn go_on_after_shortage(
        &mut self,
        durable: &mut ReplicaDurable,
        context: &mut Context<'_>,
    ) {
        self.pump(durable, context);
        for at in 0..self.followers.len() {
            let fill = self.followers.get(at).and_then(|follower| follower.fill.as_ref());
            if fill.is_some_and(|fill| fill.waits(durable.config.blocks)) {
                self.go_on_filling(at, durable, context);
            }
        }
    }

    fn is_short_of_space(&self, durable: &ReplicaDurable, context: &Context<'_>) -> bool {
        let required = |follower: &&super::Follower| self.is_required(follower.replica, durable);
        context.short_of_space
            || self
                .followers
                .iter()
                .filter(required)
                .any(|follower| context.is_short_of_space(follower.replica))
    }
}
