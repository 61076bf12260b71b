//! The NBD export as real clients see it: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, nbdfuse; and
//! what it does with clients that send garbage.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{Server, have, noise, output, run, wait_for};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

#[test]
fn nbdinfo_sees_size_name_and_abilities() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let server = Server::start(64 << 20, false);
    let info = run(Command::new("nbdinfo").arg("--json").arg(server.uri()));
    for expected in [
        "\"export-name\": \"demo\"",
        "\"export-size\": 67108864",
        "\"is_read_only\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"block_size_preferred\": 4096",
        "\"structured\": true",
    ] {
        assert!(info.contains(expected), "{expected} is not in {info}");
    }
    let list = format!("nbd+unix:///?socket={}", server.socket().display());
    assert!(run(Command::new("nbdinfo").arg("--list").arg(list)).contains("demo"));
    let other = format!("nbd+unix:///other?socket={}", server.socket().display());
    assert!(!output(Command::new("nbdinfo").arg(other)).status.success());
}

#[test]
fn nbdcopy_brings_back_what_it_took_with_many_connections() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let server = Server::start(32 << 20, false);
    let (from, to) = (server.dir.path().join("from"), server.dir.path().join("to"));
    let mut content = noise(1, 32 << 20);
    content[5 << 20..9 << 20].fill(0);
    std::fs::write(&from, &content).unwrap();
    run(Command::new("nbdcopy").arg("--connections=4").arg("--flush").arg(&from).arg(server.uri()));
    run(Command::new("nbdcopy").arg("--connections=4").arg(server.uri()).arg(&to));
    assert!(std::fs::read(&to).unwrap() == content);
}

#[test]
fn qemu_converts_compares_and_patterns_hold_at_any_alignment() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let server = Server::start(32 << 20, false);
    let image = server.dir.path().join("image");
    std::fs::write(&image, noise(2, 32 << 20)).unwrap();
    let uri = server.uri();
    run(Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "raw"])
        .arg(&image)
        .arg(&uri));
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&image).arg(&uri));
    let script = [
        "write -P 0xa5 512 1024",
        "read -P 0xa5 512 1024",
        "write -P 0x11 1048576 3145728",
        "write -z -u 1049088 12288",
        "read -P 0 1049088 12288",
        "read -P 0x11 1048576 512",
        "discard 2097152 65536",
        "read -P 0 2097152 65536",
        "write -f -P 0x77 4096 512",
        "flush",
        "read -P 0x77 4096 512",
    ];
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for line in script {
        command.args(["-c", line]);
    }
    let said = run(command.arg(&uri));
    assert!(!said.contains("verification failed"), "{said}");
}

#[test]
fn fio_verifies_random_writes_at_depth_32() {
    if !have(&["fio"]) {
        return;
    }
    let server = Server::start(16 << 20, false);
    run(Command::new("fio").args([
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={}", server.uri()),
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=16m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
        "--verify_fatal=1",
    ]));
}

#[test]
fn nbdfuse_presents_the_export_as_a_file() {
    if !have(&["nbdfuse", "root", "/dev/fuse"]) {
        return;
    }
    let server = Server::start(1 << 20, false);
    let file = server.dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let mut child = Command::new("nbdfuse").arg(&file).arg(server.uri()).spawn().unwrap();
    wait_for("nbdfuse", || std::fs::metadata(&file).is_ok_and(|m| m.len() == 1 << 20));
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().write_all(b"through").unwrap();
    run(Command::new("fusermount3").arg("-u").arg(&file));
    assert!(child.wait().unwrap().success());
    let read = run(Command::new("qemu-io")
        .args(["-r", "-f", "raw", "-c", "read -v 0 8"])
        .arg(server.uri()));
    assert!(read.contains("through"), "{read}");
}

#[test]
fn a_read_only_export_refuses_writes() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let server = Server::start(1 << 20, true);
    let info = run(Command::new("nbdinfo").arg("--json").arg(server.uri()));
    assert!(info.contains("\"is_read_only\": true"));
    let write = ["-f", "raw", "-c", "write 0 4096"];
    assert!(!output(Command::new("qemu-io").args(write).arg(server.uri())).status.success());
}

#[test]
fn garbage_and_huge_lengths_close_only_their_own_connection() {
    let server = Server::start(1 << 20, false);
    let mut option = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff".to_vec();
    option.resize(4096, 0);
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), noise(3, 65_536), option] {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        // The other side may close while we write.
        drop(stream.write_all(&garbage));
        let mut rest = vec![];
        drop(stream.read_to_end(&mut rest));
        assert!(rest.len() < 4096, "only the greeting, perhaps replies");
    }
    // A whole handshake, then a write of 4 GiB.
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let mut start = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04demo".to_vec();
    start.extend_from_slice(
        b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff",
    );
    stream.write_all(&start).unwrap();
    let mut rest = vec![];
    drop(stream.read_to_end(&mut rest));
    assert_eq!(rest.len(), 18 + 10);
    if have(&["nbdinfo"]) {
        run(Command::new("nbdinfo").arg("--size").arg(server.uri()));
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_harms_nobody() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let server = Server::start(1 << 20, false);
    for cut in [3, 20, 40, 60, 70, 100] {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        let mut start = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04demo".to_vec();
        let request = b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0";
        start.extend_from_slice(request);
        start.resize(200, 7);
        drop(stream.write_all(&start[..cut]));
    }
    assert_eq!(run(Command::new("nbdinfo").arg("--size").arg(server.uri())).trim(), "1048576");
}
