//! PostgreSQL and SQLite on a mounted volume, while nodes and leaders are killed and the power goes:
//! every acknowledged commit is there, every index agrees with its table.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test ends by a panic and speaks"
)]

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::needs::{self, Need};
use ashlar_tests::{sized, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
const WITHIN: Duration = Duration::from_secs(120);

/// Rows inserted one after the other through a database's own shell; each counts when a query that
/// comes after its transaction finds it.
struct Ledger {
    child: Child,
    committed: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Ledger {
    /// Goes on after `last`. `shell` reads statements and prints the number of each new row.
    fn start(mut shell: Command, last: u64) -> Self {
        let mut child = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let committed = Arc::new(AtomicU64::new(last));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let thread = {
            let committed = committed.clone();
            std::thread::spawn(move || insert(input, BufReader::new(output), last, &committed))
        };
        Self { child, committed, thread }
    }

    fn count(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Ends the shell in the middle of whatever it does; gives the last row that was committed.
    fn end(mut self) -> u64 {
        kill_all(&self.child);
        self.child.wait().unwrap();
        self.thread.join().unwrap();
        self.committed.load(Ordering::Relaxed)
    }
}

fn insert(mut input: ChildStdin, output: impl BufRead, last: u64, committed: &AtomicU64) {
    let mut lines = output.lines();
    for number in last + 1.. {
        // Two statements: what one returns may be printed before it is committed.
        let statement = format!(
            "INSERT INTO ledger VALUES ({number});\nSELECT n FROM ledger WHERE n = {number};\n"
        );
        if input.write_all(statement.as_bytes()).and_then(|()| input.flush()).is_err() {
            return;
        }
        // Anything else but the number: the database is going down.
        match lines.next() {
            Some(Ok(line)) if line.trim() == number.to_string() => {
                committed.store(number, Ordering::Relaxed);
            }
            _ => return,
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Kills nodes and the leader in turn while the ledger grows.
fn kill_while_it_grows(cluster: &Cluster, ledger: &Ledger, rounds: usize) {
    for round in 0..rounds {
        let before = ledger.count();
        if round % 3 == 2 {
            let leader = cluster.status().unwrap()["leader"].as_u64().unwrap();
            cluster.kill(&format!("member-{leader}"));
        }
        cluster.kill(&format!("node-{}", round % 4 + 1));
        wait::until("commits to go on", WITHIN, || (ledger.count() > before + 20).then_some(()));
        cluster.wait_whole(WITHIN);
    }
}

/// Processes that a process has started.
fn children(pid: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// Kills a process and all that it has started, and they, and waits until they are gone. Each is
/// stopped first, so that none starts another meanwhile.
fn kill_all(first: &Child) {
    let first = Pid::from_raw(i32::try_from(first.id()).unwrap());
    let mut all = vec![first];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        kill(*pid, Signal::SIGSTOP).ok();
        all.extend(children(*pid));
        at += 1;
    }
    for pid in &all {
        kill(*pid, Signal::SIGKILL).ok();
    }
    let others = all.iter().filter(|pid| **pid != first);
    let left = || others.clone().any(|pid| kill(*pid, None).is_ok());
    wait::until("killed processes to be gone", WITHIN, || (!left()).then_some(()));
}

/// A PostgreSQL server on the mounted volume; it refuses to run as root.
struct Postgres {
    data: PathBuf,
    /// For its socket: not on the volume.
    sockets: tempfile::TempDir,
    server: Option<Child>,
}

impl Postgres {
    fn program(name: &str) -> Command {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(Path::new(POSTGRES).join(name));
        command.current_dir("/");
        command
    }

    /// A new cluster of databases in a folder of the volume.
    fn make(cluster: &Cluster) -> Self {
        // The folders of a test are root's alone; the server must be able to pass.
        let mut folder = cluster.mount_point();
        while folder != std::env::temp_dir() {
            std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
            folder = folder.parent().unwrap().to_path_buf();
        }
        let sockets = tempfile::tempdir().unwrap();
        let data = cluster.mount_point().join("postgres");
        std::fs::create_dir(&data).unwrap();
        for folder in [sockets.path(), &data] {
            run(Command::new("chown").arg("postgres").arg(folder));
        }
        run(Self::program("initdb").args(["-A", "trust", "-D"]).arg(&data));
        let mut postgres = Self { data, sockets, server: None };
        postgres.start();
        postgres
    }

    fn start(&mut self) {
        let log = self.sockets.path().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let server = Self::program("postgres")
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(self.sockets.path())
            .args(["-c", "listen_addresses="])
            // Shared memory of a server that was killed would stay behind on the host.
            .args(["-c", "dynamic_shared_memory_type=mmap"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        wait::until("the server to answer", WITHIN, || {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "the server ended: {}", self.log());
            let ready = self.client("pg_isready").stdout(Stdio::null()).status().unwrap();
            ready.success().then_some(())
        });
    }

    /// The end of what the server has said.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.sockets.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Self::program(name);
        command.arg("-h").arg(self.sockets.path());
        command
    }

    fn sql(&self, statement: &str) -> String {
        run(self.client("psql").args(["-X", "-At", "-q", "-c", statement, "postgres"]))
    }

    fn shell(&self) -> Command {
        let mut shell = self.client("psql");
        shell.args(["-X", "-At", "-q", "postgres"]);
        shell
    }

    /// Its power is cut: every process of it ends at once. Killing the first alone would leave
    /// those that wait for a lock which another held when it died.
    fn cut(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        kill_all(&server);
        server.wait().unwrap();
    }

    fn check(&self, committed: u64) {
        let rows: u64 = self.sql("SELECT count(*) FROM ledger").trim().parse().unwrap();
        let last: u64 = self.sql("SELECT max(n) FROM ledger").trim().parse().unwrap();
        assert!(last >= committed, "{committed} were committed, {last} is the last one there");
        assert_eq!(rows, last, "rows are missing in the middle");
        run(self.client("pg_amcheck").args(["--heapallindexed", "-d", "postgres"]));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.cut();
    }
}

#[test]
fn postgres_outlives_nodes_leaders_and_the_power() {
    let tools = [Need::Tool("runuser"), Need::Tool("/usr/lib/postgresql/15/bin/postgres")];
    if !needs::has_all("postgres", &[needs::MOUNT, &tools].concat()) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let mut postgres = Postgres::make(&cluster);
    postgres.sql("CREATE EXTENSION amcheck");
    postgres.sql("CREATE TABLE ledger (n bigint PRIMARY KEY)");
    run(postgres.client("pgbench").args(["-i", "-q", "-s", "2", "postgres"]));
    let ledger = Ledger::start(postgres.shell(), 0);
    let mut bench = postgres
        .client("pgbench")
        .args(["-c", "4", "-T", "100000", "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    kill_while_it_grows(&cluster, &ledger, sized(4, 100));
    assert!(bench.try_wait().unwrap().is_none(), "a transaction of pgbench failed");
    let mut committed = ledger.count();
    eprintln!("postgres: {committed} commits while nodes and leaders were killed");
    let mut ledger = Some(ledger);
    for _ in 0..sized(1, 10) {
        postgres.cut();
        cluster.power_off();
        committed = ledger.take().map_or(committed, Ledger::end);
        cluster.start_again();
        postgres.start();
        postgres.check(committed);
        let last: u64 = postgres.sql("SELECT max(n) FROM ledger").trim().parse().unwrap();
        let next = Ledger::start(postgres.shell(), last);
        wait::until("commits", WITHIN, || (next.count() > last + 50).then_some(()));
        ledger = Some(next);
    }
    committed = ledger.take().map_or(committed, Ledger::end);
    postgres.check(committed);
    kill_all(&bench);
    bench.wait().unwrap();
    postgres.cut();
    cluster.stop();
}

#[test]
fn sqlite_outlives_nodes_leaders_and_the_power() {
    if !needs::has_all("sqlite", &[needs::MOUNT, &[Need::Tool("sqlite3")]].concat()) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let file = cluster.mount_point().join("ledger.db");
    let sqlite = || {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "sqlite3", "-batch", "-bail"]).arg(&file);
        command
    };
    run(sqlite().arg("PRAGMA journal_mode=WAL; CREATE TABLE ledger (n INTEGER UNIQUE);"));
    let mut committed = 0;
    let shell = || {
        let mut shell = sqlite();
        // Every commit is flushed; the default of WAL would flush at checkpoints only.
        shell.args(["-cmd", "PRAGMA synchronous=FULL"]);
        shell
    };
    for power in 0..sized(2, 10) {
        let ledger = Ledger::start(shell(), committed);
        kill_while_it_grows(&cluster, &ledger, if power == 0 { sized(3, 50) } else { 1 });
        cluster.power_off();
        committed = ledger.end();
        cluster.start_again();
        assert_eq!(run(sqlite().arg("PRAGMA integrity_check")).trim(), "ok");
        let count = |what: &str| -> u64 {
            run(sqlite().arg(format!("SELECT {what} FROM ledger"))).trim().parse().unwrap()
        };
        let (rows, last) = (count("count(*)"), count("max(n)"));
        assert!(last >= committed, "{committed} were committed, {last} is the last one there");
        assert_eq!(rows, last, "rows are missing in the middle");
        committed = last;
    }
    eprintln!("sqlite: {committed} commits, all there");
    cluster.stop();
}
