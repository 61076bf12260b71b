//! Members of the control plane are replaced while a client writes: first one whose log is damaged,
//! then the other two that the zone began with. In the end none of them is left.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::writer::{self, Writer};
use ashlar_tests::{binary, needs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(90);
const BLOCKS: u64 = 256;

/// A member that the test runs.
struct Member {
    id: u64,
    address: String,
    config: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Member {
    fn start(folder: &Path, added: &Value) -> Self {
        let id = added["member"].as_u64().unwrap();
        let address = added["address"].as_str().unwrap().to_owned();
        let join: Vec<&str> =
            added["join"].as_array().unwrap().iter().map(|at| at.as_str().unwrap()).collect();
        let data = folder.join(format!("added-{id}"));
        let text = format!(
            "zone = \"a\"\nmember = {id}\ndata_dir = {data:?}\nlisten = {address:?}\n\
             join = {join:?}\n"
        );
        let config = folder.join(format!("added-{id}.toml"));
        fs::write(&config, text).unwrap();
        let log = folder.join(format!("added-{id}.log"));
        let child = run(&config, &log);
        Self { id, address, config, log, child }
    }

    fn end(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).ok();
        wait::until("a member to end", WITHIN, || self.child.try_wait().unwrap());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn run(config: &Path, log: &Path) -> Child {
    let out = OpenOptions::new().create(true).append(true).open(log).unwrap();
    Command::new(binary::ashlar())
        .args(["controlplane", "run", "--config"])
        .arg(config)
        .env("NO_COLOR", "1")
        .env("ASHLAR_DIE_WITH_PARENT", std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap()
}

/// The zone, through whichever members are known to run.
struct Zone {
    cluster: Cluster,
    endpoints: String,
    added: Vec<Member>,
}

impl Zone {
    fn members(&self) -> Option<Vec<Value>> {
        let arguments = ["controlplane", "members", "-o", "json", "--endpoint", &self.endpoints];
        let (code, output, _) = self.cluster.ashlar(&arguments);
        let list: Value = (code == 0).then(|| serde_json::from_str(&output).unwrap())?;
        list["members"].as_array().cloned()
    }

    fn member(&self, id: u64) -> Option<Value> {
        self.members()?.into_iter().find(|member| member["id"] == id)
    }

    fn must(&self, arguments: &[&str]) -> String {
        self.cluster.must(&[arguments, &["--endpoint", &self.endpoints]].concat())
    }

    fn remove(&mut self, id: u64) {
        self.must(&["controlplane", "remove", &id.to_string()]);
        let log = self.cluster.folder().join(format!("log/member-{id}.log"));
        wait::until("the removed member to say so", WITHIN, || {
            let said = fs::read_to_string(&log).ok()?;
            said.contains(&format!("member {id} was removed")).then_some(())
        });
    }

    /// Adds a member, starts it, and asks it from then on.
    fn add(&mut self) {
        let address = free_address(self.added.len());
        let added = self.must(&["controlplane", "add", &address, "-o", "json"]);
        let added: Value = serde_json::from_str(&added).unwrap();
        let folder = self.cluster.folder();
        let member = Member::start(&folder, &added);
        let id = member.id;
        self.endpoints = format!("{},{}", member.address, self.endpoints);
        self.added.push(member);
        wait::until("the new member to vote", WITHIN, || {
            let member = self.member(id)?;
            let votes = member["role"] == "follower" || member["role"] == "leader";
            (votes && member["reachable"] == true).then_some(())
        });
        let (folder, address) = (self.cluster.folder(), self.added.last().unwrap().address.clone());
        wait::until("the client to hear of it", WITHIN, || {
            client_knows(&folder, &address).then_some(())
        });
    }

    fn wait_for_nodes(&self) {
        wait::until("all nodes to be up", WITHIN, || {
            let arguments = ["node", "list", "-o", "json", "--endpoint", &self.endpoints];
            let (code, output, _) = self.cluster.ashlar(&arguments);
            let list: Value = (code == 0).then(|| serde_json::from_str(&output).unwrap())?;
            let up = list["nodes"].as_array()?.iter().all(|node| node["state"] == "up");
            up.then_some(())
        });
    }
}

/// Whether the client's daemon keeps that a member is there. Clients ask every ten seconds: who
/// replaces all members faster than that leaves them behind (docs/decisions/0007).
fn client_knows(folder: &Path, address: &str) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some("data" | "mnt") => false,
            Some("map.json") => fs::read_to_string(&path).is_ok_and(|text| text.contains(address)),
            _ => path.is_dir() && client_knows(&path, address),
        }
    })
}

/// An address of loopback that nobody else in this run has, and a port below those of outgoing
/// connections.
fn free_address(number: usize) -> String {
    let ip = format!("127.77.0.{}", number + 1);
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    let free = |address: &String| std::net::TcpListener::bind(address).is_ok();
    (first..32_000).map(|port| format!("{ip}:{port}")).find(free).unwrap()
}

/// Overwrites what a log says early on; later records are whole.
fn damage(folder: &Path) {
    let mut damaged = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("spare") {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { continue };
        // In the middle of what it holds, a whole page of it.
        let at = (last / 2) / 4096 * 4096;
        file.write_all_at(&[0x5a; 4096], at as u64).unwrap();
        file.sync_all().unwrap();
        damaged += 1;
    }
    assert!(damaged > 0, "no log in {}", folder.display());
}

fn first_follower(zone: &Zone) -> u64 {
    let members = wait::until("members", WITHIN, || zone.members());
    let follower = members.iter().find(|member| member["role"] == "follower").unwrap();
    follower["id"].as_u64().unwrap()
}

#[test]
fn every_member_is_replaced_under_load_and_the_first_one_has_a_damaged_log() {
    if !needs::has_all("members", &[needs::Need::Fuse]) {
        return;
    }
    let cluster = Cluster::start(&["--no-mount"]);
    let status = cluster.status().unwrap();
    let old: Vec<(u64, String)> = status["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["id"].as_u64().unwrap(), m["address"].as_str().unwrap().to_owned()))
        .collect();
    let endpoints = old.iter().map(|(_, at)| at.as_str()).collect::<Vec<_>>().join(",");
    cluster.must(&["volume", "create", "vital", "--size", "64MiB"]);
    cluster.must(&["attach", "vital"]);
    let file = cluster.fuse_file("vital");
    let writer = Writer::start(&file, BLOCKS);
    wait::until("the writer to write", WITHIN, || (writer.count() > 100).then_some(()));
    let mut zone = Zone { cluster, endpoints, added: Vec::new() };

    // One loses its log: it does not vote, and the zone says what to do.
    let lost = first_follower(&zone);
    damage(&zone.cluster.folder().join(format!("data/member-{lost}/log")));
    zone.cluster.kill(&format!("member-{lost}"));
    let shown = wait::until("the member to be shown as forgetful", WITHIN, || {
        zone.member(lost).filter(|member| member["forgetful"] != "")
    });
    assert!(shown["remedy"].as_str().unwrap().contains(&format!("remove {lost}")), "{shown:#}");
    let table = zone.must(&["status"]);
    assert!(table.contains("forgetful"), "{table}");
    zone.must(&["controlplane", "remove", &lost.to_string()]);
    zone.add();

    for (id, _) in old.iter().filter(|(id, _)| *id != lost) {
        zone.remove(*id);
        zone.add();
    }
    // None of those that nodes and clients were configured with is left.
    zone.endpoints = zone.added.iter().map(|m| m.address.as_str()).collect::<Vec<_>>().join(",");
    let members = wait::until("members", WITHIN, || zone.members());
    assert!(members.iter().all(|member| member["id"].as_u64().unwrap() > 100), "{members:#?}");
    assert_eq!(members.len(), 3);
    zone.wait_for_nodes();

    // A node that starts anew finds them in its folder; the client goes on meanwhile.
    let before = writer.count();
    zone.cluster.kill("node-1");
    zone.wait_for_nodes();
    wait::until("writes after the replacement", WITHIN, || {
        (writer.count() > before + 200).then_some(())
    });

    // An empty folder under a number that has run is refused by name, and an added one restarts.
    let added = zone.added.first_mut().unwrap();
    added.end();
    let (config, log) = (added.config.clone(), added.log.clone());
    added.child = run(&config, &log);
    let id = added.id;
    wait::until("the restarted member to be there", WITHIN, || {
        zone.member(id).filter(|member| member["reachable"] == true)
    });
    let added = zone.added.last_mut().unwrap();
    added.end();
    fs::remove_dir_all(zone.cluster.folder().join(format!("added-{}", added.id))).unwrap();
    added.child = run(&added.config.clone(), &added.log.clone());
    let status =
        wait::until("the emptied member to end", WITHIN, || added.child.try_wait().unwrap());
    assert!(!status.success());
    let said = fs::read_to_string(&added.log).unwrap();
    assert!(said.contains("has run before") && said.contains("MEMBER_RAN_BEFORE"), "{said}");

    let seen = writer.finish();
    assert_eq!(seen.error, None);
    writer::assert_there(&file, &seen);
    let longest = seen.times.iter().map(|(_, took)| *took).max().unwrap_or_default();
    eprintln!("members: {} writes, the longest took {longest:?}", seen.times.len());
    // Its daemon asks those members that it has heard of since.
    zone.cluster.must(&["detach", "vital"]);
}
