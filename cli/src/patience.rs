//! How long requests wait, as people write it: `30s`, `2m`, `never`.
//!
//! What can be meant is bounded in one place for volumes and attachments (`types/src/limit.rs`).

use ashlar_types::limit::{ERROR_AFTER_MILLIS_MAX, ERROR_AFTER_MILLIS_MIN};

/// Units and their milliseconds.
const UNITS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];

/// Milliseconds after which a request fails; 0 for `never`.
///
/// # Errors
/// A sentence for the user when `text` is no time, or none that can be meant.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text == "never" {
        return Ok(0);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is no time; write for example 30s, 2m, or never"))?;
    let (_, each) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("`{unit}` is not a unit; use ms, s, m or h"))?;
    let millis = count.saturating_mul(*each);
    if (ERROR_AFTER_MILLIS_MIN..=ERROR_AFTER_MILLIS_MAX).contains(&millis) {
        return Ok(millis);
    }
    Err(format!(
        "`{text}` is not between {} s, as a fail-over takes some seconds, and {} h; or write never",
        ERROR_AFTER_MILLIS_MIN / 1_000,
        ERROR_AFTER_MILLIS_MAX / 3_600_000
    ))
}

/// What happens to requests that cannot be carried out, in words.
pub(crate) fn show(error_after_millis: u64) -> String {
    match error_after_millis {
        0 => "requests wait".to_owned(),
        millis if millis.is_multiple_of(1_000) => format!("error after {} s", millis / 1_000),
        millis => format!("error after {millis} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them_within_bounds() {
        let good = [("30s", 30_000), ("30", 30_000), ("2m", 120_000), ("24h", 86_400_000)];
        for (text, millis) in good {
            assert_eq!(parse(text), Ok(millis));
        }
        assert_eq!((parse("5000ms"), parse("never")), (Ok(5_000), Ok(0)));
        for (text, word) in [
            ("", "no time"),
            ("soon", "no time"),
            ("3w", "unit"),
            ("4s", "5 s"),
            ("0", "5 s"),
            ("25h", "24 h"),
            ("99999999999999999999", "no time"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}: {:?}", parse(text));
        }
        assert_eq!(show(0), "requests wait");
        assert_eq!(show(5_500), "error after 5500 ms");
        assert_eq!(show(30_000), "error after 30 s");
    }
}
