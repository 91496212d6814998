//! The layers of an image as one detached mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    move_mount, open_tree, unmount,
};

use super::SCRATCH_DIRECTORY;
use crate::error::{Doing, Error, Result};
use crate::spec::Rootfs;
use crate::sys::mount::{Attributes, set_attributes};

/// Layers that are mounted, or that this kernel can mount by path only.
#[derive(Debug)]
pub(super) enum Layers {
    /// A detached mount.
    Mounted(OwnedFd),
    /// The base directory of a [`Rootfs`] as a detached mount, for [`mount_late`].
    Late(OwnedFd),
}

/// Puts layers together. Leaves the working directory at their base.
///
/// One layer without a writable one is a bind of it, a writable one alone is a bind of that.
///
/// # Errors
/// Those of the calls.
pub(super) fn mount_detached(rootfs: &Rootfs) -> Result<Layers> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(&rootfs.base, flags, Mode::empty())
        .doing(|| format!("open {}", rootfs.base))?;
    rustix::process::fchdir(&base).doing(|| format!("enter {}", rootfs.base))?;
    let only = match (rootfs.lowers.as_slice(), rootfs.upper.as_str()) {
        ([], "") => {
            return Err(Error::Invalid("an image without layers has nothing to mount".into()));
        }
        ([only], "") => Some(only.as_str()),
        ([], only) => Some(only),
        _ => None,
    };
    if let Some(only) = only {
        let tree = private_copy(&base, only).doing(|| format!("take layer {only} as a mount"))?;
        return Ok(Layers::Mounted(tree));
    }
    match overlay(rootfs) {
        Ok(mounted) => Ok(Layers::Mounted(mounted)),
        // Linux before 6.7 has no lowerdir+, and takes no long string here.
        Err(Errno::INVAL) => {
            let tree = private_copy(&base, ".").doing(|| format!("take {}", rootfs.base))?;
            Ok(Layers::Late(tree))
        }
        Err(errno) => {
            Err(errno).doing(|| format!("mount overlay of {} layers", rootfs.lowers.len()))
        }
    }
}

/// A directory as a mount of its own. A plain copy of a shared mount is its peer: what is mounted in the container
/// would appear on the host.
fn private_copy(base: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(base, path, flags)?;
    let private = Attributes { propagation: libc::MS_PRIVATE, ..Default::default() };
    set_attributes(&tree, private, false)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    Ok(tree)
}

fn overlay(rootfs: &Rootfs) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", "overlay")?;
    for lower in &rootfs.lowers {
        fsconfig_set_string(fs.as_fd(), "lowerdir+", lower)?;
    }
    if !rootfs.upper.is_empty() {
        fsconfig_set_string(fs.as_fd(), "upperdir", &rootfs.upper)?;
        fsconfig_set_string(fs.as_fd(), "workdir", &rootfs.work)?;
        // A writable layer that is not volatile syncs the whole disk when it goes.
        fsconfig_set_flag(fs.as_fd(), "volatile")?;
        // Layers are shared by many mounts; an index would be bound to one.
        fsconfig_set_string(fs.as_fd(), "index", "off")?;
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The same with mount(2), in the pod's own mount namespace: at a scratch place, from where it is taken at once.
///
/// Overlayfs takes layers only from mounts of the namespace that it is mounted in, so their directory comes to that
/// place first, and the overlay goes on top of it.
///
/// # Errors
/// Those of the calls.
pub(super) fn mount_late(base: BorrowedFd<'_>, rootfs: &Rootfs) -> Result<OwnedFd> {
    let mut data = format!("index=off,lowerdir={}", rootfs.lowers.join(":"));
    if !rootfs.upper.is_empty() {
        data += &format!(",volatile,upperdir={},workdir={}", rootfs.upper, rootfs.work);
    }
    let data = std::ffi::CString::new(data).doing(|| "name the layers")?;
    let doing = || format!("mount overlay of {} layers", rootfs.lowers.len());
    let here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(base, "", rustix::fs::CWD, SCRATCH_DIRECTORY, here).doing(doing)?;
    rustix::process::fchdir(base).doing(doing)?;
    let mounted =
        mount("overlay", SCRATCH_DIRECTORY, "overlay", MountFlags::empty(), data.as_c_str());
    let taken = mounted.and_then(|()| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, SCRATCH_DIRECTORY, flags);
        unmount(SCRATCH_DIRECTORY, UnmountFlags::DETACH)?;
        tree
    });
    rustix::process::chdir(Path::new("/")).doing(|| "leave the layers")?;
    unmount(SCRATCH_DIRECTORY, UnmountFlags::DETACH).doing(|| "unmount the scratch mount")?;
    taken.doing(doing)
}
