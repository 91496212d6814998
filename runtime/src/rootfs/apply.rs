//! Applies the plan: takes sources on the host, then attaches them inside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::overlay::{Layers, mount_detached, mount_late};
use super::{MASK_DIRECTORY, MASK_FILE, MountStep, Node, ROOT_DIRECTORY, Source, Step, copy};
use crate::error::{Doing, Error, Result};
use crate::root::{Missing, Root};
use crate::spec::{Propagation, Rootfs};
use crate::sys::mount::{Attributes, set_attributes};

/// statfs(2): f_type of procfs and sysfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Files of /proc that may be mounted over: what lxcfs and others replace, none of them with power.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// What was taken on the host: the root, and one entry per step.
#[derive(Debug)]
pub struct Taken {
    root: Layers,
    trees: Vec<Option<Layers>>,
}

/// Takes everything that only the host's mount namespace shows. Call it there.
///
/// # Errors
/// Those of the calls; `Invalid` for a propagation that the source cannot have.
pub fn take(rootfs: &Rootfs, steps: &[Step]) -> Result<Taken> {
    let root = mount_detached(rootfs)?;
    let trees = steps.iter().map(|step| match step {
        Step::Mount(mount) => take_mount(mount),
        Step::Node(_) | Step::Link { .. } | Step::ReadOnly(_) | Step::Seal(_) | Step::Mask(_) => {
            Ok(None)
        }
    });
    Ok(Taken { root, trees: trees.collect::<Result<_>>()? })
}

fn take_mount(step: &MountStep) -> Result<Option<Layers>> {
    let taken = match &step.source {
        Source::Bind { path, recursive, propagation, make } => {
            Layers::Mounted(take_bind(path, *recursive, *propagation, *make)?)
        }
        Source::Volume { path, .. } => {
            Layers::Mounted(take_bind(path, false, Propagation::Private, false)?)
        }
        Source::Image { layers, .. } => mount_detached(layers)?,
        Source::Fresh { .. } | Source::Holder(_) => return Ok(None),
    };
    Ok(Some(taken))
}

/// Takes the very thing the path leads to now: it is resolved once.
fn take_bind(
    path: &Path,
    recursive: bool,
    propagation: Propagation,
    make: bool,
) -> Result<OwnedFd> {
    let doing = || format!("take mount source {}", path.display());
    let open = || rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let source = match open() {
        Err(Errno::NOENT) if make => {
            std::fs::create_dir_all(path)
                .doing(|| format!("make mount source {}", path.display()))?;
            open()
        }
        other => other,
    };
    let source = source.doing(doing)?;
    if propagation != Propagation::Private {
        check_propagation(&source, path, propagation)?;
    }
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(&source, "", flags).doing(doing)?;
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    };
    set_attributes(&tree, Attributes { propagation, ..Default::default() }, true).doing(doing)?;
    Ok(tree)
}

/// Mounts made later can only pass where the source is on a mount that passes them (mount_namespaces(7)).
fn check_propagation(source: &OwnedFd, path: &Path, wanted: Propagation) -> Result<()> {
    let stat = rustix::fs::statx(source, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .doing(|| format!("stat {}", path.display()))?;
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").doing(|| "read /proc/self/mountinfo")?;
    let id = stat.stx_mnt_id.to_string();
    let line = table.lines().find(|line| line.split(' ').next() == Some(&id)).unwrap_or_default();
    let (fields, _) = line.split_once(" - ").unwrap_or_default();
    let has = |tag: &str| fields.split(' ').skip(6).any(|field| field.starts_with(tag));
    let (fits, needed) = match wanted {
        Propagation::Private => (true, ""),
        Propagation::Slave => (
            has("shared:") || has("master:"),
            "a shared or slave mount (propagation HOST_TO_CONTAINER)",
        ),
        Propagation::Shared => (has("shared:"), "a shared mount (propagation BIDIRECTIONAL)"),
    };
    if fits {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "mount source {} is not on {needed}: run `mount --make-rshared` on its mount point",
        path.display()
    )))
}

/// Leaves the host's mount namespace for a copy of the pod's holder.
///
/// # Errors
/// Those of setns(2) and unshare(2).
pub fn enter(holder: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(holder, Some(LinkNameSpaceType::Mount))
        .doing(|| "enter the pod's mount namespace")?;
    unshare(UnshareFlags::NEWNS).doing(|| "make the container's mount namespace")
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    crate::sys::clone::unshare(flags)
}

/// Attaches the root. What is opened from now on below it is the container's.
///
/// # Errors
/// Those of the calls.
pub fn attach_root(taken: &mut Taken, rootfs: &Rootfs) -> Result<Root> {
    let root = detached(&mut taken.root, rootfs)?;
    move_mount(
        root.as_fd(),
        "",
        rustix::fs::CWD,
        ROOT_DIRECTORY,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing(|| "attach the root")?;
    Ok(Root::from_fd(root))
}

fn detached(layers: &mut Layers, rootfs: &Rootfs) -> Result<OwnedFd> {
    match layers {
        Layers::Mounted(tree) => {
            rustix::io::fcntl_dupfd_cloexec(&*tree, 3).doing(|| "duplicate a descriptor")
        }
        Layers::Late(base) => mount_late(base.as_fd(), rootfs),
    }
}

/// Applies the steps inside the root.
///
/// # Errors
/// Those of the calls, with the step; `Invalid` for targets that must not be mounted over.
pub fn apply(root: &Root, steps: &[Step], taken: &mut Taken) -> Result<()> {
    for (step, tree) in steps.iter().zip(&mut taken.trees) {
        match step {
            Step::Mount(mount) => attach(root, mount, tree.as_mut())?,
            Step::Node(node) => make_node(root, node)?,
            Step::Link { path, target } => make_link(root, path, target)?,
            Step::ReadOnly(path) => make_readonly(root, path)?,
            Step::Seal(path) => seal(root, path)?,
            Step::Mask(path) => mask(root, path)?,
        }
    }
    Ok(())
}

fn attach(root: &Root, step: &MountStep, taken: Option<&mut Layers>) -> Result<()> {
    let doing = || format!("mount {}", step.target.display());
    let source = match (&step.source, taken) {
        (Source::Fresh { filesystem, options }, _) => fresh(filesystem, options)
            .doing(|| format!("mount {filesystem} at {}", step.target.display()))?,
        (Source::Holder(path), _) => clone_tree(path).doing(doing)?,
        (Source::Image { layers, sub_path }, Some(taken)) => {
            image_tree(&detached(taken, layers)?, sub_path)?
        }
        (Source::Bind { .. } | Source::Volume { .. }, Some(taken)) => {
            detached(taken, &Rootfs::default())?
        }
        (Source::Image { .. } | Source::Bind { .. } | Source::Volume { .. }, None) => {
            return Err(Error::Invalid(format!(
                "mount {} was not taken on the host",
                step.target.display()
            )));
        }
    };
    let target = open_target(root, step, &source)?;
    check_target(step, &source, &target)?;
    if let Source::Volume { copy_up: true, .. } = &step.source {
        copy::copy_into_empty(target.as_fd(), source.as_fd())?;
    }
    if step.attributes != 0 {
        let attributes = Attributes { set: step.attributes, ..Default::default() };
        set_attributes(&source, attributes, step.recursive).doing(|| recursive_hint(step))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&source, "", &target, "", flags).doing(doing)
}

fn recursive_hint(step: &MountStep) -> String {
    let how = if step.recursive { "recursively read-only " } else { "" };
    format!("mount {} with its {how}options", step.target.display())
}

fn fresh(filesystem: &str, options: &[(&'static str, String)]) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", filesystem)?;
    for (key, value) in options {
        fsconfig_set_string(fs.as_fd(), *key, value.as_str())?;
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// A path of the holder, which is still our root here.
fn clone_tree(path: &Path) -> rustix::io::Result<OwnedFd> {
    open_tree(
        rustix::fs::CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
}

fn image_tree(image: &OwnedFd, sub_path: &Path) -> Result<OwnedFd> {
    let root = Root::from_fd(
        rustix::io::fcntl_dupfd_cloexec(image, 3).doing(|| "duplicate a descriptor")?,
    );
    let inside = root.resolve(sub_path, OFlags::PATH).map_err(|error| match error.errno() {
        Some(libc::ENOENT | libc::ENOTDIR) => Error::Invalid(format!(
            "ImageVolumeMountFailed: {} is not in the image",
            sub_path.display()
        )),
        _ => error,
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&inside, "", flags).doing(|| format!("take {} of the image", sub_path.display()))
}

fn open_target(root: &Root, step: &MountStep, source: &OwnedFd) -> Result<OwnedFd> {
    let doing = || format!("find the mount target {}", step.target.display());
    let kind = FileType::from_raw_mode(rustix::fs::fstat(source).doing(doing)?.st_mode);
    let missing =
        if kind == FileType::Directory { Missing::Directory(0o755) } else { Missing::File(0o644) };
    let target = if step.strict {
        let relative = step.target.strip_prefix("/").unwrap_or(&step.target);
        match root.resolve_beneath(relative, OFlags::PATH, 0) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                root.resolve_or_make(&step.target, missing, None)?
            }
            found => found?,
        }
    } else {
        root.resolve_or_make(&step.target, missing, None)?
    };
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&target).doing(doing)?.st_mode)
        == FileType::Directory;
    if is_directory != (kind == FileType::Directory) {
        let (source, target) =
            if is_directory { ("a file", "a directory") } else { ("a directory", "a file") };
        return Err(Error::Invalid(format!(
            "mount {}: the source is {source}, but the container has {target} there",
            step.target.display()
        )));
    }
    Ok(target)
}

/// Nothing may hide what we, or the program, must be able to believe: /proc, and /sys as a whole.
fn check_target(step: &MountStep, source: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let doing = || format!("look at the mount target {}", step.target.display());
    let refuse = |what: &str| {
        Err(Error::Invalid(format!(
            "mount with container_path {}: {what} must not be mounted over",
            step.target.display()
        )))
    };
    let magic = filesystem_of(target).doing(doing)?;
    if magic == PROC_SUPER_MAGIC {
        let listed = PROC_FILES.iter().any(|path| step.target == Path::new(path));
        let same = is_mount_root(target).doing(doing)?
            && filesystem_of(source).doing(doing)? == PROC_SUPER_MAGIC;
        if !listed && !same {
            return refuse("/proc");
        }
    }
    // A mount of the user's comes instead of ours.
    let is_sys = step.target == Path::new("/sys")
        || magic == SYSFS_MAGIC && is_mount_root(target).doing(doing)?;
    if is_sys && filesystem_of(source).doing(doing)? != SYSFS_MAGIC {
        return refuse("/sys");
    }
    Ok(())
}

fn filesystem_of(fd: &OwnedFd) -> rustix::io::Result<i64> {
    Ok(rustix::fs::fstatfs(fd)?.f_type)
}

fn is_mount_root(fd: &OwnedFd) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn make_node(root: &Root, node: &Node) -> Result<()> {
    let doing = || format!("make device {}", node.path.display());
    let (directory, name) = parent(root, &node.path)?;
    let kind = FileType::from_raw_mode(node.mode);
    let device = rustix::fs::makedev(node.device.0, node.device.1);
    let mode = Mode::from_raw_mode(node.mode & 0o7777);
    match rustix::fs::mknodat(&directory, &name, kind, mode, device) {
        Ok(()) => {}
        // It may be there already, if /dev is the user's: then it must be the same.
        Err(Errno::EXIST) => {
            let stat =
                rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
            if stat.st_rdev == device && FileType::from_raw_mode(stat.st_mode) == kind {
                return Ok(());
            }
            return Err(Errno::EXIST).doing(doing);
        }
        Err(errno) => return Err(errno).doing(doing),
    }
    if node.owner != (0, 0) {
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(node.owner.0), rustix::fs::Gid::from_raw(node.owner.1));
        rustix::fs::chownat(&directory, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .doing(doing)?;
    }
    Ok(())
}

fn make_link(root: &Root, path: &Path, target: &str) -> Result<()> {
    let (directory, name) = parent(root, path)?;
    match rustix::fs::symlinkat(target, &directory, &name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("make link {}", path.display())),
    }
}

fn parent(root: &Root, path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let invalid = || Error::Invalid(format!("{} names no file", path.display()));
    let name = path.file_name().map(PathBuf::from).ok_or_else(invalid)?;
    let directory = path.parent().ok_or_else(invalid)?;
    Ok((root.resolve_or_make(directory, Missing::Directory(0o755), None)?, name))
}

/// What is there, or nothing where the path leads nowhere.
fn open_existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.resolve(path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_readonly(root: &Root, path: &Path) -> Result<()> {
    let doing = || format!("make {} read-only", path.display());
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&target, "", flags).doing(doing)?;
    let readonly = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    set_attributes(&tree, readonly, true).doing(doing)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags).doing(doing)
}

fn seal(root: &Root, path: &Path) -> Result<()> {
    let doing = || format!("make the mount {} read-only", path.display());
    let readonly = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    let mount = if path == Path::new("/") {
        rustix::io::fcntl_dupfd_cloexec(root.as_fd(), 3).doing(doing)?
    } else {
        root.resolve(path, OFlags::PATH)?
    };
    set_attributes(&mount, readonly, false).doing(doing)
}

/// A directory is hidden by an empty one, all else by the null device; both are the holder's, which no image reaches.
fn mask(root: &Root, path: &Path) -> Result<()> {
    let doing = || format!("mask {}", path.display());
    let Some(target) = open_existing(root, path)? else { return Ok(()) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&target).doing(doing)?.st_mode);
    let cover = if kind == FileType::Directory { MASK_DIRECTORY } else { MASK_FILE };
    let tree = clone_tree(Path::new(cover)).doing(doing)?;
    if kind == FileType::Directory {
        let readonly = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        set_attributes(&tree, readonly, false).doing(doing)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags).doing(doing)
}

/// Mounts the terminal on /dev/console, as a descriptor, never by the path of a pts.
///
/// # Errors
/// Those of the calls.
pub fn bind_console(root: &Root, terminal: &OwnedFd) -> Result<()> {
    let doing = || "mount the terminal on /dev/console";
    let target = root.resolve_or_make(Path::new("/dev/console"), Missing::File(0o620), None)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(terminal, "", flags).doing(doing)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags).doing(doing)
}
