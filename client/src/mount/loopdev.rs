//! Loop devices: a file as a block device, with direct I/O that is verified.
//!
//! Direct I/O is not a matter of taste: without it a loop device over our file costs four times
//! as much, and keeps a second cache that hides what is durable.

use super::MountError;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const BLOCK_BYTES: u32 = 4096;
/// Time for the kernel to let go of a device that somebody (udev, blkid) still looks at.
const DETACH_WITHIN: Duration = Duration::from_secs(5);
/// Tries against others that take the free device first.
const TRIES_MAX: u32 = 16;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// Makes a block device of `file`.
///
/// # Errors
/// No loop devices or no right to use them; a kernel that does not give direct I/O (nothing is
/// left behind then).
pub(super) fn attach(file: &Path, read_only: bool) -> Result<PathBuf, MountError> {
    let backing = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(file)
        .map_err(|cause| MountError::File { path: file.to_owned(), cause })?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(MountError::NoLoop)?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES_MAX {
        let number = ioctl(&control, LOOP_CTL_GET_FREE, 0).map_err(MountError::NoLoop)?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let opened = OpenOptions::new().read(true).write(!read_only).open(&device);
        let opened = opened.map_err(MountError::NoLoop)?;
        match configure(&opened, &backing, file, read_only) {
            Ok(()) => {
                if direct_io(&device) {
                    return Ok(device);
                }
                drop(opened);
                detach(&device)?;
                return Err(MountError::NoDirectIo(device));
            }
            // Somebody else took this one between the question and the answer.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(MountError::NoLoop(error)),
        }
    }
    Err(MountError::NoLoop(last))
}

fn configure(device: &File, backing: &File, file: &Path, read_only: bool) -> io::Result<()> {
    let mut flags = LO_FLAGS_DIRECT_IO;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    let mut file_name = [0; 64];
    let name = file.as_os_str().as_encoded_bytes();
    for (to, from) in file_name.iter_mut().take(63).zip(name) {
        *to = *from;
    }
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).unwrap_or(u32::MAX),
        block_size: BLOCK_BYTES,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    #[allow(unsafe_code, reason = "loop devices are configured by ioctl")]
    // SAFETY: the request takes a pointer to a `struct loop_config`, whose layout is checked
    // above; both descriptors stay open during the call, and the kernel only reads.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ioctl(file: &File, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<i32> {
    #[allow(unsafe_code, reason = "loop devices are managed by ioctl")]
    // SAFETY: the requests used here take a number, not a pointer; the descriptor is open.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn attribute(device: &Path, name: &str) -> Option<String> {
    let folder = Path::new("/sys/block").join(device.file_name()?).join("loop");
    std::fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned())
}

/// Whether the kernel says that it does direct I/O on the file behind.
pub(super) fn direct_io(device: &Path) -> bool {
    attribute(device, "dio").as_deref() == Some("1")
}

/// The file behind a loop device, if it is one and is in use.
pub(super) fn backing_file(device: &Path) -> Option<PathBuf> {
    attribute(device, "backing_file").map(PathBuf::from)
}

/// Loop devices over this file.
pub(super) fn devices_over(file: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(|entry| Some(Path::new("/dev").join(entry.ok()?.file_name())))
        .filter(|device| backing_file(device).as_deref() == Some(file))
        .collect()
}

/// Has a loop device take over the size that its file has now (`losetup --set-capacity`).
pub(super) fn take_size(device: &Path) -> io::Result<()> {
    let opened = OpenOptions::new().read(true).open(device)?;
    ioctl(&opened, LOOP_SET_CAPACITY, 0).map(|_| ())
}

/// Tells the kernel to free a loop device when nobody uses it; gives whether it is free now.
pub(super) fn free(device: &Path) -> bool {
    let cleared = OpenOptions::new().read(true).open(device).and_then(|opened| {
        ioctl(&opened, LOOP_CLR_FD, 0)?;
        Ok(())
    });
    if let Err(error) = cleared
        && !matches!(error.raw_os_error(), Some(libc::ENXIO | libc::EBUSY))
    {
        tracing::warn!(device = %device.display(), %error, "the device is not freed");
    }
    backing_file(device).is_none()
}

/// Takes a loop device away from its file; one that is free already is no error.
///
/// # Errors
/// It is still in use after some seconds.
pub(super) fn detach(device: &Path) -> Result<(), MountError> {
    let failed = |cause| MountError::Detach { device: device.to_owned(), cause };
    let until = Instant::now() + DETACH_WITHIN;
    loop {
        let opened = OpenOptions::new().read(true).open(device).map_err(failed)?;
        match ioctl(&opened, LOOP_CLR_FD, 0) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed(error)),
        }
        drop(opened);
        // The kernel may only have noted to do it when the last user closes the device.
        if backing_file(device).is_none() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(failed(io::ErrorKind::ResourceBusy.into()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
