//! A later entry takes the place of an earlier one, whose content the tar still has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::lowers::is_whiteout;
use super::names::{self, LayerPath, shown};
use super::parents::Dir;
use super::tree::{KEPT, Tree};
use crate::error::{Doing, Result};

/// Where replaced directories wait in the work directory until the layer is whole.
const REPLACED: &str = "replaced";

impl Tree<'_> {
    /// The result of making something; where the name is taken, what has it goes and `make` is tried again.
    pub(super) fn or_make_room<T>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        made: rustix::io::Result<T>,
        make: impl FnOnce(&Dir) -> rustix::io::Result<T>,
    ) -> Result<T> {
        match made {
            Err(Errno::EXIST) => {
                self.make_room(dir, name)?;
                make(dir).doing(|| self.making(dir, name))
            }
            other => other.doing(|| self.making(dir, name)),
        }
    }

    /// Takes away what an entry replaces; true where it was a whiteout.
    ///
    /// The tar still has the content of a replaced file, so it is kept for the recipe.
    pub(super) fn make_room(&mut self, dir: &Dir, name: &[u8]) -> Result<bool> {
        let path = names::join(&dir.path, name);
        let doing = || format!("replace {}", shown(&path));
        let stat = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let aside = self.subdirectory(REPLACED).doing(doing)?;
            self.replaced += 1;
            rustix::fs::renameat(dir.fd(), name, &aside, self.replaced.to_string()).doing(doing)?;
            self.forget(&path);
            return Ok(false);
        }
        let number = self.found.files.get(&stat.st_ino).copied();
        if kind != FileType::RegularFile || !self.keep(dir.fd(), name, number).doing(doing)? {
            rustix::fs::unlinkat(dir.fd(), name, AtFlags::empty()).doing(doing)?;
        }
        if kind == FileType::Symlink {
            self.recent.clear();
        }
        Ok(is_whiteout(&stat))
    }

    /// Forgets a directory and all below it.
    fn forget(&mut self, path: &LayerPath) {
        self.recent.clear();
        // Everything below it sorts between "path/" and "path0": 0 follows the slash.
        let below = [path, &b"/"[..]].concat()..[path, &b"0"[..]].concat();
        let mut inside = vec![path.clone()];
        inside.extend(self.found.implied.range(below.clone()).cloned());
        inside.extend(self.found.opaque.range(below.clone()).cloned());
        inside.extend(self.found.listed.range(below).map(|(path, _)| path.clone()));
        for path in inside {
            self.found.implied.remove(&path);
            self.found.opaque.remove(&path);
            self.found.listed.remove(&path);
        }
    }

    /// Moves a file with content to the kept ones; false where it need not be or is there already.
    fn keep(
        &mut self,
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg + Copy,
        number: Option<u32>,
    ) -> rustix::io::Result<bool> {
        let Some(number) = number else { return Ok(false) };
        let kept = self.subdirectory(KEPT)?;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(dir, name, &kept, number.to_string(), flags) {
            Ok(()) => {
                self.found.kept += 1;
                Ok(true)
            }
            // It has another name, which was replaced before.
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn subdirectory(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        match rustix::fs::mkdirat(&self.work, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.work, name, flags, Mode::empty())
    }

    /// Takes the contents out of replaced directories and deletes the rest of them.
    pub(super) fn set_aside_replaced(&mut self) -> Result<()> {
        if self.replaced == 0 {
            return Ok(());
        }
        let work = rustix::io::fcntl_dupfd_cloexec(&self.work, 0).doing(|| "set aside")?;
        crate::removal::remove_taking(work.as_fd(), c"replaced", &mut |dir, name| {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let number = self.found.files.get(&stat.st_ino).copied();
            self.keep(dir, name, number)
        })
        .doing(|| format!("clear what {} replaced in itself", self.what))
    }
}
