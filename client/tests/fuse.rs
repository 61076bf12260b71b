//! The FUSE file as programs see it, and a file system over it by a loop device.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use ashlar_client::export::fuse;
use common::{Server, have, noise, run};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn the_file_reads_writes_and_gives_space_back_like_a_disk() {
    if !have(&["root", "/dev/fuse"]) {
        return;
    }
    let server = Server::start(64 << 20, false);
    let dir = server.dir.path().join("fuse");
    std::fs::create_dir(&dir).unwrap();
    let mounted = fuse::mount(server.device.clone(), &dir).unwrap();
    let path = dir.join(fuse::FILE_NAME);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 << 20);
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [fuse::FILE_NAME]);

    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let content = noise(1, 3 << 20);
    file.write_all_at(&content, 777).unwrap();
    file.sync_all().unwrap();
    let mut back = vec![0; content.len()];
    file.read_exact_at(&mut back, 777).unwrap();
    assert!(back == content);

    run(Command::new("fallocate").args(["-p", "-o", "4096", "-l", "1048576"]).arg(&path));
    file.read_exact_at(&mut back[..1 << 20], 4096).unwrap();
    assert!(back[..1 << 20].iter().all(|byte| *byte == 0));
    assert!(file.write_at(b"x", 64 << 20).is_err(), "the file does not grow");
    assert_eq!(file.read_at(&mut back, 64 << 20).unwrap(), 0);
    assert!(file.set_len(5).is_err());

    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    drop(file);
    let (mounted, error) = mounted.unmount().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    drop(direct);
    unmount(mounted);
    assert!(!path.exists());
}

#[test]
fn fio_verifies_the_file_with_direct_io_at_depth_32() {
    if !have(&["root", "/dev/fuse", "fio"]) {
        return;
    }
    let server = Server::start(16 << 20, false);
    let dir = server.dir.path().join("fuse");
    std::fs::create_dir(&dir).unwrap();
    let mounted = fuse::mount(server.device.clone(), &dir).unwrap();
    run(Command::new("fio").args([
        "--name=verify",
        "--ioengine=libaio",
        "--direct=1",
        &format!("--filename={}", dir.join(fuse::FILE_NAME).display()),
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--size=16m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--verify_fatal=1",
    ]));
    unmount(mounted);
}

/// Unmounts. A child that another test is starting holds a copy of every open file until it runs its
/// program: the file may be in use for a moment after it was closed here.
fn unmount(mut mounted: fuse::FuseFile) {
    let until = Instant::now() + Duration::from_secs(30);
    while let Err((still, error)) = mounted.unmount() {
        let is_busy = error.kind() == ErrorKind::ResourceBusy;
        assert!(is_busy && Instant::now() < until, "{error}");
        mounted = still;
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_read_only_device_is_a_read_only_file() {
    if !have(&["root", "/dev/fuse"]) {
        return;
    }
    let server = Server::start(1 << 20, true);
    let dir = server.dir.path().join("fuse");
    std::fs::create_dir(&dir).unwrap();
    let mounted = fuse::mount(server.device.clone(), &dir).unwrap();
    let path = dir.join(fuse::FILE_NAME);
    assert!(OpenOptions::new().write(true).open(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; 1 << 20]);
    unmount(mounted);
}
