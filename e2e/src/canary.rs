//! Files on the host that no container may read and nothing may touch, and a watch over the whole file system.

#![allow(unsafe_code)] // fanotify with names, and handles to paths: no crate wraps them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::image::digest_of;

/// Directories with files of known content, owner, mode and times.
#[derive(Debug)]
pub struct Canary {
    /// `r` holds what must not be read, `w` what must not be written.
    pub dir: PathBuf,
    /// The content of every file that must not be read.
    pub token: String,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    /// Fills a directory.
    pub fn new(dir: &Path) -> Result<Canary> {
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token = format!("canary-{}", crate::image::hex(&random));
        for (name, mode) in [
            ("r/secret", 0o600),
            ("r/passwd", 0o644),
            ("w/x", 0o640),
            ("w/ptmx", 0o600),
            ("w/bin/x", 0o755),
        ] {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().context("a file has a parent")?)?;
            std::fs::write(&path, &token)?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        let before = snapshot(dir)?;
        Ok(Canary { dir: dir.to_owned(), token, before })
    }

    /// The directory that must not be written to, as text for an image or a pod.
    pub fn w(&self) -> String {
        self.dir.join("w").to_string_lossy().into_owned()
    }

    /// The directory that must not be read.
    pub fn r(&self) -> String {
        self.dir.join("r").to_string_lossy().into_owned()
    }

    /// That everything is as it was: names, content, owners, modes, times.
    pub fn check(&self) -> Result<()> {
        let now = snapshot(&self.dir)?;
        for path in self.before.keys().chain(now.keys()) {
            if self.before.get(path) != now.get(path) {
                bail!(
                    "the canary was touched: {}: {:?} -> {:?}",
                    path.display(),
                    self.before.get(path),
                    now.get(path)
                );
            }
        }
        Ok(())
    }

    /// That a text from a container does not contain the token.
    pub fn not_in(&self, what: &str, text: &str) -> Result<()> {
        if text.contains(&self.token) {
            bail!("{what} has read the canary");
        }
        Ok(())
    }
}

fn snapshot(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata()?;
        let content =
            if meta.is_file() { digest_of(&std::fs::read(&path)?) } else { String::new() };
        if meta.is_dir() {
            todo.extend(
                std::fs::read_dir(&path)?
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>>>()?,
            );
        }
        let facts = (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
            meta.ino(),
        );
        all.insert(path, format!("{facts:?} {content}"));
    }
    Ok(all)
}

/// Sysctls of the host that change by themselves.
const VOLATILE_SYSCTLS: [&str; 11] = [
    "/proc/sys/kernel/random",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/pty/nr",
    "/proc/sys/fs/dentry-state",
    "/proc/sys/fs/inode",
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/aio-nr",
    "/proc/sys/fs/quota",
    "/proc/sys/kernel/sched",
    "/proc/sys/net/netfilter/nf_conntrack",
    "/proc/sys/net/ipv4/neigh",
];

/// All sysctls of the host that can be read, without those that change by themselves.
pub fn sysctls() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![PathBuf::from("/proc/sys")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if VOLATILE_SYSCTLS.iter().any(|start| path.to_string_lossy().starts_with(start)) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path);
            } else if let Ok(value) = std::fs::read(&path) {
                all.insert(path, value);
            }
        }
    }
    all
}

/// A watch over the file system of a directory: who creates, deletes, renames or changes what.
#[derive(Debug)]
pub struct Watch {
    queue: OwnedFd,
    place: File,
    allowed: Vec<PathBuf>,
}

const EVENTS: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_ATTRIB
    | libc::FAN_MODIFY;

impl Watch {
    /// Starts to watch the file system that `place` is on. Below `allowed` everything may happen.
    pub fn new(place: &Path, allowed: Vec<PathBuf>) -> Result<Watch> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: takes two integers and returns a descriptor or -1.
        let queue = unsafe { libc::fanotify_init(flags, 0) };
        if queue < 0 {
            return Err(std::io::Error::last_os_error()).context("fanotify_init");
        }
        // SAFETY: the descriptor is new and nobody else's.
        let queue = unsafe { OwnedFd::from_raw_fd(queue) };
        let place = File::open(place)?;
        let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        // SAFETY: both descriptors are open, the path is a C string that outlives the call.
        let result = unsafe {
            libc::fanotify_mark(
                queue.as_raw_fd(),
                mark,
                EVENTS | libc::FAN_ONDIR,
                place.as_raw_fd(),
                c".".as_ptr(),
            )
        };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("fanotify_mark a file system");
        }
        Ok(Watch { queue, place, allowed })
    }

    /// What happened outside the allowed directories by the hand of processes for which `ours` is true, since the
    /// last call.
    pub fn violations(&self, ours: impl Fn(i32) -> bool) -> Result<Vec<String>> {
        let mut violations = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            // SAFETY: the buffer is as long as said.
            let length = unsafe {
                libc::read(self.queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len())
            };
            let Ok(length) = usize::try_from(length) else { return Ok(violations) };
            if length == 0 {
                return Ok(violations);
            }
            for event in events(&buffer[..length]) {
                let path = self.path(&event);
                let allowed = path
                    .as_ref()
                    .is_none_or(|path| self.allowed.iter().any(|dir| path.starts_with(dir)));
                if !allowed && ours(event.pid) {
                    violations
                        .push(format!("process {} did {:#x} to {path:?}", event.pid, event.mask));
                }
            }
        }
    }

    /// The path of an event; none where the directory is gone already.
    fn path(&self, event: &Event<'_>) -> Option<PathBuf> {
        // The kernel wants the handle aligned.
        let word = |bytes: &[u8]| {
            u64::from_ne_bytes(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0)))
        };
        let mut handle: Vec<u64> = event.handle.chunks(8).map(word).collect();
        // SAFETY: the handle is one that the kernel has given, whole and aligned.
        let dir = unsafe {
            libc::open_by_handle_at(
                self.place.as_raw_fd(),
                handle.as_mut_ptr().cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if dir < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let dir = unsafe { OwnedFd::from_raw_fd(dir) };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
        Some(path.join(std::str::from_utf8(event.name).unwrap_or("?")))
    }
}

/// One event as the kernel writes it (fanotify(7)), already cut into its parts.
struct Event<'a> {
    mask: u64,
    pid: i32,
    handle: &'a [u8],
    name: &'a [u8],
}

/// struct fanotify_event_metadata (24 bytes), then records: type, pad, length; fsid (8); file handle (length, type,
/// bytes); name with a closing zero.
fn events(mut buffer: &[u8]) -> Vec<Event<'_>> {
    let number = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    };
    let mut all = Vec::new();
    while buffer.len() >= 24 {
        let length = (number(buffer, 0) as usize).clamp(24, buffer.len());
        let (event, rest) = buffer.split_at(length);
        buffer = rest;
        let mask = u64::from(number(event, 8)) | u64::from(number(event, 12)) << 32;
        let record = &event[24..];
        if record.len() < 20 {
            continue;
        }
        let handle_length = 8 + number(record, 12) as usize;
        let Some(handle) = record.get(12..12 + handle_length) else { continue };
        let name = record[12 + handle_length..].split(|byte| *byte == 0).next().unwrap_or_default();
        all.push(Event { mask, pid: number(event, 20).cast_signed(), handle, name });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = Path::new("/var/tmp").join(format!("e2e-canary-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_canary_notices_a_touch() {
        let dir = dir("touch");
        let canary = Canary::new(&dir).unwrap();
        canary.check().unwrap();
        std::fs::write(dir.join("w/new"), "").unwrap();
        assert!(canary.check().is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_watch_names_who_made_what() {
        let dir = dir("watch");
        let watch = Watch::new(&dir, vec![dir.join("allowed")]).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // The other tests of this process write elsewhere.
        let violations = || {
            let mut all = watch.violations(|pid| pid == own).unwrap();
            all.retain(|line| line.contains(dir.to_str().unwrap()));
            all
        };
        std::fs::create_dir(dir.join("allowed")).unwrap();
        std::fs::write(dir.join("allowed/file"), "x").unwrap();
        assert_eq!(violations(), Vec::<String>::new());
        std::fs::write(dir.join("file"), "x").unwrap();
        let named = dir.join("file");
        assert!(violations().iter().any(|line| line.contains(named.to_str().unwrap())));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
