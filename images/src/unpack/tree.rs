//! Writes the entries of one layer as files.
//!
//! The form on disk is what overlayfs takes as a lower directory: a whiteout is a character
//! device 0:0, a directory that hides those below it is marked opaque. Which entry wins
//! does not depend on luck: a later entry replaces an earlier one of the same path, and
//! whiteouts hide what lower layers have, never what this one brings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use runtime::root::Root;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, XattrFlags};
use rustix::io::Errno;

use super::entries::{Entries, Entry, Kind};
use super::lowers::{Found, Lowers, OPAQUE};
use super::metadata::{self, Access};
use super::names::{self, LayerPath, Meaning, shown, split};
use super::parents::{Dir, Recent};
use super::recipe;
use super::sparse::Extent;
use crate::error::{Doing, Result};
use crate::limits::Limits;

/// Names inside the work directory of a layer.
pub(crate) const TREE: &str = "tree";
pub(crate) const KEPT: &str = "kept";
pub(crate) const RECIPE: &str = "recipe";

/// What has to be known about a layer once all entries are written.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Directories that the tar has not listed: the layers below decide how they look.
    pub(crate) implied: BTreeSet<LayerPath>,
    /// Directories that hide what layers below have in them.
    pub(crate) opaque: BTreeSet<LayerPath>,
    /// A hard link leads to what this layer has not: the layers below have to be looked at.
    pub(crate) unresolved: bool,
    /// Contents that were overwritten and kept.
    pub(crate) kept: u64,
    /// Bytes on disk, in blocks of 4 KiB.
    pub(crate) bytes: u64,
    /// Files, directories and all else.
    pub(crate) inodes: u64,
    /// The latest modification time, in seconds since 1970.
    pub(crate) newest: i64,
    /// Inode of each file that has content, and its number in the recipe.
    pub(super) files: HashMap<u64, u32>,
    /// Listed directories, with what is set last.
    pub(super) listed: BTreeMap<LayerPath, Late>,
}

/// What a directory gets when nothing more is made in it.
#[derive(Debug)]
pub(super) struct Late {
    mtime: (i64, u32),
    /// The mode, where the directory was made with more rights to be able to write into it.
    mode: Option<u32>,
    default_acl: Option<Vec<u8>>,
}

/// A layer in the making.
pub(super) struct Tree<'a> {
    pub(super) root: Root,
    pub(super) what: &'a str,
    pub(super) recent: Recent,
    pub(super) found: Contents,
    pub(super) limits: &'a Limits,
    pub(super) work: OwnedFd,
    /// The layers below; nothing where they are not finished yet.
    pub(super) lowers: Option<&'a Lowers>,
    pub(super) recipe: recipe::Writer,
    pub(super) replaced: u64,
    ours: Access,
}

impl<'a> Tree<'a> {
    /// Begins a layer in an empty work directory.
    pub(super) fn new(
        work: OwnedFd,
        lowers: Option<&'a Lowers>,
        what: &'a str,
        limits: &'a Limits,
    ) -> Result<Tree<'a>> {
        let doing = || format!("begin {what}");
        rustix::fs::mkdirat(&work, TREE, Mode::from_raw_mode(0o755)).doing(doing)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&work, TREE, flags, Mode::empty()).doing(doing)?;
        let mut ours = Access::found(&rustix::fs::fstat(&root).doing(doing)?);
        ours.mode = 0o755;
        let file = metadata::create(work.as_fd(), RECIPE.as_bytes(), Mode::RUSR | Mode::WUSR);
        let recipe = recipe::Writer::new(File::from(file.doing(doing)?)).doing(doing)?;
        let mut found = Contents { bytes: 4096, inodes: 1, ..Contents::default() };
        found.implied.insert(LayerPath::new());
        Ok(Tree {
            root: Root::from_fd(root),
            what,
            recent: Recent::default(),
            found,
            limits,
            work,
            lowers,
            recipe,
            replaced: 0,
            ours,
        })
    }

    /// Writes all entries and ends the recipe.
    pub(super) fn write_all<R: BufRead>(
        mut self,
        entries: &mut Entries<'_, R>,
    ) -> Result<Contents> {
        while let Some(entry) = entries.next()? {
            self.found.newest = self.found.newest.max(entry.mtime.0);
            self.write(&entry, entries)?;
        }
        entries.finish()?;
        self.note_raw(entries)?;
        self.set_aside_replaced()?;
        self.finish_directories()?;
        let what = self.what;
        self.recipe.finish().doing(|| format!("end the recipe of {what}"))?;
        Ok(self.found)
    }

    fn write<R: BufRead>(&mut self, entry: &Entry, entries: &mut Entries<'_, R>) -> Result<()> {
        let meaning = names::meaning(&entry.name, self.limits)
            .map_err(|problem| crate::Error::invalid(self.what, problem))?;
        match meaning {
            Meaning::Entry(path) => self.write_entry(&path, entry, entries)?,
            Meaning::Whiteout { dir, name } => self.write_whiteout(&dir, &name)?,
            Meaning::Opaque { dir } => {
                let dir = self.directory(&dir)?;
                self.make_opaque(&dir)?;
            }
            Meaning::Note => {}
        }
        // What does not go to disk goes into the recipe, for the tar has it.
        if entries.has_content() {
            self.note_raw(entries)?;
            let (recipe, what) = (&mut self.recipe, self.what);
            entries.content(|piece| {
                recipe.raw(piece).doing(|| format!("write the recipe of {what}"))
            })?;
        }
        if entries.raw().len() > 64 << 10 { self.note_raw(entries) } else { Ok(()) }
    }

    fn note_raw<R: BufRead>(&mut self, entries: &mut Entries<'_, R>) -> Result<()> {
        self.recipe.raw(entries.raw()).doing(|| format!("write the recipe of {}", self.what))?;
        entries.raw().clear();
        Ok(())
    }

    fn write_entry<R: BufRead>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        entries: &mut Entries<'_, R>,
    ) -> Result<()> {
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(self.bad(&entry.name, "the root of a layer must be a directory"));
            }
            let root = self.directory(b"")?;
            return self.finish_directory(&root, entry);
        }
        let (parent, name) = split(path);
        let parent = self.directory(parent)?;
        match entry.kind {
            Kind::Directory => self.write_directory(&parent, name, entry),
            Kind::File => self.write_file(&parent, name, entry, entries),
            Kind::HardLink => self.write_hard_link(&parent, name, entry),
            Kind::Symlink | Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.write_node(&parent, name, entry)
            }
        }
    }

    fn write_directory(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Result<()> {
        let mode = Mode::from_raw_mode((entry.mode & 0o777 | 0o700) as RawMode);
        let mut hides = false;
        match rustix::fs::mkdirat(parent.fd(), name, mode) {
            Ok(()) => self.count_directory()?,
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| self.making(parent, name))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    hides = self.make_room(parent, name)?;
                    rustix::fs::mkdirat(parent.fd(), name, mode)
                        .doing(|| self.making(parent, name))?;
                    self.count_directory()?;
                }
            }
            Err(errno) => return Err(errno).doing(|| self.making(parent, name)),
        }
        let dir = self.child(parent, name)?;
        if hides {
            self.make_opaque(&dir)?;
        }
        self.finish_directory(&dir, entry)
    }

    fn finish_directory(&mut self, dir: &Dir, entry: &Entry) -> Result<()> {
        let doing = || format!("finish directory {}", shown(&dir.path));
        let stat = rustix::fs::fstat(dir.fd()).doing(doing)?;
        // Only root can write into a directory without rights to it.
        let wanted = Access::of(entry);
        let for_now = Access { mode: wanted.mode | 0o700, ..wanted };
        for_now.apply(dir.fd(), Access::found(&stat)).doing(doing)?;
        metadata::apply_xattrs(dir.fd(), entry).doing(doing)?;
        let acl = entry.xattrs.iter().find(|(name, _)| name == metadata::DEFAULT_ACL);
        let late = Late {
            mtime: entry.mtime,
            mode: Some(wanted.mode).filter(|mode| *mode != for_now.mode),
            default_acl: acl.map(|(_, value)| value.clone()),
        };
        self.found.implied.remove(&dir.path);
        self.found.listed.insert(dir.path.clone(), late);
        Ok(())
    }

    fn write_file<R: BufRead>(
        &mut self,
        parent: &Dir,
        name: &[u8],
        entry: &Entry,
        entries: &mut Entries<'_, R>,
    ) -> Result<()> {
        let mode = Mode::from_raw_mode((entry.mode & !metadata::SPECIAL_BITS) as RawMode);
        let created = metadata::create(parent.fd(), name, mode);
        let fd = self.or_make_room(parent, name, created, |parent| {
            metadata::create(parent.fd(), name, mode)
        })?;
        let stat = rustix::fs::fstat(&fd).doing(|| self.making(parent, name))?;
        let file = File::from(fd);
        self.count_file(entry)?;
        if entries.has_content() || entry.extents.is_some() {
            self.note_raw(entries)?;
            let path = names::join(&parent.path, name);
            let number = self
                .recipe
                .content(&path, entry.size, entry.extents.as_deref())
                .doing(|| format!("write the recipe of {}", self.what))?;
            self.found.files.insert(stat.st_ino, number);
            let written = match &entry.extents {
                None => write_whole(&file, entries, &path),
                Some(extents) => write_sparse(&file, entry.size, extents, entries, &path),
            };
            written?;
        }
        let doing = || self.making(parent, name);
        Access::of(entry).apply(file.as_fd(), Access::found(&stat)).doing(doing)?;
        metadata::apply_xattrs(file.as_fd(), entry).doing(doing)?;
        rustix::fs::futimens(&file, &metadata::timestamps(entry.mtime)).doing(doing)
    }

    fn write_node(&mut self, parent: &Dir, name: &[u8], entry: &Entry) -> Result<()> {
        let (major, minor) = entry.device;
        if entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            return Err(self.bad(
                &entry.name,
                "a character device 0:0 is no device but a whiteout of overlayfs",
            ));
        }
        if entry.kind == Kind::Symlink && (entry.link.is_empty() || entry.link.contains(&0)) {
            return Err(self.bad(&entry.name, "a symbolic link must lead somewhere"));
        }
        let mode = Mode::from_raw_mode((entry.mode & 0o777) as RawMode);
        let device = rustix::fs::makedev(major, minor);
        let make = |parent: &Dir| match entry.kind {
            Kind::Symlink => rustix::fs::symlinkat(&entry.link[..], parent.fd(), name),
            Kind::CharDevice => {
                rustix::fs::mknodat(parent.fd(), name, FileType::CharacterDevice, mode, device)
            }
            Kind::BlockDevice => {
                rustix::fs::mknodat(parent.fd(), name, FileType::BlockDevice, mode, device)
            }
            Kind::Fifo | Kind::File | Kind::HardLink | Kind::Directory => {
                rustix::fs::mknodat(parent.fd(), name, FileType::Fifo, mode, 0)
            }
        };
        let made = make(parent);
        self.or_make_room(parent, name, made, make)?;
        self.count(0)?;
        metadata::apply_at(parent.fd(), name, entry).doing(|| self.making(parent, name))
    }

    fn write_whiteout(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        let dir = self.directory(dir)?;
        // Below the lowest layer there is nothing to hide.
        if self.lowers.is_some_and(Lowers::is_empty) {
            return Ok(());
        }
        match rustix::fs::mknodat(dir.fd(), name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.count(0),
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| self.making(&dir, name))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let child = self.child(&dir, name)?;
                    self.found.implied.remove(&child.path);
                    self.make_opaque(&child)?;
                }
                Ok(())
            }
            Err(errno) => Err(errno).doing(|| self.making(&dir, name)),
        }
    }

    /// Hides all directories of that path in the layers below.
    pub(super) fn make_opaque(&mut self, dir: &Dir) -> Result<()> {
        if self.lowers.is_some_and(Lowers::is_empty) {
            return Ok(());
        }
        self.found.opaque.insert(dir.path.clone());
        rustix::fs::fsetxattr(dir.fd(), OPAQUE, b"y", XattrFlags::empty())
            .doing(|| format!("make directory {} opaque", shown(&dir.path)))
    }

    /// What the layers below show at a path, where this layer does not hide it.
    pub(super) fn below(&self, path: &LayerPath) -> rustix::io::Result<Found> {
        match self.lowers {
            Some(lowers) if !is_below_opaque(&self.found.opaque, path) => lowers.find(path),
            _ => Ok(Found::Missing),
        }
    }

    /// Directories that the tar does not list look like this until the layers below are known.
    pub(super) fn set_default_access(&self, dir: &Dir) -> rustix::io::Result<()> {
        let stat = rustix::fs::fstat(dir.fd())?;
        self.ours.apply(dir.fd(), Access::found(&stat))
    }

    /// Sets what entries inside a directory would have changed, the deepest directories first.
    fn finish_directories(&mut self) -> Result<()> {
        self.recent.clear();
        let listed = std::mem::take(&mut self.found.listed);
        for (path, late) in listed.iter().rev() {
            let dir = self.directory(path)?;
            let doing = || format!("finish directory {}", shown(path));
            if let Some(acl) = &late.default_acl {
                metadata::set_xattr(dir.fd(), metadata::DEFAULT_ACL, acl).doing(doing)?;
            }
            if let Some(mode) = late.mode {
                rustix::fs::fchmod(dir.fd(), Mode::from_raw_mode(mode as RawMode)).doing(doing)?;
            }
            rustix::fs::futimens(dir.fd(), &metadata::timestamps(late.mtime)).doing(doing)?;
        }
        Ok(())
    }

    pub(super) fn count_directory(&mut self) -> Result<()> {
        self.count(4096)
    }

    fn count_file(&mut self, entry: &Entry) -> Result<()> {
        let data = match &entry.extents {
            None => entry.size,
            Some(extents) => extents.iter().map(|extent| extent.length).sum(),
        };
        self.count(data)
    }

    pub(super) fn count(&mut self, bytes: u64) -> Result<()> {
        self.found.inodes += 1;
        self.found.bytes += bytes.next_multiple_of(4096);
        // Directories that paths imply are inodes too, and no entry counts them.
        if self.found.inodes > self.limits.tar_entries {
            return Err(self.limits.passed(format!("files of {}", self.what), "tar_entries"));
        }
        Ok(())
    }

    pub(super) fn making(&self, dir: &Dir, name: &[u8]) -> String {
        format!("unpack {}: write {}", self.what, shown(&names::join(&dir.path, name)))
    }
}

/// Whether a directory above `path` is opaque, so that nothing of lower layers shows there.
pub(super) fn is_below_opaque(opaque: &BTreeSet<LayerPath>, path: &[u8]) -> bool {
    if opaque.is_empty() {
        return false;
    }
    let mut above = path;
    while !above.is_empty() {
        above = split(above).0;
        if opaque.contains(above) {
            return true;
        }
    }
    false
}

fn write_whole<R: BufRead>(
    mut file: &File,
    entries: &mut Entries<'_, R>,
    path: &[u8],
) -> Result<()> {
    entries.content(|piece| file.write_all(piece).doing(|| format!("write {}", shown(path))))
}

fn write_sparse<R: BufRead>(
    file: &File,
    size: u64,
    extents: &[Extent],
    entries: &mut Entries<'_, R>,
    path: &[u8],
) -> Result<()> {
    let doing = || format!("write {}", shown(path));
    file.set_len(size).doing(doing)?;
    let mut extents = extents.iter().copied();
    let mut extent = Extent { offset: 0, length: 0 };
    entries.content(|mut piece| {
        while !piece.is_empty() {
            if extent.length == 0 {
                extent = extents.next().expect("the map is as long as the data");
            }
            let length = piece.len().min(usize::try_from(extent.length).unwrap_or(usize::MAX));
            file.write_all_at(&piece[..length], extent.offset).doing(doing)?;
            extent.offset += length as u64;
            extent.length -= length as u64;
            piece = &piece[length..];
        }
        Ok(())
    })
}
