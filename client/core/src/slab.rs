//! A bounded table whose slots are numbered by 16 bits, so that a request id can name its slot.

use alloc::vec::Vec;

/// Values in numbered slots; a freed slot is used again first, so the table stays small.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u16>,
    len_max: usize,
}

impl<T> Slab<T> {
    pub(crate) const fn new(len_max: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len_max }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn room(&self) -> usize {
        self.len_max - self.len()
    }

    /// The slot that now holds the value, or `None` if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Option<u16> {
        if let Some(slot) = self.free.pop() {
            *self.slots.get_mut(usize::from(slot))? = Some(value);
            return Some(slot);
        }
        if self.slots.len() >= self.len_max {
            return None;
        }
        let slot = u16::try_from(self.slots.len()).ok()?;
        self.slots.push(Some(value));
        Some(slot)
    }

    pub(crate) fn get(&self, slot: u16) -> Option<&T> {
        self.slots.get(usize::from(slot))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u16) -> Option<&mut T> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u16) -> Option<T> {
        let value = self.slots.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &T)> {
        (0_u16..).zip(&self.slots).filter_map(|(slot, value)| Some((slot, value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_the_bound_holds() {
        let mut slab = Slab::new(2);
        let a = slab.insert('a').unwrap();
        let b = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), None);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('d'), Some(a));
        assert_eq!(slab.iter().map(|(s, v)| (s, *v)).collect::<Vec<_>>(), [(a, 'd'), (b, 'b')]);
    }
}
