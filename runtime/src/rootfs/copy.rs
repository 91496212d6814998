//! Copies what an image has at a volume's place into the empty volume, by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};

/// Deeper trees are refused: each level holds two descriptors.
const MAX_DEPTH: usize = 200;

/// Copies the tree below `from` into the directory `to`, if `to` is empty: files,
/// directories, links, special files, with owners, modes, times and extended
/// attributes. `to` itself gets owner and mode of `from`.
///
/// # Errors
/// Those of the calls; `Invalid` for a tree deeper than 200 directories.
pub(super) fn copy_into_empty(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    if !is_empty(to).doing(|| "look into the volume")? {
        return Ok(());
    }
    copy_directory(from, to, 0)
}

fn is_empty(directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let directory = open_directory(directory, c".")?;
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::Invalid(format!(
            "the image's directory for a volume is deeper than {MAX_DEPTH}"
        )));
    }
    let from = open_directory(from, c".").doing(|| "open a directory of the image")?;
    let to = open_directory(to, c".").doing(|| "open a directory of the volume")?;
    for entry in Dir::read_from(&from).doing(|| "read a directory of the image")? {
        let entry = entry.doing(|| "read a directory of the image")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(&from, &to, name, depth)?;
        }
    }
    let stat = rustix::fs::fstat(&from).doing(|| "stat a directory of the image")?;
    copy_metadata(&from, &to, &stat).doing(|| "set owner and mode of a directory of the volume")
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
    let doing = || format!("copy {} into the volume", name.to_string_lossy());
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        rustix::fs::mkdirat(to, name, Mode::RWXU).doing(doing)?;
        let (from, to) = (open_directory(from.as_fd(), name), open_directory(to.as_fd(), name));
        return copy_directory(from.doing(doing)?.as_fd(), to.doing(doing)?.as_fd(), depth + 1);
    }
    if kind == FileType::Symlink {
        let target = rustix::fs::readlinkat(from, name, Vec::new()).doing(doing)?;
        rustix::fs::symlinkat(target, to, name).doing(doing)?;
        let owner = (owner_of(&stat).0, owner_of(&stat).1);
        return rustix::fs::chownat(
            to,
            name,
            Some(owner.0),
            Some(owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .doing(doing);
    }
    if kind == FileType::RegularFile {
        return copy_file(from, to, name, &stat).doing(doing);
    }
    rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)
        .doing(doing)?;
    let (uid, gid) = owner_of(&stat);
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing(doing)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let source = rustix::fs::openat(
        from,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let create =
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, create, Mode::RUSR | Mode::WUSR)?;
    loop {
        match rustix::fs::copy_file_range(&source, None, &target, None, 1 << 30) {
            Ok(0) => break,
            Ok(_) => {}
            // Between some file systems the kernel copies nothing itself.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => {
                return copy_by_reading(&source, &target, stat);
            }
            Err(errno) => return Err(errno),
        }
    }
    copy_metadata(&source, &target, stat)
}

fn copy_by_reading(source: &OwnedFd, target: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = rustix::io::read(source, &mut buffer)?;
        if count == 0 {
            return copy_metadata(source, target, stat);
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(target, rest)?..];
        }
    }
}

fn owner_of(stat: &Stat) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid))
}

/// Owner first: changing it takes setuid bits and file capabilities away.
fn copy_metadata(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = owner_of(stat);
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_attributes(from, to)?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    };
    rustix::fs::futimens(to, &times)
}

/// Extended attributes but for those of overlayfs; a file system without them loses them.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        match rustix::fs::fsetxattr(to, name, &value[..length], rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
