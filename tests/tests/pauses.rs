//! How long a 4 KiB writer waits when a process that it depends on dies or falls silent.
//!
//! Goals (medians and 99th percentiles over 50 each, a quiet host): a killed primary 1 s and 2 s, a
//! silent one 2 s, a silent one together with the control plane's leader 4 s at p99, a killed
//! secondary 1.5 s at p99. The figures are printed; only a hang fails the test.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::time::{Duration, Instant};

use ashlar_tests::cluster::Cluster;
use ashlar_tests::writer::{self, Writer};
use ashlar_tests::{needs, sized, wait};
use nix::sys::signal::Signal;

/// Blocks that the writer goes round in.
const BLOCKS: u64 = 256;
/// How long a hurt zone may take to be whole again.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
/// Bound of a pause that fails the test: not the goal, but a hang.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What happens to the zone.
#[derive(Debug, Clone, Copy)]
enum Hurt {
    PrimaryKilled,
    PrimarySilent,
    PrimarySilentAndLeaderKilled,
    SecondaryKilled,
}

/// Primary and one secondary of the volume's only chunk.
fn roles(cluster: &Cluster) -> (String, String) {
    let chunks = cluster.chunks("paused");
    let primary = chunks[0]["primary"].as_str().unwrap().to_owned();
    let in_sync = chunks[0]["in_sync"].as_array().unwrap();
    let names = in_sync.iter().map(|name| name.as_str().unwrap());
    let secondary = names.into_iter().find(|name| *name != primary).unwrap().to_owned();
    (primary, secondary)
}

/// Hurts the zone once and heals it; gives the longest write in between.
fn pause(cluster: &Cluster, hurt: Hurt) -> Duration {
    let file = cluster.fuse_file("paused");
    let (primary, secondary) = roles(cluster);
    let leader = cluster.status().unwrap()["leader"].as_u64().unwrap();
    let writer = Writer::start(&file, BLOCKS);
    wait::until("the writer to write", WHOLE_WITHIN, || (writer.count() > 50).then_some(()));
    let moment = Instant::now();
    match hurt {
        Hurt::PrimaryKilled => cluster.kill(&primary),
        Hurt::SecondaryKilled => cluster.kill(&secondary),
        Hurt::PrimarySilent => cluster.signal(&primary, Signal::SIGSTOP),
        Hurt::PrimarySilentAndLeaderKilled => {
            cluster.signal(&primary, Signal::SIGSTOP);
            cluster.kill(&format!("member-{leader}"));
        }
    }
    let hurt_at = writer.count();
    // More writes than can have been on their way: the zone goes on without what it lost.
    wait::until("writes to go on", PAUSE_MAX, || (writer.count() > hurt_at + 50).then_some(()));
    let seen = writer.finish();
    if matches!(hurt, Hurt::PrimarySilent | Hurt::PrimarySilentAndLeaderKilled) {
        cluster.signal(&primary, Signal::SIGCONT);
    }
    assert_eq!(seen.error, None, "the writer saw an error");
    cluster.wait_whole(WHOLE_WITHIN);
    writer::assert_there(&file, &seen);
    seen.longest_since(moment)
}

fn pauses(hurt: Hurt) {
    if !needs::has_all("pauses", &[needs::Need::Root, needs::Need::Fuse]) {
        return;
    }
    let mut cluster = Cluster::start(&["--no-mount"]);
    cluster.must(&["volume", "create", "paused", "--size", "64MiB"]);
    cluster.must(&["attach", "paused"]);
    let mut times: Vec<Duration> = (0..sized(2, 50)).map(|_| pause(&cluster, hurt)).collect();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    eprintln!(
        "pauses: {hurt:?}, {} times: median {:?}, p99 {:?}, longest {:?}",
        times.len(),
        at(50),
        at(99),
        times.last().unwrap()
    );
    cluster.must(&["detach", "paused"]);
    cluster.stop();
}

#[test]
fn a_killed_primary() {
    pauses(Hurt::PrimaryKilled);
}

#[test]
fn a_silent_primary() {
    pauses(Hurt::PrimarySilent);
}

#[test]
fn a_silent_primary_and_a_killed_leader() {
    pauses(Hurt::PrimarySilentAndLeaderKilled);
}

#[test]
fn a_killed_secondary() {
    pauses(Hurt::SecondaryKilled);
}
