//! The gate before another zone over the lock of `shuttle`, which tries orders of threads by chance:
//! see `node/tests/races.rs` and `docs/races.md`.
//!
//! With `ASHLAR_NIGHTLY` set a hundred times as many orders.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a source of the crate, of which a part is used here"
)]
#![allow(clippy::print_stdout, reason = "what was tried is the product of a test without harness")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is a test")]

#[path = "../src/region/gate.rs"]
mod gate;

/// The seam of that source: see `src/seam.rs`.
mod seam {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

use ashlar_controlplane_core::bulkhead::{Limits, Outcome};
use ashlar_types::backoff::BackoffPolicy;
use gate::{Gate, now};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

const RUNNING_MAX: usize = 2;

fn gate() -> Gate {
    // No time passes: no deadline, no breaker.
    let long = Duration::from_secs(3_600);
    Gate::new(Limits {
        running_max: RUNNING_MAX,
        waiting_max: 3,
        failures_to_open: 3,
        open: BackoffPolicy { first: long, max: long },
        patience: long,
        retries_stored_max: 2,
    })
}

/// Callers come and go by every way there is: they end, they drop their pass, they go away while they
/// wait, they are refused. Never do more run than may, and afterwards every place is free again.
fn every_place_comes_back() {
    let (gate, running) = (gate(), Arc::new(AtomicUsize::new(0)));
    let deadline = now() + Duration::from_secs(3_600);
    let callers: Vec<_> = (0..6)
        .map(|nth| {
            let (gate, running) = (gate.clone(), running.clone());
            shuttle::thread::spawn(move || {
                if nth % 3 == 2 {
                    // Asks, looks once, and goes away: it may have been let in just then.
                    let mut enter = pin!(gate.enter(deadline));
                    drop(enter.as_mut().poll(&mut Context::from_waker(Waker::noop())));
                    return;
                }
                let Ok(pass) = shuttle::future::block_on(gate.enter(deadline)) else { return };
                let before = running.fetch_add(1, Ordering::SeqCst);
                assert!(before < RUNNING_MAX, "{} run", before + 1);
                shuttle::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                if nth % 2 == 0 { pass.end(Outcome::Answered) } else { drop(pass) }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    // Whoever still holds a place now holds it for ever.
    let mut passes = Vec::new();
    for _ in 0..RUNNING_MAX {
        let mut enter = pin!(gate.enter(deadline));
        match enter.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(Ok(pass)) => passes.push(pass),
            other => panic!("a place is gone: {other:?}"),
        }
    }
}

fn main() {
    let name = "every_place_comes_back";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
    if words.peek().is_some() && !words.any(|word| name.contains(word.as_str())) {
        return;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("{name}: test");
        return;
    }
    let orders = if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 100_000 } else { 1_000 };
    let config = shuttle::Config::new();
    let random = shuttle::scheduler::RandomScheduler::new(orders);
    shuttle::Runner::new(random, config.clone()).run(every_place_comes_back);
    let few_changes = shuttle::scheduler::PctScheduler::new(3, orders / 10);
    shuttle::Runner::new(few_changes, config).run(every_place_comes_back);
    println!("test {name} ... ok ({} orders)", orders + orders / 10);
}
