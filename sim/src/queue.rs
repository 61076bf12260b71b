//! Events in the order of their time; those of one time in the order in which they came.
//!
//! Events are large and the heap moves its entries often, so it orders numbers of places only.

use crate::world::Event;
use ashlar_types::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What waits to happen.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Time, number of the event, its place.
    order: BinaryHeap<Reverse<(Time, u64, usize)>>,
    places: Vec<Option<Event>>,
    free: Vec<usize>,
    scheduled: u64,
}

impl Queue {
    /// Adds an event; it comes behind all others of its time.
    pub(crate) fn push(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(None);
                self.places.len() - 1
            }
        };
        if let Some(slot) = self.places.get_mut(place) {
            *slot = Some(event);
        }
        self.order.push(Reverse((at, self.scheduled, place)));
    }

    /// When the next event happens.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the next event out.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let Reverse((_, _, place)) = self.order.pop()?;
        self.take(place)
    }

    fn take(&mut self, place: usize) -> Option<Event> {
        self.free.push(place);
        self.places.get_mut(place).and_then(Option::take)
    }

    /// Drops all events of a kind.
    pub(crate) fn drop_all(&mut self, of_kind: impl Fn(&Event) -> bool) {
        let order = core::mem::take(&mut self.order);
        for Reverse((at, number, place)) in order.into_sorted_vec() {
            let dropped = self.places.get(place).and_then(Option::as_ref).is_none_or(&of_kind);
            if dropped {
                self.take(place);
            } else {
                self.order.push(Reverse((at, number, place)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Event;

    fn at_of(queue: &mut Queue) -> Vec<(u64, String)> {
        std::iter::from_fn(|| {
            let at = queue.next_at()?.as_nanos();
            queue.pop().map(|event| (at, format!("{event:?}")))
        })
        .collect()
    }

    #[test]
    fn events_come_by_time_and_then_as_they_were_scheduled_and_a_kind_can_be_dropped() {
        let mut queue = Queue::default();
        let at = Time::from_nanos;
        queue.push(at(5), Event::Work);
        queue.push(at(3), Event::ClientTick);
        queue.push(at(5), Event::Observe);
        queue.push(at(3), Event::Work);
        assert_eq!(queue.pop().map(|event| format!("{event:?}")), Some("ClientTick".into()));
        queue.push(at(5), Event::ClientTick);
        queue.drop_all(|event| matches!(event, Event::Observe));
        let left = at_of(&mut queue);
        let names: Vec<(u64, &str)> = left.iter().map(|(at, name)| (*at, name.as_str())).collect();
        assert_eq!(names, [(3, "Work"), (5, "Work"), (5, "ClientTick")]);
    }
}
