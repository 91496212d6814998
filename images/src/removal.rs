//! Deletes trees that hostile layers made: by descriptor, of any depth, with few of them open.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories that are open at once. What lies deeper is moved up first.
const MAX_OPEN: usize = 16;

/// Asked for each file that is no directory; true where it was taken away and need not be deleted.
pub(crate) type Take<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr) -> rustix::io::Result<bool>;

/// Deletes `name` in `parent`: a directory with all that is in it, or a file. What is gone already is fine.
///
/// # Errors
/// The first error of a call; the tree is then half deleted and the same call goes on with it.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    remove_taking(parent, name, &mut |_, _| Ok(false))
}

/// Deletes a tree that a container may have made: no link in it is followed, and nothing that is mounted below it is
/// touched. What is gone already is fine. Blocks.
///
/// # Errors
/// Those of the calls; `CrossesDevices` for a mount in the tree, `ResourceBusy` for a mount of a file. The tree is half
/// deleted then, and the same call goes on with it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
    let name = CString::new(path.file_name().ok_or_else(no_name)?.as_bytes())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = path.parent().ok_or_else(no_name)?;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(parent) => Ok(remove(parent.as_fd(), &name)?),
    }
}

/// As [`remove`], but each file is offered to `take` first.
pub(crate) fn remove_taking(
    parent: BorrowedFd<'_>,
    name: &CStr,
    take: Take<'_>,
) -> rustix::io::Result<()> {
    let top = match open(parent, name) {
        Ok(top) => top,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(rustix::fs::unlinkat(parent, name, AtFlags::empty()));
        }
        Err(errno) => return gone(Err(errno)),
    };
    let mut emptying = Emptying { top: top.as_fd(), moved: 0, take };
    loop {
        let moved = emptying.moved;
        emptying.empty(top.as_fd(), 1)?;
        if emptying.moved == moved {
            break;
        }
    }
    gone(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

struct Emptying<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    take: Take<'a>,
}

impl Emptying<'_> {
    fn empty(&mut self, dir: BorrowedFd<'_>, open_now: usize) -> rustix::io::Result<()> {
        let mut entries = Dir::read_from(dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let is_dir = kind == FileType::Directory;
            if !is_dir {
                if !(self.take)(dir, name)? {
                    gone(rustix::fs::unlinkat(dir, name, AtFlags::empty()))?;
                }
            } else if open_now == MAX_OPEN {
                self.move_up(dir, name)?;
            } else {
                let child = open(dir, name)?;
                self.empty(child.as_fd(), open_now + 1)?;
                gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))?;
            }
        }
        Ok(())
    }

    /// Puts a deep directory into the top one, where the next round finds it.
    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        loop {
            self.moved += 1;
            let to = format!(".deep-{}", self.moved);
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(dir, name, self.top, to, flags) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
    }
}

/// Never into a mount: whatever is mounted there, it is not the tree's to delete.
fn open(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open =
        || rustix::fs::openat2(dir, name, flags, Mode::empty(), rustix::fs::ResolveFlags::NO_XDEV);
    match open() {
        // Only root can look into every directory. Its owner can make it readable first.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open()
        }
        other => other,
    }
}

fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn dir_of(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn deep_and_wide_trees_go_and_links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), "c").unwrap();
        let top = temp.path().join("t");
        let mut deep = top.clone();
        for depth in 0..100 {
            deep.push("d");
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join(format!("f{depth}")), "x").unwrap();
            symlink(&outside, deep.join("link")).unwrap();
        }
        let parent = dir_of(temp.path());
        remove(parent.as_fd(), c"t").unwrap();
        assert!(!top.exists());
        assert!(outside.join("canary").exists());
        remove(parent.as_fd(), c"t").unwrap();
    }

    #[test]
    fn a_link_in_place_of_a_tree_is_only_unlinked() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        fs::write(temp.path().join("outside/canary"), "c").unwrap();
        symlink("outside", temp.path().join("t")).unwrap();
        let parent = dir_of(temp.path());
        remove(parent.as_fd(), c"t").unwrap();
        assert!(temp.path().join("outside/canary").exists());
        assert!(!temp.path().join("t").is_symlink());
    }

    #[test]
    fn files_may_be_taken_out() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("t/a/b")).unwrap();
        fs::write(temp.path().join("t/a/b/keep"), "k").unwrap();
        fs::write(temp.path().join("t/a/b/drop"), "d").unwrap();
        let parent = dir_of(temp.path());
        remove_taking(parent.as_fd(), c"t", &mut |dir, name| {
            if name != c"keep" {
                return Ok(false);
            }
            rustix::fs::renameat(dir, name, &parent, "kept").map(|()| true)
        })
        .unwrap();
        assert_eq!(fs::read(temp.path().join("kept")).unwrap(), b"k");
        assert!(!temp.path().join("t").exists());
    }
}
