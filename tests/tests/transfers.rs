//! `ashlar volume export` and `import` on a zone of real processes: the same content back, holes kept,
//! killed and gone on with, and everything that must not be gone on with.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends by a panic"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ashlar_tests::cluster::Cluster;
use ashlar_tests::{binary, wait};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A content that looks random and is the same every time.
fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let words = (0..len / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// A sparse file: noise here and there, an odd length.
fn sparse_file(path: &Path) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(40 * MIB + 1234).unwrap();
    file.write_all_at(&noise(MIB, 1), 3 * MIB).unwrap();
    file.write_all_at(&noise(4096, 2), 17 * MIB + 4096).unwrap();
    file.write_all_at(b"the end", 40 * MIB + 1200).unwrap();
    fs::read(path).unwrap()
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    serde_json::from_str(&cluster.must(&[arguments, &["-o", "json"]].concat())).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Starts a transfer, and kills it once it has noted so many pieces.
fn kill_midway(cluster: &Cluster, arguments: &[&str], notes: &Path, pieces: usize) {
    let mut child: Child = Command::new(binary::ashlar())
        .args(arguments)
        .env("ASHLAR_DEV_DIR", cluster.folder())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("some pieces to be done", Duration::from_secs(60), || {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        let noted = fs::read_to_string(notes).unwrap_or_default();
        (noted.matches("\"piece\"").count() >= pieces).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

struct Scene {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Scene {
    fn start() -> Self {
        let cluster = Cluster::start(&["--no-mount", "--members", "1", "--nodes", "3"]);
        Self { cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn attached(&self, volume: &str) -> bool {
        !json(&self.cluster, &["volume", "show", volume])["attachment"].is_null()
    }
}

#[test]
fn content_comes_back_as_it_was_in_every_form_and_holes_stay_holes() {
    let mut scene = Scene::start();
    let cluster = &scene.cluster;
    let source = scene.path("source");
    let mut content = sparse_file(&source);
    let imported = json(cluster, &["volume", "import", text(&source), "--name", "one"]);
    // A volume is a whole number of blocks.
    content.resize(content.len().next_multiple_of(4096), 0);
    assert_eq!(imported["size_bytes"], content.len(), "{imported}");
    assert_eq!(imported["data_bytes"], MIB + 4096 + 1234, "{imported}");
    assert!(!scene.attached("one"), "the attachment was given back");

    let (raw, packed) = (scene.path("raw"), scene.path("packed.zst"));
    let exported = json(cluster, &["volume", "export", "one", text(&raw)]);
    assert_eq!(fs::read(&raw).unwrap(), content);
    assert_eq!(exported["crc32c"], imported["crc32c"]);
    assert!(fs::metadata(&raw).unwrap().blocks() * 512 < 4 * MIB, "it is not sparse");
    let also = json(cluster, &["volume", "export", "one", text(&packed)]);
    assert_eq!(also["crc32c"], imported["crc32c"]);
    assert!(fs::metadata(&packed).unwrap().len() < 2 * MIB, "holes take room");
    for notes in ["source.ashlar-import", "raw.ashlar-export", "packed.zst.ashlar-export"] {
        assert!(!scene.path(notes).exists(), "{notes} is left");
    }

    let again = json(cluster, &["volume", "import", text(&packed), "--name", "two"]);
    assert_eq!(
        (&again["crc32c"], &again["size_bytes"]),
        (&imported["crc32c"], &imported["size_bytes"])
    );
    let pipe = Command::new(binary::ashlar())
        .args(["volume", "export", "two", "-"])
        .env("ASHLAR_DEV_DIR", cluster.folder())
        .output()
        .unwrap();
    assert!(pipe.stdout == content, "{}", String::from_utf8_lossy(&pipe.stderr));
    assert!(String::from_utf8_lossy(&pipe.stderr).contains("not read back"));

    let mut child = Command::new(binary::ashlar())
        .args(["volume", "import", "-", "--name", "three", "--size", "8MiB", "--copies", "1"])
        .env("ASHLAR_DEV_DIR", cluster.folder())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&content[..5_000_000]).unwrap();
    assert!(child.wait().unwrap().success());
    let last = scene.path("last");
    cluster.must(&["volume", "export", "three", text(&last)]);
    let mut wanted = content[..5_000_000].to_vec();
    wanted.resize(8 << 20, 0);
    assert!(fs::read(&last).unwrap() == wanted);
    scene.cluster.stop();
}

#[test]
fn a_killed_import_goes_on_and_a_changed_file_is_refused() {
    let mut scene = Scene::start();
    let cluster = &scene.cluster;
    let source = scene.path("source");
    let content = noise(96 * MIB, 3);
    fs::write(&source, &content).unwrap();
    let import = ["volume", "import", text(&source), "--name", "one"];
    let notes = scene.path("source.ashlar-import");
    kill_midway(cluster, &import, &notes, 3);
    assert!(scene.attached("one"), "killed, it gave nothing back");

    // The same length and time, another byte in a piece that was done.
    let kept = fs::metadata(&source).unwrap().modified().unwrap();
    let change = |byte: u8| {
        let file = File::options().write(true).open(&source).unwrap();
        file.write_all_at(&[byte], 5 * MIB).unwrap();
        file.set_modified(kept).unwrap();
    };
    let there = content[5 << 20];
    change(!there);
    let (code, _, error) = cluster.ashlar(&import);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("has changed since the last run"), "{error}");
    change(there);
    let done = json(cluster, &import);
    assert!(done["resumed_pieces"].as_u64().unwrap() >= 3, "{done}");
    let back = scene.path("back");
    cluster.must(&["volume", "export", "one", text(&back)]);
    assert!(fs::read(&back).unwrap() == content, "the content is another one");
    let (code, _, error) = cluster.ashlar(&["volume", "import", text(&source), "--name", "one"]);
    assert_eq!(code, 4, "the name is taken: {error}");
    scene.cluster.stop();
}

#[test]
fn a_killed_export_goes_on_from_what_is_right_and_not_after_a_stranger() {
    let mut scene = Scene::start();
    let cluster = &scene.cluster;
    let source = scene.path("source");
    let content = noise(96 * MIB, 4);
    fs::write(&source, &content).unwrap();
    cluster.must(&["volume", "import", text(&source), "--name", "one"]);
    for (name, form) in [("raw", "raw"), ("packed", "zstd")] {
        let file = scene.path(name);
        let export = ["volume", "export", "one", text(&file), "--form", form];
        let notes = scene.path(&format!("{name}.ashlar-export"));
        kill_midway(cluster, &export, &notes, 4);
        // The second piece is damaged: all from there on is done again.
        let damaged = File::options().write(true).open(&file).unwrap();
        damaged.write_all_at(b"damaged by hand", 6 * MIB).unwrap();
        let done = json(cluster, &export);
        assert_eq!(done["resumed_pieces"], 1, "{done}");
        assert!(!scene.attached("one"), "{done}");
    }
    assert!(fs::read(scene.path("raw")).unwrap() == content, "the content is another one");
    cluster.must(&[
        "volume",
        "import",
        text(&scene.path("packed")),
        "--name",
        "two",
        "--form",
        "zstd",
    ]);
    let two = scene.path("two");
    cluster.must(&["volume", "export", "two", text(&two)]);
    assert!(fs::read(&two).unwrap() == content, "the content is another one");

    // Somebody else between two runs may have written.
    let file = scene.path("late");
    let export = ["volume", "export", "one", text(&file)];
    kill_midway(cluster, &export, &scene.path("late.ashlar-export"), 1);
    cluster.must(&["detach", "one", "--force"]);
    cluster.must(&["attach", "one", "--no-fuse"]);
    cluster.must(&["detach", "one"]);
    let (code, _, error) = cluster.ashlar(&export);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("somebody else was attached"), "{error}");
    scene.cluster.stop();
}

#[test]
fn what_cannot_be_transferred_is_refused_and_nothing_stays_attached() {
    let mut scene = Scene::start();
    let cluster = &scene.cluster;
    let there = scene.path("there");
    fs::write(&there, b"not to be lost").unwrap();
    cluster.must(&["volume", "create", "one", "--size", "16MiB"]);
    let refused = |arguments: &[&str], wanted: i32, why: &str| {
        let (code, _, error) = cluster.ashlar(arguments);
        assert_eq!(code, wanted, "{arguments:?}: {error}");
        assert!(error.contains(why), "{arguments:?}: {error}");
    };
    refused(&["volume", "export", "one", text(&there)], 4, "is there already");
    assert_eq!(fs::read(&there).unwrap(), b"not to be lost");
    let new = scene.path("new");
    refused(&["volume", "export", "demo", text(&new)], 4, "it is attached to");
    refused(&["volume", "export", "nothing", text(&new)], 3, "");
    refused(&["volume", "import", "/no/such/file", "--name", "x"], 3, "No such file");
    refused(&["volume", "import", "-", "--name", "x"], 2, "--size");
    let small = ["volume", "import", text(&there), "--name", "x", "--size", "1"];
    cluster.must(&small);
    refused(&["volume", "show", "y"], 3, "");
    refused(&["volume", "import", text(&there), "--name", "y", "--size", "0"], 2, "at least that");
    let garbage = scene.path("garbage.zst");
    fs::write(&garbage, b"no frame of zstd").unwrap();
    refused(&["volume", "import", text(&garbage), "--name", "z"], 1, "garbage.zst");

    // The reader of the pipe is gone from the start.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(binary::ashlar())
        .args(["volume", "export", "one", "-"])
        .env("ASHLAR_DEV_DIR", cluster.folder())
        .stdout(writer)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("Broken pipe"), "{error}");
    assert!(!scene.attached("one"), "the attachment was given back");
    scene.cluster.stop();
}
