//! ext4 and xfs on a volume's FUSE file, made, mounted, filled, unmounted, mounted again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use ashlar_client::export::fuse;
use ashlar_client::mount::{self, FileSystem, MountError};
use common::{Server, have, noise, output, run};
use std::path::Path;
use std::process::Command;

const NEEDS: [&str; 3] = ["root", "/dev/fuse", "/dev/loop-control"];

struct Stage {
    server: Server,
    fuse: Option<fuse::FuseFile>,
}

impl Stage {
    fn new(size: u64) -> Self {
        let server = Server::start(size, false);
        for name in ["fuse", "mnt"] {
            std::fs::create_dir(server.dir.path().join(name)).unwrap();
        }
        let fuse = fuse::mount(server.device.clone(), &server.dir.path().join("fuse")).unwrap();
        Self { server, fuse: Some(fuse) }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.server.dir.path().join(name)
    }

    fn file(&self) -> std::path::PathBuf {
        self.path("fuse").join(fuse::FILE_NAME)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        mount::release(&self.file()).unwrap();
        self.fuse.take().unwrap().unmount().unwrap();
    }
}

fn filled_and_found_again(kind: FileSystem, size: u64, check: &[&str]) {
    let stage = Stage::new(size);
    let (file, dir) = (stage.file(), stage.path("mnt"));
    assert!(matches!(mount::mount(&file, &dir, None, false), Err(MountError::Empty)));
    let mounted = mount::mount(&file, &dir, Some(kind), false).unwrap();
    assert_eq!((mounted.file_system, mount::find(&dir)), (kind, Some(mounted.clone())));
    let loop_name = mounted.device.file_name().unwrap().to_string_lossy().into_owned();
    let sys = |name: &str| {
        std::fs::read_to_string(format!("/sys/block/{loop_name}/{name}")).unwrap().trim().to_owned()
    };
    assert_eq!((sys("loop/dio"), sys("queue/logical_block_size")), ("1".into(), "4096".into()));
    let again = mount::mount(&file, &dir, None, false);
    assert!(matches!(again, Err(MountError::Mounted(..))));

    fill(&dir);
    let busy = std::fs::File::open(dir.join("d0/f0")).unwrap();
    assert!(matches!(mount::umount(&dir), Err(MountError::InUse(_))));
    drop(busy);
    assert_eq!(mount::umount(&dir).unwrap(), file);
    assert!(matches!(mount::umount(&dir), Err(MountError::NotMounted(_))));
    let other = mount::mount(&file, &dir, Some(FileSystem::Ext4), false);
    assert!(matches!(other, Err(MountError::NotEmpty(_))));

    run(Command::new(check[0]).args(&check[1..]).arg(&file));
    mount::mount(&file, &dir, None, false).unwrap();
    compare(&dir);
    std::fs::remove_dir_all(dir.join("d1")).unwrap();
    let trimmed = output(Command::new("fstrim").arg("-v").arg(&dir));
    assert!(trimmed.status.success(), "{}", String::from_utf8_lossy(&trimmed.stderr));
    // A command killed half-way leaves mounts and loop devices; `release` takes all of it away.
    mount::release(&file).unwrap();
    assert_eq!(mount::find(&dir), None);
}

fn fill(dir: &Path) {
    for folder in 0..5 {
        let folder_path = dir.join(format!("d{folder}"));
        std::fs::create_dir(&folder_path).unwrap();
        for file in 0..40_u64 {
            let content = noise(folder * 100 + file, 777 * usize::try_from(file).unwrap() + 1);
            std::fs::write(folder_path.join(format!("f{file}")), content).unwrap();
        }
    }
}

fn compare(dir: &Path) {
    for folder in 0..5 {
        for file in 0..40_u64 {
            let content = noise(folder * 100 + file, 777 * usize::try_from(file).unwrap() + 1);
            let found = std::fs::read(dir.join(format!("d{folder}/f{file}"))).unwrap();
            assert!(found == content, "d{folder}/f{file}");
        }
    }
}

#[test]
fn ext4_is_made_filled_unmounted_and_found_again() {
    if have(&NEEDS) && have(&["mkfs.ext4", "fstrim", "fsck.ext4"]) {
        filled_and_found_again(FileSystem::Ext4, 64 << 20, &["fsck.ext4", "-f", "-n"]);
    }
}

#[test]
fn xfs_is_made_filled_unmounted_and_found_again() {
    if have(&NEEDS) && have(&["mkfs.xfs", "fstrim", "xfs_repair"]) {
        filled_and_found_again(FileSystem::Xfs, 320 << 20, &["xfs_repair", "-n", "-f"]);
    }
}

#[test]
fn what_a_dead_daemon_leaves_can_be_unmounted() {
    if !(have(&NEEDS) && have(&["mkfs.ext4"])) {
        return;
    }
    let stage = Stage::new(16 << 20);
    let (file, dir) = (stage.file(), stage.path("mnt"));
    let mounted = mount::mount(&file, &dir, Some(FileSystem::Ext4), false).unwrap();
    std::fs::write(dir.join("f"), b"x").unwrap();
    nix::mount::umount2(&stage.path("fuse"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(!file.exists());
    assert_eq!(mount::find(&dir).unwrap().device, mounted.device);
    mount::umount(&dir).unwrap();
    assert_eq!(mount::find(&dir), None);
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    if have(&["root"]) {
        let absent = dir.path().join("absent");
        let refused = mount::mount(&absent, dir.path(), None, false);
        assert!(matches!(refused, Err(MountError::File { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let refused = mount::mount(&file, &absent, None, false);
        assert!(matches!(refused, Err(MountError::Folder { .. })));
    }
    assert!(matches!(mount::umount(dir.path()), Err(MountError::NotMounted(_))));
}
