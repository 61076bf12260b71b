//! What balance does with the copies of a node (decisions/0019), in words.

use ashlar_proto::v1;
use serde::Serialize;

/// The part of a node in balance.
#[derive(Debug, Serialize)]
pub(crate) struct BalanceView {
    /// Copies that come to it now.
    coming: u32,
    /// Copies that are about to leave it.
    leaving: u32,
    /// About so many more are to come.
    due_in: u32,
    /// About so many more are to leave.
    due_out: u32,
}

impl From<&v1::Balance> for BalanceView {
    fn from(balance: &v1::Balance) -> Self {
        let v1::Balance { coming, leaving, due_in, due_out } = *balance;
        Self { coming, leaving, due_in, due_out }
    }
}

impl BalanceView {
    /// In a sentence.
    pub(super) fn sentence(&self, node: &str) -> String {
        let Self { coming, leaving, due_in, due_out } = self;
        let parts = [
            (*coming, format!("{coming} are coming")),
            (*leaving, format!("{leaving} are leaving")),
            (*due_in, format!("about {due_in} more are to come")),
            (*due_out, format!("about {due_out} more are to leave")),
        ];
        let said = parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, words)| words);
        let said: Vec<String> = said.collect();
        format!("copies are moved for balance: of {node}'s {}", said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moves_is_said() {
        let balance = v1::Balance { coming: 2, due_in: 9, ..Default::default() };
        let said = BalanceView::from(&balance).sentence("node-5");
        let words = "of node-5's 2 are coming, about 9 more are to come";
        assert_eq!(said, format!("copies are moved for balance: {words}"));
    }
}
