//! Devices of the node for a container: found, and turned into nodes and rules.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proto::shim;
use runtime::cgroup::devices::{Kind, Rule};

use super::spec::{ContainerSpec, Device};
use crate::error::{Doing, Error, Result};

/// A device with what the container may do with it.
#[derive(Debug, Clone)]
pub struct Found {
    /// The node to make.
    pub node: shim::Device,
    /// The access to allow.
    pub rule: Rule,
}

/// Directories deeper than this below a given one are not looked into.
const MAX_DEPTH: usize = 16;
/// What /dev has that a container gets of its own.
const OWN: [&str; 9] = [
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
    "/dev/console",
    "/dev/ptmx",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
];

/// All devices of a container: those it names, and all of the node for a privileged one. Blocks.
///
/// # Errors
/// A named one is not there, or is no device.
pub fn find(spec: &ContainerSpec) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for device in &spec.devices {
        let before = found.len();
        let (host, inside) = (Path::new(&device.host_path), Path::new(&device.container_path));
        let metadata =
            std::fs::metadata(host).doing(|| format!("find device {}", device.host_path))?;
        add(host, inside, &metadata, &device.permissions, 0, &mut found)?;
        if found.len() == before {
            return Err(Error::invalid(
                "config.devices",
                format!("{} is neither a device nor has any below it", device.host_path),
            ));
        }
    }
    if spec.security.privileged {
        let dev = Device {
            host_path: "/dev".into(),
            container_path: "/dev".into(),
            permissions: "rwm".into(),
        };
        add_all(Path::new("/dev"), Path::new("/dev"), &dev.permissions, 0, &mut found)?;
    }
    Ok(found)
}

fn add(
    host: &Path,
    inside: &Path,
    metadata: &std::fs::Metadata,
    permissions: &str,
    depth: usize,
    found: &mut Vec<Found>,
) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_dir() {
        return if depth < MAX_DEPTH {
            add_all(host, inside, permissions, depth + 1, found)
        } else {
            Ok(())
        };
    }
    let (kind, format) = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => (Kind::Char, libc::S_IFCHR),
        (_, true) => (Kind::Block, libc::S_IFBLK),
        _ => return Ok(()),
    };
    let path = inside.to_string_lossy().into_owned();
    if found.iter().any(|other| other.node.path == path) {
        return Ok(());
    }
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let node = shim::Device {
        path,
        mode: format | metadata.mode() & 0o7777,
        major,
        minor,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    let may = |letter| permissions.contains(letter);
    let rule = Rule {
        allow: true,
        kind,
        major: Some(major),
        minor: Some(minor),
        read: may('r'),
        write: may('w'),
        mknod: may('m'),
    };
    found.push(Found { node, rule });
    Ok(())
}

/// A device that goes away while we look is not there.
fn add_all(
    host: &Path,
    inside: &Path,
    permissions: &str,
    depth: usize,
    found: &mut Vec<Found>,
) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(host) else { return Ok(()) };
    for entry in entries.filter_map(std::io::Result::ok) {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        // Links would show one device twice.
        if let Ok(metadata) = entry.metadata() {
            add(&path, &inside.join(entry.file_name()), &metadata, permissions, depth, found)?;
        }
    }
    Ok(())
}
