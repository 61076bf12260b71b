//! Times as people write them: `10s`, `2.5s`, `150ms`.

use std::time::Duration;

/// The duration that a text names; none if it names none. At most an hour: no run is longer.
#[must_use]
pub fn parse_span(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, millis_each) = match text.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => (text.strip_suffix('s')?, 1_000.0),
    };
    let plain = |c: char| c.is_ascii_digit() || c == '.';
    if number.is_empty() || !number.chars().all(plain) {
        return None;
    }
    let seconds = number.parse::<f64>().ok()? * millis_each / 1_000.0;
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (duration <= Duration::from_secs(3_600)).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_nonsense_is_not() {
        assert_eq!(parse_span("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_span(" 2.5s"), Some(Duration::from_millis(2_500)));
        assert_eq!(parse_span("150ms"), Some(Duration::from_millis(150)));
        for wrong in ["", "s", "ms", "5", "5 parsecs", "-1s", "1e9s", "3601s", "infs", "1.2.3s"] {
            assert_eq!(parse_span(wrong), None, "{wrong}");
        }
    }
}
