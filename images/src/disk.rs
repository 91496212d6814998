//! The directories of the store, and records in them that are whole or not there.
//!
//! ```text
//! images/               0700: files of images may be set-user-id, and nobody else may reach them (E-08)
//!   lock                held by the daemon that has the store open
//!   layers/17           the tree of a layer: a lower directory of overlayfs
//!   recipes/17          what its tar has besides the files' content
//!   kept/17/3           content of the tar's file 3, which a later entry overwrote
//!   blobs/HEX           manifests, indexes and image configs, by SHA-256
//!   records/layers/17   what layer 17 is
//!   records/images/HEX  an image: its names, documents and layers
//!   tmp/5               work in progress; emptied when the store is opened
//!   trash/9             to be deleted
//!   quarantine/         records that were damaged
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{Doing, Error, Result};

/// First word of a record, with the version of its form.
const FORM: &str = "berth-image-record-1";
/// Longest record: an image of 500 layers with thousands of labels has some 200 KiB.
const RECORD_CAP: u64 = 16 << 20;

/// One of the directories of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Layers,
    Recipes,
    Kept,
    Blobs,
    LayerRecords,
    ImageRecords,
    Work,
    Trash,
    Quarantine,
}

const PLACES: [(Place, &str); 9] = [
    (Place::Layers, "layers"),
    (Place::Recipes, "recipes"),
    (Place::Kept, "kept"),
    (Place::Blobs, "blobs"),
    (Place::LayerRecords, "records/layers"),
    (Place::ImageRecords, "records/images"),
    (Place::Work, "tmp"),
    (Place::Trash, "trash"),
    (Place::Quarantine, "quarantine"),
];

/// The open store on disk.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    top: OwnedFd,
    places: Vec<OwnedFd>,
    /// Numbers for names that nobody remembers.
    next: AtomicU64,
    /// Released when the store is closed.
    _lock: File,
    /// Changes of the disk that still happen; then all fail, as if the daemon had been killed.
    #[cfg(test)]
    pub(crate) fuse: std::sync::atomic::AtomicI64,
}

impl Disk {
    /// Opens the directories of a store, made where they are missing.
    ///
    /// # Errors
    /// Those of the calls; `Unavailable` when another daemon has the store open.
    pub(crate) fn open(path: &Path) -> Result<Arc<Disk>> {
        let doing = || format!("open image store {}", path.display());
        std::fs::create_dir_all(path).doing(doing)?;
        let top = rustix::fs::open(path, DIRECTORY, Mode::empty()).doing(doing)?;
        rustix::fs::fchmod(&top, Mode::RWXU).doing(doing)?;
        let lock = lock(&top, path)?;
        make(&top, "records").doing(doing)?;
        let places = PLACES
            .iter()
            .map(|(_, name)| {
                make(&top, name)?;
                rustix::fs::openat(&top, *name, DIRECTORY, Mode::empty())
            })
            .collect::<rustix::io::Result<Vec<_>>>()
            .doing(doing)?;
        let (path, next) = (path.to_owned(), AtomicU64::new(0));
        Ok(Arc::new(Disk {
            path,
            top,
            places,
            next,
            _lock: lock,
            #[cfg(test)]
            fuse: std::sync::atomic::AtomicI64::new(i64::MAX),
        }))
    }

    /// Asked before each change of the disk.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let it fail")]
    fn change(&self) -> rustix::io::Result<()> {
        Ok(())
    }

    /// Asked before each change of the disk; fails once the fuse has blown.
    #[cfg(test)]
    fn change(&self) -> rustix::io::Result<()> {
        if self.fuse.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(Errno::IO) }
    }

    /// The directory of a place.
    pub(crate) fn place(&self, place: Place) -> BorrowedFd<'_> {
        let index = PLACES.iter().position(|(other, _)| *other == place);
        self.places[index.expect("every place is in the list")].as_fd()
    }

    /// The path of a place on the host.
    pub(crate) fn path(&self, place: Place) -> PathBuf {
        let name = PLACES.iter().find(|(other, _)| *other == place).map(|(_, name)| *name);
        self.path.join(name.expect("every place is in the list"))
    }

    /// All names in a place, in no order.
    pub(crate) fn names(&self, place: Place) -> Result<Vec<String>> {
        let doing = || format!("list {}", self.path(place).display());
        let mut names = Vec::new();
        for entry in Dir::read_from(self.place(place)).doing(doing)? {
            let entry = entry.doing(doing)?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Opens a directory in a place.
    pub(crate) fn directory(&self, place: Place, name: &str) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(self.place(place), name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
    }

    /// Opens a file in a place for reading.
    pub(crate) fn file(&self, place: Place, name: &str) -> rustix::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(self.place(place), name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            true => Ok(File::from(fd)),
            false => Err(Errno::INVAL),
        }
    }

    /// A name in `tmp` or `trash` that this daemon has not used.
    pub(crate) fn fresh_name(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Makes an empty directory for work in progress.
    pub(crate) fn work(self: &Arc<Disk>) -> Result<Work> {
        let name = self.fresh_name();
        let doing = || format!("make {}", self.path(Place::Work).join(&name).display());
        self.change().doing(doing)?;
        rustix::fs::mkdirat(self.place(Place::Work), &name, Mode::RWXU).doing(doing)?;
        let dir = self.directory(Place::Work, &name).doing(doing)?;
        Ok(Work { disk: Arc::clone(self), name, dir })
    }

    /// Moves something to the trash. What is gone already is fine.
    pub(crate) fn discard(&self, place: Place, name: &str) -> rustix::io::Result<()> {
        self.change()?;
        loop {
            let to = self.fresh_name();
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(
                self.place(place),
                name,
                self.place(Place::Trash),
                &to,
                flags,
            ) {
                Err(Errno::NOENT) | Ok(()) => return Ok(()),
                // Left by an earlier daemon.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Deletes a file. What is gone already is fine.
    pub(crate) fn unlink(&self, place: Place, name: &str) -> rustix::io::Result<()> {
        self.change()?;
        match rustix::fs::unlinkat(self.place(place), name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Writes a file so that it is there whole or not at all, unless the power fails: see [`Disk::sync_all`].
    pub(crate) fn write(&self, place: Place, name: &str, content: &[u8], sync: Sync) -> Result<()> {
        let doing = || format!("write {}", self.path(place).join(name).display());
        let temporary = self.fresh_name();
        let work = self.place(Place::Work);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        self.change().doing(doing)?;
        let fd =
            rustix::fs::openat(work, &temporary, flags, Mode::RUSR | Mode::WUSR).doing(doing)?;
        let mut file = File::from(fd);
        let written = file.write_all(content).and_then(|()| match sync {
            Sync::Later => Ok(()),
            Sync::Now => file.sync_all(),
        });
        let renamed = written.and_then(|()| {
            self.change()?;
            Ok(rustix::fs::renameat(work, &temporary, self.place(place), name)?)
        });
        if let Err(error) = renamed {
            // A full disk is the likeliest reason; the half file must not stay on it.
            self.unlink(Place::Work, &temporary).ok();
            return Err(error).doing(doing);
        }
        match sync {
            Sync::Later => Ok(()),
            Sync::Now => rustix::fs::fsync(self.place(place)).doing(doing),
        }
    }

    /// Reads a file of at most `cap` bytes; nothing where there is none.
    pub(crate) fn read(&self, place: Place, name: &str, cap: u64) -> Result<Option<Vec<u8>>> {
        let doing = || format!("read {}", self.path(place).join(name).display());
        let file = match self.file(place, name) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).doing(doing),
        };
        let mut content = Vec::new();
        file.take(cap + 1).read_to_end(&mut content).doing(doing)?;
        if content.len() as u64 > cap {
            return Err(Error::invalid(doing(), format!("is larger than {cap} bytes")));
        }
        Ok(Some(content))
    }

    /// Writes a record with its checksum.
    pub(crate) fn write_record(
        &self,
        place: Place,
        name: &str,
        record: &impl Serialize,
        sync: Sync,
    ) -> Result<()> {
        self.write(place, name, &seal(record), sync)
    }

    /// Reads a record; nothing where there is none or it is damaged, which then is set aside.
    pub(crate) fn read_record<T: DeserializeOwned>(
        &self,
        place: Place,
        name: &str,
    ) -> Result<Option<T>> {
        // An unreadable sector, or a file of absurd size, is damage like a wrong checksum.
        let content = self.read(place, name, RECORD_CAP);
        let record = content.as_ref().ok().and_then(|content| unseal(content.as_deref()?));
        if record.is_some() || matches!(content, Ok(None)) {
            return Ok(record);
        }
        tracing::warn!(record = %self.path(place).join(name).display(), "a damaged record is set aside");
        self.set_aside(place, name)?;
        Ok(None)
    }

    /// Moves a record to where somebody may look at it, and nothing else does.
    pub(crate) fn set_aside(&self, place: Place, name: &str) -> Result<()> {
        let aside = format!("{}-{name}", self.fresh_name());
        rustix::fs::renameat(self.place(place), name, self.place(Place::Quarantine), aside)
            .doing(|| format!("set {} aside", self.path(place).join(name).display()))
    }

    /// Waits until all that was written to the disk of the store is there to stay.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.change()
            .and_then(|()| rustix::fs::syncfs(&self.top))
            .doing(|| format!("sync the disk of {}", self.path.display()))
    }

    /// Waits until what was deleted in a place stays deleted.
    pub(crate) fn sync_place(&self, place: Place) -> Result<()> {
        rustix::fs::fsync(self.place(place))
            .doing(|| format!("sync {}", self.path(place).display()))
    }
}

/// When a file has to be on the disk itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Before the call returns.
    Now,
    /// With the next sync of everything.
    Later,
}

/// A directory for work in progress; what is still in it goes to the trash in the end.
#[derive(Debug)]
pub(crate) struct Work {
    disk: Arc<Disk>,
    name: String,
    dir: OwnedFd,
}

impl Work {
    /// The directory.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Moves something of it to its place; false where it has no such thing.
    pub(crate) fn publish(&self, from: &str, place: Place, name: &str) -> rustix::io::Result<bool> {
        self.disk.change()?;
        match rustix::fs::renameat(&self.dir, from, self.disk.place(place), name) {
            Err(Errno::NOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.disk.change().is_err() {
            return;
        }
        // Most are empty by now. On a disk so full that not even a name fits, it is deleted here.
        let work = self.disk.place(Place::Work);
        if rustix::fs::unlinkat(work, &self.name, AtFlags::REMOVEDIR).is_ok() {
            return;
        }
        if self.disk.discard(Place::Work, &self.name).is_err() {
            let name = std::ffi::CString::new(self.name.clone()).expect("digits have no NUL");
            // If this fails too, the next start deletes it.
            crate::removal::remove(work, &name).ok();
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn make(dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn lock(top: &OwnedFd, path: &Path) -> Result<File> {
    let doing = || format!("lock image store {}", path.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(top, "lock", flags, Mode::RUSR | Mode::WUSR).doing(doing)?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(File::from(fd)),
        Err(Errno::WOULDBLOCK) => Err(Error::Unavailable {
            what: format!("image store {}", path.display()),
            problem: "another daemon has it open; give each daemon a --root of its own".to_owned(),
            source: None,
        }),
        Err(errno) => Err(errno).doing(doing),
    }
}

/// A record as it is written: a line with the checksum of the rest, then JSON.
fn seal(record: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_vec(record).expect("records are plain data");
    let mut sealed = format!("{FORM} {}\n", Digest::of(&body).hex()).into_bytes();
    sealed.extend(body);
    sealed
}

fn unseal<T: DeserializeOwned>(sealed: &[u8]) -> Option<T> {
    let end = sealed.iter().position(|byte| *byte == b'\n')?;
    let (line, body) = (&sealed[..end], &sealed[end + 1..]);
    let expected = format!("{FORM} {}", Digest::of(body).hex());
    (line == expected.as_bytes()).then(|| serde_json::from_slice(body).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, Arc<Disk>) {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::open(&temp.path().join("images")).unwrap();
        (temp, disk)
    }

    #[test]
    fn nobody_else_may_look_in() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("images");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        drop(Disk::open(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }

    #[test]
    fn two_daemons_never_share_a_store() {
        let (temp, disk) = disk();
        let second = Disk::open(&temp.path().join("images")).unwrap_err();
        assert!(second.to_string().contains("another daemon"), "{second}");
        drop(disk);
        Disk::open(&temp.path().join("images")).unwrap();
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let (_temp, disk) = disk();
        assert_eq!(disk.read_record::<u32>(Place::LayerRecords, "1").unwrap(), None);
        disk.write_record(Place::LayerRecords, "1", &7_u32, Sync::Later).unwrap();
        disk.write_record(Place::LayerRecords, "1", &8_u32, Sync::Now).unwrap();
        assert_eq!(disk.read_record::<u32>(Place::LayerRecords, "1").unwrap(), Some(8));
        assert!(disk.names(Place::Work).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_never_read() {
        let sealed = seal(&["text", "more text"]);
        let damaged = (0..sealed.len())
            .map(|at| {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                changed
            })
            .chain((0..sealed.len()).map(|length| sealed[..length].to_vec()))
            .chain([[&sealed[..], b" "].concat()]);
        let (_temp, disk) = disk();
        let mut count = 0;
        for content in damaged {
            disk.write(Place::ImageRecords, "x", &content, Sync::Later).unwrap();
            let read = disk.read_record::<Vec<String>>(Place::ImageRecords, "x").unwrap();
            assert_eq!(read, None, "{}", String::from_utf8_lossy(&content));
            assert!(disk.names(Place::ImageRecords).unwrap().is_empty());
            count += 1;
        }
        assert_eq!(disk.names(Place::Quarantine).unwrap().len(), count);
    }

    #[test]
    fn unfinished_work_goes_to_the_trash() {
        let (_temp, disk) = disk();
        let work = disk.work().unwrap();
        rustix::fs::mkdirat(work.dir(), "tree", Mode::RWXU).unwrap();
        drop(work);
        drop(disk.work().unwrap());
        assert!(disk.names(Place::Work).unwrap().is_empty());
        assert_eq!(disk.names(Place::Trash).unwrap().len(), 1);
    }
}
