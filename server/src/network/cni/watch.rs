//! Hears when CNI configurations change, also in directories that are not there yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::error::{Doing, Result};

/// A descriptor that becomes readable when something changes. It never blocks. After a change it is best made anew:
/// directories may have come and gone.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Watches these directories; of one that is not there, the nearest that is above it.
    ///
    /// # Errors
    /// The kernel has no room for another watch.
    pub fn open(directories: &[PathBuf]) -> Result<Watch> {
        use inotify::{CreateFlags, WatchFlags};
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).doing(|| "watch CNI configurations")?;
        let inside = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        for directory in directories {
            // Its name is watched, too: it may be a link, or be replaced.
            let mut wanted = inside;
            let mut next: Option<&Path> = Some(directory);
            while let Some(path) = next {
                // One that is here for another directory keeps what is watched for that.
                let added = inotify::add_watch(
                    &fd,
                    path,
                    wanted | WatchFlags::ONLYDIR | WatchFlags::MASK_ADD,
                );
                match added {
                    Ok(_) if path != directory => break,
                    Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(errno) => return Err(errno).doing(|| format!("watch {}", path.display())),
                }
                wanted = names;
                next = path.parent();
            }
        }
        Ok(Watch(fd))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(watch: &Watch) -> bool {
        let mut buffer = [0; 4096];
        let mut changed = false;
        while rustix::io::read(&watch.0, &mut buffer).is_ok_and(|count| count > 0) {
            changed = true;
        }
        changed
    }

    #[test]
    fn files_and_directories_that_come_are_heard_of() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("cni/net.d");
        let watch = Watch::open(std::slice::from_ref(&deep)).unwrap();
        assert!(!drain(&watch));
        std::fs::create_dir(dir.path().join("cni")).unwrap();
        assert!(drain(&watch));
        let watch = Watch::open(std::slice::from_ref(&deep)).unwrap();
        std::fs::create_dir(&deep).unwrap();
        assert!(drain(&watch));
        let watch = Watch::open(std::slice::from_ref(&deep)).unwrap();
        std::fs::write(deep.join("a.conf"), "x").unwrap();
        assert!(drain(&watch));
        assert!(!drain(&watch));
        std::fs::rename(deep.join("a.conf"), deep.join("b.conf")).unwrap();
        assert!(drain(&watch));
        std::fs::remove_file(deep.join("b.conf")).unwrap();
        assert!(drain(&watch));
        std::fs::remove_dir(&deep).unwrap();
        assert!(drain(&watch));
    }
}
