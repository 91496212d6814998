//! The file system of a container: planned as a list of steps, then applied in its init.
//!
//! Sources on the host are taken as detached mounts while init still sees the host;
//! then it enters its own mount namespace and attaches them to descriptors inside
//! the root. Nothing is ever mounted where the host sees it.

mod apply;
mod copy;
mod overlay;

use std::path::{Path, PathBuf};

pub use apply::{Taken, apply, attach_root, bind_console, enter, take};

use crate::spec;
use crate::spec::mount::Source as SpecSource;

/// Where the root is attached in the pod's holder.
pub const ROOT_DIRECTORY: &str = "/rootfs";
/// Where an overlay is mounted for a moment on kernels that can do it by path only.
pub const SCRATCH_DIRECTORY: &str = "/scratch";
/// An empty directory and a null device that hide what must not be seen, in the pod's holder.
pub const MASK_DIRECTORY: &str = "/mask/directory";
/// See [`MASK_DIRECTORY`].
pub const MASK_FILE: &str = "/mask/file";
/// The pod's /dev/shm in its holder.
pub const SHM_DIRECTORY: &str = "/shm";
/// The files of the pod in its holder.
pub const FILES_DIRECTORY: &str = "/files";

/// One thing to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Mount something.
    Mount(MountStep),
    /// Make a device node.
    Node(Node),
    /// Make a symbolic link from `path` to `target`.
    Link {
        /// In the container.
        path: PathBuf,
        /// The text of the link.
        target: &'static str,
    },
    /// Make what is at the path read-only, with all mounts below. What is not there needs nothing.
    ReadOnly(PathBuf),
    /// Make one mount read-only that a step before has made.
    Seal(PathBuf),
    /// Hide what is at the path. What is not there needs nothing.
    Mask(PathBuf),
}

/// A mount.
#[derive(Debug, Clone, PartialEq)]
pub struct MountStep {
    /// In the container, absolute.
    pub target: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// MOUNT_ATTR_* of the mount, or of it and all below it.
    pub attributes: u64,
    /// The attributes hold for mounts below too.
    pub recursive: bool,
    /// No part of the target may be a link: it is one of our own, at a place that the image must not move.
    pub strict: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A path of the host.
    Bind {
        /// Links in it are followed on the host.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// How mounts made later pass between host and container.
        propagation: spec::Propagation,
        /// Make a directory there where nothing is.
        make: bool,
    },
    /// A new file system of this type.
    Fresh {
        /// Its type.
        filesystem: &'static str,
        /// Its options.
        options: Vec<(&'static str, String)>,
    },
    /// A path in the pod's holder.
    Holder(PathBuf),
    /// Layers of an image and, in them, what to show.
    Image {
        /// See `spec::Rootfs`; without a writable layer.
        layers: spec::Rootfs,
        /// Empty for all.
        sub_path: PathBuf,
    },
    /// A directory of the host that first gets what the image has at the target.
    Volume {
        /// It exists.
        path: PathBuf,
        /// Copy while it is empty.
        copy_up: bool,
    },
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// In the container, absolute.
    pub path: PathBuf,
    /// S_IFCHR or S_IFBLK, and permissions.
    pub mode: u32,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Uid and gid.
    pub owner: (u32, u32),
}

/// The nodes that every container has: (name, minor number) of major 1, and tty.
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEFAULT_LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What to do to make the file system that the spec describes, without the root itself.
pub fn plan(spec: &spec::ContainerSpec) -> Vec<Step> {
    let mut steps = Vec::new();
    let cgroup = spec.cgroup.as_ref();
    let private_cgroup = spec
        .namespaces
        .as_ref()
        .is_some_and(|ns| ns.cgroup == spec::NamespaceMode::Container as i32);
    let mut nodes: Vec<Node> = spec.devices.iter().map(node).collect();
    for mount in &spec.mounts {
        let Some(source) = &mount.source else { continue };
        match (source, cgroup) {
            (SpecSource::Cgroup(_), Some(cgroup)) => {
                steps.extend(cgroup_steps(mount, cgroup, private_cgroup))
            }
            (SpecSource::Cgroup(_), None) => {}
            _ => steps.push(Step::Mount(mount_step(mount, source))),
        }
        if mount.target == "/dev" && matches!(source, SpecSource::Tmpfs(_)) {
            steps.extend(default_devices(&nodes));
            let (below, elsewhere) =
                nodes.into_iter().partition(|node| node.path.starts_with("/dev"));
            nodes = elsewhere;
            let below: Vec<Node> = below;
            steps.extend(below.into_iter().map(Step::Node));
        }
    }
    steps.extend(nodes.into_iter().map(Step::Node));
    steps.extend(spec.readonly_paths.iter().map(|path| Step::ReadOnly(path.into())));
    steps.extend(spec.masked_paths.iter().map(|path| Step::Mask(path.into())));
    if spec.rootfs.as_ref().is_some_and(|rootfs| rootfs.readonly) {
        steps.push(Step::Seal("/".into()));
    }
    steps
}

fn node(device: &spec::Device) -> Node {
    Node {
        path: PathBuf::from(&device.path),
        mode: device.mode,
        device: (device.major, device.minor),
        owner: (device.uid, device.gid),
    }
}

/// Our own nodes, but for those that the spec brings itself.
fn default_devices(given: &[Node]) -> Vec<Step> {
    let nodes = DEFAULT_NODES.iter().map(|(name, major, minor)| Node {
        path: Path::new("/dev").join(name),
        mode: libc::S_IFCHR | 0o666,
        device: (*major, *minor),
        owner: (0, 0),
    });
    let missing = nodes.filter(|node| given.iter().all(|other| other.path != node.path));
    let links = DEFAULT_LINKS.iter().map(|(path, target)| Step::Link { path: path.into(), target });
    missing.map(Step::Node).chain(links).collect()
}

fn mount_step(mount: &spec::Mount, source: &SpecSource) -> MountStep {
    let mut attributes = attributes(mount);
    let mut recursive = false;
    let source = match source {
        SpecSource::Bind(bind) => {
            recursive = bind.recursive_readonly;
            Source::Bind {
                path: PathBuf::from(&bind.host_path),
                recursive: bind.recursive,
                propagation: bind.propagation(),
                make: bind.make_source,
            }
        }
        SpecSource::Tmpfs(tmpfs) => {
            let mut options = vec![("mode", format!("{:o}", tmpfs.mode))];
            if tmpfs.size != 0 {
                options.push(("size", tmpfs.size.to_string()));
            }
            fresh("tmpfs", options)
        }
        SpecSource::Proc(_) => fresh("proc", vec![]),
        SpecSource::Sysfs(_) => fresh("sysfs", vec![]),
        // gid 5 is tty on every distribution; mesg(1) and write(1) need it.
        SpecSource::Devpts(_) => fresh(
            "devpts",
            vec![("mode", "0620".into()), ("ptmxmode", "0666".into()), ("gid", "5".into())],
        ),
        SpecSource::Mqueue(_) => fresh("mqueue", vec![]),
        SpecSource::Holder(file) => Source::Holder(Path::new(FILES_DIRECTORY).join(&file.file)),
        SpecSource::Shm(_) => Source::Holder(SHM_DIRECTORY.into()),
        SpecSource::Image(image) => {
            attributes |= libc::MOUNT_ATTR_RDONLY;
            let layers = spec::Rootfs {
                base: image.base.clone(),
                lowers: image.lowers.clone(),
                ..Default::default()
            };
            Source::Image { layers, sub_path: PathBuf::from(&image.sub_path) }
        }
        SpecSource::Volume(volume) => {
            Source::Volume { path: PathBuf::from(&volume.host_path), copy_up: volume.copy_up }
        }
        SpecSource::Cgroup(_) => fresh("cgroup2", vec![]),
    };
    let strict = matches!(source, Source::Fresh { .. })
        && matches!(mount.target.as_str(), "/proc" | "/sys" | "/dev");
    MountStep { target: PathBuf::from(&mount.target), source, attributes, recursive, strict }
}

fn fresh(filesystem: &'static str, options: Vec<(&'static str, String)>) -> Source {
    Source::Fresh { filesystem, options }
}

fn attributes(mount: &spec::Mount) -> u64 {
    [
        (mount.readonly, libc::MOUNT_ATTR_RDONLY),
        (mount.nosuid, libc::MOUNT_ATTR_NOSUID),
        (mount.nodev, libc::MOUNT_ATTR_NODEV),
        (mount.noexec, libc::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |all, (_, attribute)| all | attribute)
}

/// /sys/fs/cgroup. v2: a mount of its own where the container has a cgroup namespace, else
/// the container's directory. v1: a tmpfs with the container's directory of each hierarchy.
fn cgroup_steps(mount: &spec::Mount, cgroup: &spec::Cgroup, private: bool) -> Vec<Step> {
    let target = PathBuf::from(&mount.target);
    let attributes = attributes(mount);
    let bind = |target: PathBuf, path: &str| {
        let source = Source::Bind {
            path: path.into(),
            recursive: false,
            propagation: spec::Propagation::Private,
            make: false,
        };
        Step::Mount(MountStep { target, source, attributes, recursive: false, strict: false })
    };
    if cgroup.unified && private {
        let source = fresh("cgroup2", vec![]);
        return vec![Step::Mount(MountStep {
            target,
            source,
            attributes,
            recursive: false,
            strict: false,
        })];
    }
    if cgroup.unified {
        return cgroup
            .directories
            .iter()
            .map(|directory| bind(target.clone(), &directory.path))
            .collect();
    }
    let tmpfs = MountStep {
        target: target.clone(),
        source: fresh("tmpfs", vec![("mode", "755".into())]),
        attributes: attributes & !libc::MOUNT_ATTR_RDONLY,
        recursive: false,
        strict: false,
    };
    let mut steps = vec![Step::Mount(tmpfs)];
    for directory in &cgroup.directories {
        let name = directory.controller.trim_start_matches("name=");
        steps.push(bind(target.join(name), &directory.path));
    }
    if mount.readonly {
        steps.push(Step::Seal(target));
    }
    steps
}

#[cfg(test)]
mod tests;
