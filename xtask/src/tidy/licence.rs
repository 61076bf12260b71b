//! Judges a licence expression (SPDX, and the old `A/B` form) against the allow-list.
//!
//! `OR` needs one allowed side, `AND` both; `WITH` names an exception that only widens a licence.

/// Licences whose terms this project accepts for what it links. The same list is in `deny.toml`.
pub(crate) const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether the expression can be met with allowed licences alone.
pub(crate) fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words };
    let allowed = parser.any_of();
    allowed && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
}

impl Parser<'_> {
    fn take(&mut self, wanted: &str) -> bool {
        match self.words.split_first() {
            Some((word, rest)) if *word == wanted => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    fn any_of(&mut self) -> bool {
        let mut allowed = self.all_of();
        while self.take("OR") {
            // Not short-circuited: the right side has to be consumed either way.
            allowed |= self.all_of();
        }
        allowed
    }

    fn all_of(&mut self) -> bool {
        let mut allowed = self.one();
        while self.take("AND") {
            allowed &= self.one();
        }
        allowed
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let allowed = self.any_of();
            return allowed & self.take(")");
        }
        let Some((word, rest)) = self.words.split_first() else { return false };
        self.words = rest;
        let allowed = ALLOWED.contains(word);
        if self.take("WITH")
            && let Some((_exception, rest)) = self.words.split_first()
        {
            self.words = rest;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("GPL-2.0-or-later OR MIT"));
        assert!(is_allowed("MIT/GPL-3.0"));
        assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR GPL-3.0"));
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_allowed() {
        assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_allowed("MIT AND GPL-3.0"));
        assert!(!is_allowed("(MIT OR Apache-2.0) AND MPL-2.0"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert!(!is_allowed(""));
        assert!(!is_allowed("(MIT"));
        assert!(!is_allowed("MIT MIT"));
        assert!(!is_allowed("GPL-2.0-or-later"));
    }
}
