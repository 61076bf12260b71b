//! Hostile bytes on every socket of a zone (issue 4): whoever sends them is refused or cut off; no
//! process is replaced, panics or grows, and a clean client is served as before.
//!
//! 10,000 cases of some sixty kinds; a million with `ASHLAR_NIGHTLY` set. Case and seed make the same
//! bytes again; the kinds come in turns, so each is sent as often as any other.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test ends by a panic and speaks"
)]

mod clean;
mod dice;
mod frames;
mod grpc;
mod kinds;
mod nbd;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashlar_proto::v1::AttachVolumeRequest;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use ashlar_tests::cluster::Cluster;
use ashlar_tests::{sized, wait};
use ashlar_types::Generation;
use dice::Dice;
use kinds::{After, Bait, Door, Kind, NodePorts, World};
use nix::unistd::Pid;
use serde_json::Value;

const SEED: u64 = 4;
/// Senders at a time.
const SENDERS: u64 = 4;
/// Cases before memory is looked at: buffers and tables have their usual size then.
const WARM_UP: u64 = 2_000;
/// Longest that an answer or an end may take: a hello may take 2 s, a handshake of NBD 10 s.
const ENDED_WITHIN: Duration = Duration::from_secs(20);
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// A connection to either sort of door.
trait Connection: Read + Write {
    fn end(&self) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Connection for UnixStream {
    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

fn tcp(address: &str) -> Box<dyn Connection> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ENDED_WITHIN)).unwrap();
    stream.set_write_timeout(Some(ENDED_WITHIN)).unwrap();
    Box::new(stream)
}

fn connect(door: Door, dice: &mut Dice, world: &World) -> Box<dyn Connection> {
    let node = &world.nodes[dice.below(world.nodes.len())];
    match door {
        Door::Nbd => {
            let stream = UnixStream::connect(&world.socket).unwrap();
            stream.set_read_timeout(Some(ENDED_WITHIN)).unwrap();
            stream.set_write_timeout(Some(ENDED_WITHIN)).unwrap();
            Box::new(stream)
        }
        Door::Primary => tcp(&node.primary),
        Door::Replication => tcp(&node.replication),
        Door::Data => tcp(dice.one(&[&node.primary, &node.replication])),
        Door::Member => tcp(&world.members[dice.below(world.members.len())]),
    }
}

/// Whether an error says that time ran out, and not that the other side has gone.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Sends one case; gives what is wrong with what came back.
fn send(kind: &Kind, dice: &mut Dice, world: &World) -> Result<(), String> {
    let mut connection = connect(kind.door, dice, world);
    let bytes = (kind.make)(dice, world);
    let written = connection.write_all(&bytes);
    if written.as_ref().is_err_and(is_late) {
        return Err("the bytes are neither taken nor refused".to_owned());
    }
    match kind.after {
        After::Leaves => return Ok(()),
        After::EndsAndReads => drop(connection.end()),
        After::Waits => {}
    }
    let mut answer = Vec::new();
    match connection.read_to_end(&mut answer) {
        Ok(_) => (kind.judge)(&answer),
        Err(error) if is_late(&error) => Err(format!("still open, after {} bytes", answer.len())),
        // Closed with bytes of ours unread: what was answered before may be lost on the way.
        Err(_) => Ok(()),
    }
}

/// Sends cases `from` to `to`; counts them by kind.
fn send_all(world: &World, kinds: &[Kind], from: u64, to: u64, sent: &[AtomicU64]) {
    let count = kinds.len() as u64;
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            scope.spawn(move || {
                for case in (from..to).filter(|case| case % SENDERS == sender) {
                    let place = usize::try_from(case % count).unwrap();
                    let kind = &kinds[place];
                    if let Err(what) = send(kind, &mut Dice::new(SEED, case), world) {
                        panic!("seed {SEED}, case {case}, `{}`: {what}", kind.name);
                    }
                    sent[place].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

/// Attaches a volume by a call, as a client does that never comes.
fn bait(cluster: &Cluster, member: &str) -> Bait {
    cluster.must(&["volume", "create", "bait", "--size", "64MiB", "--wait"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = VolumeServiceClient::connect(format!("http://{member}")).await.unwrap();
        let request = AttachVolumeRequest {
            volume: "bait".to_owned(),
            client_name: "nobody".to_owned(),
            client_token: "bait-1".to_owned(),
            ..AttachVolumeRequest::default()
        };
        let answer = client.attach_volume(request).await.unwrap().into_inner();
        let map = answer.map.unwrap();
        let volume = map.volume.unwrap().id.parse().unwrap();
        Bait { volume, generation: Generation(map.generation), token: answer.token }
    })
}

fn world(cluster: &Cluster, size_bytes: u64) -> World {
    let status = cluster.status().unwrap();
    let text = |value: &Value| value.as_str().unwrap().trim_start_matches("http://").to_owned();
    let list = |name: &str| status[name].as_array().unwrap().clone();
    let nodes = list("nodes");
    let nodes = nodes.iter().map(|node| NodePorts {
        primary: text(&node["primary_address"]),
        replication: text(&node["replication_address"]),
    });
    let members: Vec<String> =
        list("members").iter().map(|member| text(&member["address"])).collect();
    let bait = bait(cluster, &members[0]);
    let zone = bait.volume.zone;
    World { socket: cluster.socket(), size_bytes, zone, nodes: nodes.collect(), members, bait }
}

/// Every process of the cluster by name, the daemon of the volume among them.
fn processes(cluster: &Cluster) -> BTreeMap<String, Pid> {
    let entries = fs::read_dir(cluster.folder().join("run")).unwrap();
    let names = entries.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".pid").map(str::to_owned)
    });
    names.filter_map(|name| cluster.pid(&name).map(|pid| (name, pid))).collect()
}

fn assert_no_panic(cluster: &Cluster) {
    for entry in fs::read_dir(cluster.folder().join("log")).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let line = text.lines().find(|line| line.contains("panicked"));
        assert_eq!(line, None, "{}", path.display());
    }
}

#[test]
fn hostile_bytes_hurt_nobody() {
    let mut cluster = Cluster::start(&["--no-mount", "--members", "1", "--nodes", "3"]);
    cluster.wait_whole(SETTLED_WITHIN);
    let mut client = clean::Client::connect(&cluster.socket());
    let size_bytes = client.size_bytes;
    client.write(&clean::pattern(1));
    drop(client);
    let world = world(&cluster, size_bytes);
    let kinds = kinds::all();
    let sent: Vec<AtomicU64> = kinds.iter().map(|_| AtomicU64::new(0)).collect();
    let count = sized(10_000, 1_000_000);
    let before_all = processes(&cluster);
    assert!(before_all.len() >= 5, "{before_all:?}: too few processes to watch");

    let began = Instant::now();
    send_all(&world, &kinds, 0, WARM_UP, &sent);
    let before: BTreeMap<_, _> =
        before_all.iter().map(|(name, pid)| (name, watch::held(*pid).unwrap())).collect();
    send_all(&world, &kinds, WARM_UP, count, &sent);
    eprintln!("{count} cases of {} kinds in {:?}", kinds.len(), began.elapsed());

    for (kind, sent) in kinds.iter().zip(&sent) {
        assert!(sent.load(Ordering::Relaxed) >= count / 60, "`{}` was hardly sent", kind.name);
    }
    assert!(kinds.len() >= 30);
    assert_eq!(processes(&cluster), before_all, "a process was replaced");
    for (name, pid) in &before_all {
        let held = || watch::held(*pid).unwrap();
        eprintln!("{name}: {:?} -> {:?}", before[name], held());
        wait::until(&format!("{name} to hold what it held"), SETTLED_WITHIN, || {
            watch::growth(before[name], held()).is_none().then_some(())
        });
    }
    assert_no_panic(&cluster);
    let mut client = clean::Client::connect(&cluster.socket());
    assert!(client.read() == clean::pattern(1), "what was written before has changed");
    client.write(&clean::pattern(2));
    assert!(client.read() == clean::pattern(2), "what was written afterwards is not there");
    cluster.wait_whole(SETTLED_WITHIN);
    cluster.stop();
}
