//! Hard links: to what the same layer has, and to what only a lower one has.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::entries::Entry;
use super::lowers::{Found, is_whiteout};
use super::metadata;
use super::names::{self, shown, split};
use super::parents::Dir;
use super::tree::Tree;
use crate::error::{Doing, Result};

impl Tree<'_> {
    pub(super) fn write_hard_link(
        &mut self,
        parent: &Dir,
        name: &[u8],
        entry: &Entry,
    ) -> Result<()> {
        let target = names::clean(&entry.link, self.limits)
            .map_err(|problem| self.bad(&entry.name, &format!("hard link to {problem}")))?;
        let (target_dir, target_name) = split(&target);
        if target_name.is_empty() {
            return Err(self.bad(&entry.name, "a hard link to the root"));
        }
        let from = self.directory(target_dir)?;
        if from.path == parent.path && target_name == name {
            return Err(self.bad(&entry.name, "a hard link to itself"));
        }
        match rustix::fs::statat(from.fd(), target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => Err(self.bad(
                &entry.name,
                &format!("the target {} of the hard link is deleted", shown(&target)),
            )),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Err(self.bad(&entry.name, "a hard link to a directory"))
            }
            Ok(stat) => self.link(&from, target_name, &stat, parent, name),
            Err(Errno::NOENT) => self.copy_from_below(&from, target_name, parent, name, entry),
            Err(errno) => Err(errno).doing(|| self.making(parent, name)),
        }
    }

    fn link(
        &mut self,
        from: &Dir,
        target: &[u8],
        stat: &Stat,
        to: &Dir,
        name: &[u8],
    ) -> Result<()> {
        let link = |to: &Dir| {
            match rustix::fs::linkat(from.fd(), target, to.fd(), name, AtFlags::empty()) {
                // A file has a largest number of names (ext4: 65,000): the next one is a copy.
                Err(Errno::MLINK) => {
                    metadata::copy_node((from.fd(), target), stat, (to.fd(), name))
                }
                other => other,
            }
        };
        let linked = link(to);
        self.or_make_room(to, name, linked, link)
    }

    /// A hard link to what a lower layer has becomes a copy of it: two layers share no inodes.
    fn copy_from_below(
        &mut self,
        from: &Dir,
        target: &[u8],
        to: &Dir,
        name: &[u8],
        entry: &Entry,
    ) -> Result<()> {
        if self.lowers.is_none() {
            self.found.unresolved = true;
            return Ok(());
        }
        let path = names::join(&from.path, target);
        match self.below(&path).doing(|| format!("look up {}", shown(&path)))? {
            Found::Directory(_) => Err(self.bad(&entry.name, "a hard link to a directory")),
            Found::Missing => {
                let problem =
                    format!("the target {} of the hard link does not exist", shown(&path));
                Err(self.bad(&entry.name, &problem))
            }
            Found::Other(dir, stat) => {
                let copy =
                    |to: &Dir| metadata::copy_node((dir.as_fd(), target), &stat, (to.fd(), name));
                let copied = copy(to);
                self.or_make_room(to, name, copied, copy)?;
                self.count(u64::try_from(stat.st_size).unwrap_or(0))
            }
        }
    }
}
