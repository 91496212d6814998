//! Owner, mode, extended attributes and times of what a layer makes.
//!
//! Order matters to the kernel: writing and chown(2) clear set-user-id bits and file
//! capabilities, so content comes first, then the owner, the mode, the attributes, the times.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::entries::Entry;

/// What the kernel refuses to take as a mode at creation: set-user-id and the like, given once the owner is right.
pub(super) const SPECIAL_BITS: u32 = 0o7000;

/// Who owns a file and what its permission bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl Access {
    pub(super) fn of(entry: &Entry) -> Access {
        Access { uid: entry.uid, gid: entry.gid, mode: entry.mode }
    }

    pub(super) fn found(stat: &Stat) -> Access {
        Access { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 }
    }

    /// Makes an open file or directory so, where it is not: most files are right from their creation.
    pub(super) fn apply(&self, fd: BorrowedFd<'_>, now: Access) -> rustix::io::Result<()> {
        let owned = (now.uid, now.gid) == (self.uid, self.gid);
        if !owned {
            rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        if now.mode != self.mode || (!owned && self.mode & SPECIAL_BITS != 0) {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode as RawMode))?;
        }
        Ok(())
    }
}

/// The rights that new files in a directory inherit; set last, lest the layer's own files inherit them.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Sets the attributes of an open file or directory, but for [`DEFAULT_ACL`].
pub(super) fn apply_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> rustix::io::Result<()> {
    for (name, value) in wanted_xattrs(entry).filter(|(name, _)| *name != DEFAULT_ACL) {
        set_xattr(fd, name, value)?;
    }
    Ok(())
}

/// Sets one attribute. A disk that knows none of the kind goes without.
pub(super) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    unsupported_is_fine(rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))
}

/// Finishes what cannot be opened: a link, a device, a FIFO, just made under a name that nobody else can change.
pub(super) fn apply_at(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let (now, wanted) = (Access::found(&stat), Access::of(entry));
    let owned = (now.uid, now.gid) == (wanted.uid, wanted.gid);
    if !owned {
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let bits_lost = !owned && wanted.mode & SPECIAL_BITS != 0;
    // A mode given by name goes through a link, so none is given to one.
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if !is_link && (now.mode != wanted.mode || bits_lost) {
        rustix::fs::chmodat(
            dir,
            name,
            Mode::from_raw_mode(wanted.mode as RawMode),
            AtFlags::empty(),
        )?;
    }
    for (key, value) in wanted_xattrs(entry) {
        let set = rustix::fs::lsetxattr(by_descriptor(dir, name), key, value, XattrFlags::empty());
        match set {
            // Links and devices take no user attributes (xattr(7)).
            Err(Errno::PERM) if key.starts_with(b"user.") => {}
            other => unsupported_is_fine(other)?,
        }
    }
    let times = timestamps(entry.mtime);
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Attribute calls take paths only; this one cannot lead anywhere else than the descriptor does.
fn by_descriptor(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name))
}

/// The attributes of an entry that may go to disk.
///
/// Those of overlayfs would change what the layers below show. Labels of the node's security
/// modules are the node's: a layer that brings some would choose who may read it.
fn wanted_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    const NOT_OURS: [&[u8]; 5] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"security.selinux",
        b"security.SMACK64",
        b"security.apparmor",
    ];
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(|(name, _)| !NOT_OURS.iter().any(|prefix| name.starts_with(prefix)))
}

fn unsupported_is_fine(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// The modification time of an entry, which is its access time too: tar rarely has one, and none is of use here.
pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Copies owner, mode, attributes and times of a directory to another.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let (stat, now) = (rustix::fs::fstat(from)?, rustix::fs::fstat(to)?);
    Access::found(&stat).apply(to, Access::found(&now))?;
    // The largest value that there can be (XATTR_SIZE_MAX).
    let mut value = vec![0_u8; 64 << 10];
    for name in xattr_names(from)? {
        // A directory that is opaque says so to the layers below it, not to those below its copy.
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let length = rustix::fs::fgetxattr(from, &name[..], &mut value)?;
        set_xattr(to, &name, &value[..length])?;
    }
    let seconds = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: seconds(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: seconds(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    };
    rustix::fs::futimens(to, &times)
}

fn xattr_names(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0_u8; 64 << 10];
    match rustix::fs::flistxattr(fd, &mut list) {
        Ok(length) => Ok(list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()),
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// Copies what a lower layer has at `name` into another directory, with all that belongs to it.
pub(super) fn copy_node(
    (from, from_name): (BorrowedFd<'_>, &[u8]),
    stat: &Stat,
    (to, to_name): (BorrowedFd<'_>, &[u8]),
) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::RegularFile {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, from_name, flags, Mode::empty())?;
        let target = create(to, to_name, Mode::RUSR | Mode::WUSR)?;
        copy_content(&source, &target)?;
        return copy(source.as_fd(), target.as_fd());
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(from, from_name, Vec::new())?;
        rustix::fs::symlinkat(target.as_c_str(), to, to_name)?;
    } else {
        rustix::fs::mknodat(to, to_name, kind, mode, stat.st_rdev)?;
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(to, to_name, mode, AtFlags::empty())?;
    }
    let times = timestamps((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)));
    rustix::fs::utimensat(to, to_name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes a file that did not exist and opens it for writing.
pub(super) fn create(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, mode)
}

fn copy_content(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    const AT_ONCE: usize = 1 << 30;
    while rustix::fs::copy_file_range(from, None, to, None, AT_ONCE)? > 0 {}
    Ok(())
}
