//! Tasks and threads with names; a panic anywhere ends the process.
//!
//! A half-dead process is worse than a dead one: peers would keep waiting for a task that is gone.
//! So [`abort_on_panic`] is installed first thing by the binary, and every task or thread started
//! here aborts the process when it panics even where no hook is installed (tests of a shell).
//! The one exception is the guarded open of sled, which panics on damaged files instead of
//! returning an error ([`exempt_from_abort`]).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::task::JoinHandle;

/// Thread name prefix of sled's own threads and of the guarded open.
const SLED_PREFIX: &str = "sled-";

/// Number of guarded opens in progress; sled's own threads may panic only meanwhile.
static GUARDED_OPENS: AtomicUsize = AtomicUsize::new(0);

/// The task was cancelled (aborted, or its runtime went away) before it finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task {name} was cancelled")]
pub struct Cancelled {
    /// Name given at [`spawn_named`].
    pub name: &'static str,
}

/// A running task. Dropping it lets the task run on; see [`Task::abort_on_drop`].
#[derive(Debug)]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<T>,
    abort_on_drop: bool,
}

impl<T> Task<T> {
    /// The name given at start.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Asks the runtime to cancel the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// True once the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Ties the task to this value: dropping it cancels the task.
    #[must_use]
    pub fn abort_on_drop(mut self) -> Self {
        self.abort_on_drop = true;
        self
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if self.abort_on_drop {
            self.handle.abort();
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        // A panic never arrives here: the process is gone by then.
        Pin::new(&mut self.handle).poll(cx).map(|r| r.map_err(|_| Cancelled { name }))
    }
}

/// Starts `future` on the current tokio runtime under `name`.
///
/// # Panics
/// Outside a tokio runtime. A panic of the future itself aborts the process.
pub fn spawn_named<F>(name: &'static str, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    let handle = tokio::spawn(async move {
        let _guard = AbortIfPanicking { name };
        future.await
    });
    Task { name, handle, abort_on_drop: false }
}

/// Starts an operating-system thread under `name` (15 bytes are visible in `ps`).
///
/// # Errors
/// When the kernel refuses another thread.
pub fn spawn_thread<F, T>(name: &str, body: F) -> std::io::Result<std::thread::JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = AbortIfPanicking { name: "thread" };
        body()
    })
}

/// Ends the process when dropped by unwinding.
struct AbortIfPanicking {
    name: &'static str,
}

impl Drop for AbortIfPanicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "panicked; the process ends");
            std::process::abort();
        }
    }
}

/// Installs the panic hook: report as before, then abort. Call once, first thing in `main`.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if !exempt_now(GUARDED_OPENS.load(Ordering::SeqCst)) {
            std::process::abort();
        }
    }));
}

/// Marks a guarded open of sled as in progress until the value is dropped. Panics of threads whose
/// name starts with `sled-` are then survived.
#[must_use]
pub(crate) fn exempt_from_abort() -> Exemption {
    GUARDED_OPENS.fetch_add(1, Ordering::SeqCst);
    Exemption(())
}

/// See [`exempt_from_abort`].
#[derive(Debug)]
pub(crate) struct Exemption(());

impl Drop for Exemption {
    fn drop(&mut self) {
        GUARDED_OPENS.fetch_sub(1, Ordering::SeqCst);
    }
}

fn exempt_now(guarded_opens: usize) -> bool {
    guarded_opens > 0 && std::thread::current().name().is_some_and(|n| n.starts_with(SLED_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_returns_its_value_and_knows_its_name() {
        let task = spawn_named("answer", async { 42 });
        assert_eq!(task.name(), "answer");
        assert_eq!(task.await, Ok(42));
    }

    #[tokio::test]
    async fn an_aborted_task_says_cancelled() {
        let task = spawn_named("forever", std::future::pending::<()>());
        task.abort();
        assert_eq!(task.await, Err(Cancelled { name: "forever" }));
    }

    #[test]
    fn only_sled_threads_are_exempt_and_only_while_opening() {
        let on = |name: &str, opens: usize| {
            let body = move || exempt_now(opens);
            std::thread::Builder::new().name(name.to_owned()).spawn(body).unwrap().join().unwrap()
        };
        assert!(!on("sled-open", 0));
        assert!(on("sled-open", 1));
        assert!(on("sled-io-3", 1));
        assert!(!on("other", 1));
    }
}
