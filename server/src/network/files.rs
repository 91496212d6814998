//! Small files: settings of the kernel, and the two things this module remembers.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fsync, mkdirat, openat, renameat, unlinkat};
use rustix::io::{Errno, read, write};

use super::{Error, Result};

/// Nothing we read here is longer.
const READ_CAP: usize = 64 << 10;

/// The text of a small file without the white space around it; `None` where there is no file.
///
/// # Errors
///
/// Also when it is longer than 64 KiB or no UTF-8.
pub(crate) fn read_small(path: &Path) -> Result<Option<String>> {
    let text = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(CWD, path, flags, Mode::empty())?;
        let mut bytes = vec![0; READ_CAP + 1];
        let mut length = 0;
        while length < bytes.len() {
            match read(&file, &mut bytes[length..])? {
                0 => break,
                count => length += count,
            }
        }
        if length > READ_CAP {
            return Err(io::Error::from(Errno::FBIG));
        }
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    match text() {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::kernel(format!("read {}", path.display()), error)),
    }
}

/// Writes a setting of the kernel below /proc/sys.
pub(crate) fn write_setting(path: &Path, value: &str) -> Result<()> {
    let set = || {
        let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, value.as_bytes()).map(drop)
    };
    set().map_err(|errno| Error::kernel(format!("set {} to {value}", path.display()), errno))
}

/// Writes a file that is there after a power cut, whole or not at all, and its directory.
pub(crate) fn write_durably(directory: &Path, name: &str, text: &str) -> Result<()> {
    let replace = || {
        match mkdirat(CWD, directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, directory, flags, Mode::empty())?;
        let temporary = format!(".{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = openat(&directory, &*temporary, flags, Mode::RUSR | Mode::WUSR)?;
        if write(&file, text.as_bytes())? != text.len() {
            return Err(Errno::NOSPC);
        }
        fsync(&file)?;
        renameat(&directory, &*temporary, &directory, name)?;
        fsync(&directory)
    };
    replace()
        .map_err(|errno| Error::kernel(format!("write {}", directory.join(name).display()), errno))
}

/// Deletes a file; one that is not there is fine.
pub(crate) fn delete(path: &Path) -> Result<()> {
    match unlinkat(CWD, path, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::kernel(format!("delete {}", path.display()), errno)),
    }
}
