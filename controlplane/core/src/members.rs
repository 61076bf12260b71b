//! The members of the control plane in the committed state.
//!
//! Who votes is Raft's; here stands where members are found, which were removed, and which store an
//! added one started with. A zone whose members never changed has none of it: every member's
//! configuration names them all. The first change brings them in.
//!
//! - A number is never used again: a removed member stays removed.
//! - A member that has run never starts with another store: it would have forgotten its votes.
//! - Adding and removing are applied with Raft's own change of the same entry, so they are never
//!   refused here; what can be refused is refused before they are proposed.

use crate::apply::{Answer, Refusal};
use crate::command::{Action, MemberRecord};
use crate::state::{Key, ZoneState};
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};

/// Longest cause of a loss that is kept, in bytes.
const CAUSE_BYTES_MAX: usize = 256;

impl ZoneState {
    pub(crate) fn change_members(
        &mut self,
        action: &Action,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        match action {
            Action::AddMember { token, member, address, before } => {
                self.bring_in(before, changed);
                assert!(!self.members.contains_key(member), "member {member} is added twice");
                self.put_member(added(*member, address, None), changed);
                let answer = Answer::Member { member: *member, address: address.clone() };
                self.remember(token.as_ref(), &answer, changed);
                Ok(answer)
            }
            Action::RemoveMember { token, member, before } => {
                self.bring_in(before, changed);
                let known = self.members.get(member).cloned();
                let known = known.unwrap_or_else(|| added(*member, "", None));
                let answer = Answer::Member { member: *member, address: known.address.clone() };
                self.put_member(
                    MemberRecord { removed: true, lost: String::new(), ..known },
                    changed,
                );
                self.remember(token.as_ref(), &answer, changed);
                Ok(answer)
            }
            Action::StartMember { member, store } => self.start_member(*member, *store, changed),
            Action::NoteLost { member, cause, before } => {
                self.bring_in(before, changed);
                let record = self.living(*member)?.clone();
                let end = (0..=CAUSE_BYTES_MAX.min(cause.len()))
                    .rev()
                    .find(|end| cause.is_char_boundary(*end));
                let lost = end.and_then(|end| cause.get(..end)).unwrap_or_default().to_string();
                self.put_member(MemberRecord { lost, ..record }, changed);
                Ok(Answer::Done {})
            }
            _not_of_members => Ok(Answer::Done {}),
        }
    }

    /// Whether a member may start for the first time with this store.
    ///
    /// # Errors
    /// If there is no such member, or it has run with another store.
    pub fn check_start(&self, member: u64, store: u128) -> Result<(), Refusal> {
        match self.living(member)?.store {
            Some(known) if known != store => Err(Refusal::MemberRan(member)),
            Some(_) | None => Ok(()),
        }
    }

    fn start_member(
        &mut self,
        member: u64,
        store: u128,
        changed: &mut BTreeSet<Key>,
    ) -> Result<Answer, Refusal> {
        self.check_start(member, store)?;
        let record = self.living(member)?.clone();
        self.put_member(MemberRecord { store: Some(store), ..record }, changed);
        Ok(Answer::Done {})
    }

    fn living(&self, member: u64) -> Result<&MemberRecord, Refusal> {
        match self.members.get(&member) {
            None => Err(Refusal::UnknownMember(member)),
            Some(record) if record.removed => Err(Refusal::RemovedMember(member)),
            Some(record) => Ok(record),
        }
    }

    /// The members that the zone began with, when they change for the first time.
    fn bring_in(&mut self, before: &[(u64, String)], changed: &mut BTreeSet<Key>) {
        if self.members.is_empty() {
            for (member, address) in before {
                self.put_member(added(*member, address, Some(0)), changed);
            }
        }
    }

    fn put_member(&mut self, record: MemberRecord, changed: &mut BTreeSet<Key>) {
        changed.insert(Key::Member(record.member));
        self.members.insert(record.member, record);
    }
}

fn added(member: u64, address: &str, store: Option<u128>) -> MemberRecord {
    let (address, lost) = (address.to_string(), String::new());
    MemberRecord { member, address, removed: false, store, lost }
}
