//! Waits for a condition of the world, bounded.

use std::time::{Duration, Instant};

/// Between two looks. Short against every time that the tests measure.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value; panics with `what` when it takes longer than `within`.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {} s for {what}", within.as_secs());
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Lets the world go on for `time`, where the time itself is what the test is about (a control
/// plane that is away for 30 s); panics as soon as `fails` gives a reason.
pub fn throughout(time: Duration, mut fails: impl FnMut() -> Option<String>) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if let Some(reason) = fails() {
            panic!("{reason}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
