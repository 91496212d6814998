//! What a layer leaves to those below: how directories look that its tar implies without listing them.
//!
//! `/tmp` would lose its 1777 if a tar with `tmp/x` alone made it anew. Layers are unpacked
//! at the same time, so this is settled when a layer is committed, in the order of the stack.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use runtime::root::Root;
use rustix::fs::OFlags;

use super::lowers::{Found, Lowers};
use super::metadata;
use super::names::{LayerPath, shown, split};
use super::tree::{Contents, is_below_opaque};
use crate::error::{Doing, Result};

/// Whether a layer is as it should be on its stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is.
    Yes,
    /// A path of it leads through a link, or a hard link to a file, of a lower layer: it has to be unpacked again with those known.
    UnpackAgain,
}

/// Gives every implied directory of a tree the looks of the nearest one below.
///
/// # Errors
/// Those of the calls.
pub(crate) fn settle(tree: OwnedFd, contents: &Contents, lowers: &Lowers) -> Result<Settled> {
    if contents.unresolved {
        return Ok(Settled::UnpackAgain);
    }
    let root = Root::from_fd(tree);
    // The deepest first: setting up a directory changes no other one, but the order is then that of times.
    for path in contents.implied.iter().rev() {
        let doing = || format!("look up {} in the layers below", shown(path));
        let found = match is_below_opaque(&contents.opaque, path) {
            true => Found::Missing,
            false => lowers.find(path).doing(doing)?,
        };
        if found.link_target(split(path).1).doing(doing)?.is_some() {
            return Ok(Settled::UnpackAgain);
        }
        let dir = open(&root, path)?;
        let doing = || format!("set up directory {}", shown(path));
        match found {
            Found::Directory(below) => metadata::copy(below.as_fd(), dir.as_fd()).doing(doing)?,
            // As new as the layer; the time of unpacking would make two equal layers differ.
            Found::Missing | Found::Other(..) => {
                let times = metadata::timestamps((contents.newest, 0));
                rustix::fs::futimens(&dir, &times).doing(doing)?;
            }
        }
    }
    Ok(Settled::Yes)
}

fn open(root: &Root, path: &LayerPath) -> Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    root.resolve_beneath(Path::new(OsStr::from_bytes(path)), flags, 0)
        .map_err(std::io::Error::other)
        .doing(|| format!("open {}", shown(path)))
}
