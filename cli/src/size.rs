//! Sizes as people write them: `1GiB`, `512M`, `4096`.
//!
//! Units are powers of two whatever their spelling: block devices have no other. Nothing is
//! rounded; a size that does not fit 64 bits is refused.

/// Suffixes and how far each shifts a byte count.
const UNITS: &[(&str, u32)] = &[
    ("k", 10),
    ("kib", 10),
    ("m", 20),
    ("mib", 20),
    ("g", 30),
    ("gib", 30),
    ("t", 40),
    ("tib", 40),
    ("b", 0),
    ("", 0),
];

/// Bytes in `text`.
///
/// # Errors
/// A sentence for the user when `text` is not a whole number with a known unit, or is too large.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim().trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.trim().get(digits.len()..).unwrap_or_default().trim().to_ascii_lowercase();
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write for example 1GiB or 4096"))?;
    let (_, shift) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("`{unit}` is not a unit; use KiB, MiB, GiB or TiB"))?;
    count.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than 16 EiB"))
}

/// `bytes` in the largest unit that leaves a number above one; exact when it is a whole number.
pub(crate) fn show(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (name, shift) in units {
        let unit = 1u64 << shift;
        if bytes >= unit {
            let tenths = (bytes % unit) * 10 / unit;
            let whole = bytes / unit;
            return if tenths == 0 {
                format!("{whole} {name}")
            } else {
                format!("{whole}.{tenths} {name}")
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("1GiB"), Ok(1 << 30));
        assert_eq!(parse("512 m"), Ok(512 << 20));
        assert_eq!(parse("2T"), Ok(2 << 40));
    }

    #[test]
    fn a_size_that_makes_no_sense_is_refused() {
        for wrong in
            ["", "GiB", "-1", "1.5GiB", "1 parsec", "99999999999TiB", "18446744073709551616"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_own_unit() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(4096), "4 KiB");
        assert_eq!(show(1 << 30), "1 GiB");
        assert_eq!(show((1 << 30) + (1 << 29)), "1.5 GiB");
    }
}
