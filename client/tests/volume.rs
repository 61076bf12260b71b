//! The library and the attach daemon against a zone in this process: real sockets, killed nodes,
//! no control plane, restarts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;
#[path = "common/zone.rs"]
mod zone;

use ashlar_client::daemon::{self, DaemonConfig, DaemonError};
use ashlar_client::device::IoError;
use ashlar_client::{Volume, VolumeOptions, VolumeStatus, WaitPolicy};
use ashlar_types::NodeId;
use bytes::Bytes;
use common::noise;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use zone::Zone;

const SIZE: u64 = 8 << 20;

async fn attach(zone: &Zone) -> Volume {
    let options = VolumeOptions { client_name: "test".to_owned(), ..Default::default() };
    Volume::attach(&zone.endpoints(), "demo", options).await.unwrap()
}

/// Waits until the volume's status is as wanted.
async fn wait_for(volume: &Volume, wanted: impl Fn(&VolumeStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !wanted(&volume.status().await) {
        assert!(Instant::now() < deadline, "it never came: {:?}", volume.status().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a request is being carried out.
async fn under_way(volume: &Volume) {
    wait_for(volume, |status| status.requests > 0).await;
}

#[tokio::test]
async fn what_is_written_is_read_at_any_alignment_and_trimmed_ranges_are_zero() {
    let zone = Zone::start(SIZE).await;
    let volume = attach(&zone).await;
    let content = Bytes::from(noise(1, 3 << 20));
    volume.write(1_000_001, content.clone()).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(volume.read(1_000_001, 3 << 20).await.unwrap(), content);
    volume.discard(1 << 20, 1 << 20).await.unwrap();
    let read = volume.read(0, 4 << 20).await.unwrap();
    assert!(read[1 << 20..2 << 20].iter().all(|byte| *byte == 0));
    let end = 1_000_001 + (3 << 20);
    assert_eq!(read[2 << 20..end], content[(2 << 20) - 1_000_001..]);
    assert_eq!(volume.read(SIZE, 1).await, Err(IoError::OutOfRange));
    volume.detach(Duration::from_secs(5)).await.unwrap();
    let generation = zone.world.lock().unwrap().generation;
    assert_eq!(generation, 2, "attach and detach each raise it");
}

#[tokio::test]
async fn io_goes_on_after_a_killed_primary_with_and_without_a_control_plane() {
    let zone = Zone::start(SIZE).await;
    let volume = attach(&zone).await;
    let block = |seed| Bytes::from(noise(seed, 4096));
    for at in 0..64 {
        volume.write(at * 131_072, block(at)).await.unwrap();
    }
    zone.stop_control();
    zone.kill_node(NodeId(1));
    let started = Instant::now();
    let blocked = volume.write(0, block(100));
    let elected = async {
        under_way(&volume).await;
        zone.elect_away_from(NodeId(1));
    };
    let (written, ()) = tokio::join!(blocked, elected);
    written.unwrap();
    let pause = started.elapsed();
    assert!(pause < Duration::from_secs(2), "a second after the election at most: {pause:?}");
    assert_eq!(volume.read(0, 4096).await.unwrap(), block(100));
    for at in 1..64 {
        assert_eq!(volume.read(at * 131_072, 4096).await.unwrap(), block(at));
    }
    let status = volume.status().await;
    assert_eq!((status.requests, status.fenced), (0, None));
    assert!(volume.close(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_forced_second_attach_fences_the_first() {
    let zone = Zone::start(SIZE).await;
    let first = attach(&zone).await;
    first.write(0, Bytes::from(noise(1, 4096))).await.unwrap();
    let options = VolumeOptions::default();
    let refused = Volume::attach(&zone.endpoints(), "demo", options.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ashlar_proto::reason::Reason::VolumeInUse));
    let forced = VolumeOptions { force: true, ..options };
    let second = Volume::attach(&zone.endpoints(), "demo", forced).await.unwrap();
    second.write(0, Bytes::from(noise(2, 4096))).await.unwrap();
    let fenced = first.write(0, Bytes::from(noise(3, 4096))).await;
    assert!(matches!(fenced, Err(IoError::Fenced(_))));
    assert!(matches!(first.read(0, 1).await, Err(IoError::Fenced(_))), "for good");
    assert_eq!(second.read(0, 4096).await.unwrap(), noise(2, 4096));
}

#[tokio::test]
async fn with_all_nodes_gone_requests_wait_and_then_complete() {
    let zone = Zone::start(SIZE).await;
    let volume = attach(&zone).await;
    (1..=3).for_each(|node| zone.kill_node(NodeId(node)));
    let write = volume.write(5, Bytes::from_static(b"late"));
    let back = async {
        // Its chunk does not answer any more, and the request still waits.
        wait_for(&volume, |status| !status.doubtful_chunks.is_empty()).await;
        assert!(volume.status().await.requests > 0);
        for node in 1..=3 {
            zone.start_node(NodeId(node)).await;
        }
    };
    let (written, ()) = tokio::join!(write, back);
    written.unwrap();
    assert_eq!(&volume.read(5, 4).await.unwrap()[..], b"late");
}

#[tokio::test]
async fn under_a_time_limit_requests_fail_instead_of_waiting() {
    let zone = Zone::start(SIZE).await;
    let policy = Some(WaitPolicy::EioAfter(Duration::from_millis(300)));
    let options = VolumeOptions { policy, ..Default::default() };
    let volume = Volume::attach(&zone.endpoints(), "demo", options).await.unwrap();
    (1..=3).for_each(|node| zone.kill_node(NodeId(node)));
    assert_eq!(volume.write(0, Bytes::from_static(b"x")).await, Err(IoError::TimedOut));
}

#[tokio::test]
async fn the_volumes_own_time_limit_holds_unless_the_attachment_says_otherwise() {
    let zone = Zone::start(SIZE).await;
    zone.set_error_after(Duration::from_millis(300));
    let volume = Volume::attach(&zone.endpoints(), "demo", VolumeOptions::default()).await.unwrap();
    (1..=3).for_each(|node| zone.kill_node(NodeId(node)));
    let write = volume.write(0, Bytes::from_static(b"x"));
    let ended = tokio::time::timeout(Duration::from_secs(20), write).await;
    assert_eq!(ended.expect("it ends"), Err(IoError::TimedOut));
    drop(volume);
    for node in 1..=3 {
        zone.start_node(NodeId(node)).await;
    }
    let policy = Some(WaitPolicy::Wait);
    let options = VolumeOptions { policy, force: true, ..Default::default() };
    let volume = Volume::attach(&zone.endpoints(), "demo", options).await.unwrap();
    (1..=3).for_each(|node| zone.kill_node(NodeId(node)));
    let mut write = std::pin::pin!(volume.write(0, Bytes::from_static(b"y")));
    // Three times the volume's own limit.
    let waited = tokio::time::timeout(Duration::from_millis(900), &mut write).await;
    assert!(waited.is_err(), "{waited:?}");
    for node in 1..=3 {
        zone.start_node(NodeId(node)).await;
    }
    write.await.unwrap();
}

fn daemon_config(zone: &Zone, dir: &Path) -> DaemonConfig {
    DaemonConfig {
        endpoints: zone.endpoints(),
        volume: "demo".to_owned(),
        state_dir: dir.to_owned(),
        nbd_socket: None,
        fuse_dir: None,
        read_only: false,
        force: false,
        old_client_fenced_by: None,
        policy: None,
        client_name: "test".to_owned(),
    }
}

/// Runs a daemon until told otherwise; returns once it is ready.
async fn start_daemon(
    config: DaemonConfig,
) -> (CancellationToken, ashlar_env::task::Task<Result<(), DaemonError>>) {
    let stop = CancellationToken::new();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let run = daemon::run(config, stop.clone(), |_| ready.send(()).unwrap());
    let task = ashlar_env::task::spawn_named("test-daemon", run);
    let waited = tokio::time::timeout(Duration::from_secs(20), is_ready).await.unwrap();
    if waited.is_err() {
        panic!("the daemon ended: {:?}", task.await);
    }
    (stop, task)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn a_daemon_resumes_its_attachment_without_a_control_plane() {
    let zone = Zone::start(SIZE).await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("demo");
    let (stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    let status = blocking({
        let dir = dir.clone();
        move || daemon::status(&dir)
    })
    .await
    .unwrap();
    assert_eq!((status.generation, status.name.as_str()), (1, "demo"));
    assert_eq!(daemon::find(root.path(), "demo"), Some(dir.clone()));
    write_by_nbd(&status.nbd_socket, b"before").await;
    let second = daemon::run(daemon_config(&zone, &dir), CancellationToken::new(), |_| {}).await;
    assert!(matches!(second, Err(DaemonError::State(daemon::StateError::Locked(_)))));
    stop.cancel();
    task.await.unwrap().unwrap();
    assert!(!status.nbd_socket.exists());

    zone.stop_control();
    let (_stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    assert_eq!(read_by_nbd(&status.nbd_socket, 6).await, b"before");
    write_by_nbd(&status.nbd_socket, b"after!").await;
    let sessions = zone.world.lock().unwrap().sessions.clone();
    assert!(sessions.is_sorted() && sessions.windows(2).all(|w| w[0] != w[1]), "{sessions:?}");
    let stopped = blocking({
        let dir = dir.clone();
        move || daemon::stop(&dir, false)
    })
    .await;
    stopped.unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(zone.world.lock().unwrap().generation, 1, "the same attachment all along");
}

#[tokio::test]
async fn detach_gives_the_attachment_back_and_a_new_one_begins() {
    let zone = Zone::start(SIZE).await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("demo");
    let (_stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    blocking({
        let dir = dir.clone();
        move || daemon::stop(&dir, true)
    })
    .await
    .unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(zone.world.lock().unwrap().generation, 2);
    assert_eq!(daemon::list(root.path()), []);
    let (_stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    let status = blocking({
        let dir = dir.clone();
        move || daemon::status(&dir)
    })
    .await
    .unwrap();
    assert_eq!(status.generation, 3);
    // Another client takes the volume; a restart of the daemon notices and asks anew.
    let forced = VolumeOptions { force: true, ..Default::default() };
    let _taker = Volume::attach(&zone.endpoints(), "demo", forced).await.unwrap();
    blocking({
        let dir = dir.clone();
        move || daemon::stop(&dir, false)
    })
    .await
    .unwrap();
    task.await.unwrap().unwrap();
    let refused = daemon::run(daemon_config(&zone, &dir), CancellationToken::new(), |_| {}).await;
    let Err(DaemonError::Control(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.reason(), Some(ashlar_proto::reason::Reason::VolumeInUse));
}

/// A daemon whose nodes are all gone, with a write that waits.
struct Stuck {
    _root: tempfile::TempDir,
    dir: std::path::PathBuf,
    writer: tokio::net::UnixStream,
    task: ashlar_env::task::Task<Result<(), DaemonError>>,
    _stop: CancellationToken,
}

async fn stuck(zone: &Zone) -> Stuck {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("demo");
    let (stop, task) = start_daemon(daemon_config(zone, &dir)).await;
    let socket = dir.join("nbd.sock");
    write_by_nbd(&socket, b"acknowledged").await;
    (1..=3).for_each(|node| zone.kill_node(NodeId(node)));
    let writer = begin_write_by_nbd(&socket, b"given up").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = dir.clone();
        if blocking(move || daemon::status(&asked)).await.unwrap().requests > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "the write is not under way");
    }
    Stuck { _root: root, dir, writer, task, _stop: stop }
}

#[tokio::test]
async fn a_stuck_volume_says_what_waits_and_by_force_it_is_fenced_before_it_is_done() {
    use tokio::io::AsyncReadExt;
    let zone = Zone::start(SIZE).await;
    let Stuck { _root, dir, mut writer, task, _stop } = stuck(&zone).await;
    let asked = dir.clone();
    let began = Instant::now();
    let plain = blocking(move || daemon::stop(&asked, true)).await;
    let Err(DaemonError::Stuck(waits)) = plain else { panic!("{plain:?}") };
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(waits.requests > 0 && waits.millis >= 4_000, "{waits:?}");
    assert_eq!(waits.nodes_down, [1, 2, 3]);
    assert_eq!(zone.world.lock().unwrap().generation, 1, "nothing has changed");

    let (asked, world) = (dir.clone(), zone.world.clone());
    let (ended, generation) = blocking(move || {
        let ended = daemon::stop_by_force(&asked);
        (ended, world.lock().unwrap().generation)
    })
    .await;
    assert!(ended.unwrap().given_up > 0);
    assert_eq!(generation, 2, "fenced before it was said to be done");
    let mut reply = [0; 16];
    writer.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[4..8], [0, 0, 0, 5], "EIO");
    task.await.unwrap().unwrap();
    assert!(!dir.join("attachment.json").exists());
}

#[tokio::test]
async fn a_forced_end_without_a_control_plane_says_that_the_attachment_stands() {
    let zone = Zone::start(SIZE).await;
    let Stuck { _root, dir, writer: _writer, task, _stop } = stuck(&zone).await;
    zone.stop_control();
    let asked = dir.clone();
    let began = Instant::now();
    let ended = blocking(move || daemon::stop_by_force(&asked)).await;
    assert!(matches!(ended, Err(DaemonError::NotFenced(_))), "{ended:?}");
    assert!(began.elapsed() < daemon::FORCED_WITHIN, "{:?}", began.elapsed());
    task.await.unwrap().unwrap();
    assert!(dir.join("attachment.json").exists(), "what is left to be given up is kept");
}

#[tokio::test]
async fn an_unknown_volume_and_a_folder_of_another_volume_are_refused() {
    let zone = Zone::start(SIZE).await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("demo");
    let unknown = DaemonConfig { volume: "other".to_owned(), ..daemon_config(&zone, &dir) };
    let refused = daemon::run(unknown.clone(), CancellationToken::new(), |_| {}).await;
    let Err(DaemonError::Control(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.reason(), Some(ashlar_proto::reason::Reason::VolumeNotFound));
    let (stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    stop.cancel();
    task.await.unwrap().unwrap();
    let refused = daemon::run(unknown, CancellationToken::new(), |_| {}).await;
    assert!(matches!(refused, Err(DaemonError::OtherVolume { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_answers_garbage_with_an_error() {
    use std::io::{Read, Write};
    let zone = Zone::start(SIZE).await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_owned();
    let (stop, task) = start_daemon(daemon_config(&zone, &dir)).await;
    let said = blocking(move || {
        let ask = |bytes: &[u8]| {
            let mut stream =
                std::os::unix::net::UnixStream::connect(dir.join("control.sock")).unwrap();
            drop(stream.write_all(bytes));
            let mut said = String::new();
            drop(stream.read_to_string(&mut said));
            said
        };
        [ask(b"hello\n"), ask(&[b'x'; 5000]), ask(b"{\"ask\":\"dance\"}\n")]
    });
    for said in said.await {
        assert!(said.contains("failed"), "{said:?}");
    }
    stop.cancel();
    task.await.unwrap().unwrap();
}

async fn write_by_nbd(socket: &Path, bytes: &[u8]) {
    use tokio::io::AsyncReadExt;
    let mut stream = begin_write_by_nbd(socket, bytes).await;
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[4..8], [0; 4]);
}

async fn begin_write_by_nbd(socket: &Path, bytes: &[u8]) -> tokio::net::UnixStream {
    let mut stream = nbd_client(socket).await;
    use tokio::io::AsyncWriteExt;
    let mut request =
        b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    request.push(u8::try_from(bytes.len()).unwrap());
    request.extend_from_slice(bytes);
    stream.write_all(&request).await.unwrap();
    stream
}

async fn read_by_nbd(socket: &Path, len: u8) -> Vec<u8> {
    let mut stream = nbd_client(socket).await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    request.push(len);
    stream.write_all(&request).await.unwrap();
    let mut reply = vec![0; 16 + usize::from(len)];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[4..8], [0; 4]);
    reply.split_off(16)
}

async fn nbd_client(socket: &Path) -> tokio::net::UnixStream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
    stream.read_exact(&mut [0; 28]).await.unwrap();
    stream
}
