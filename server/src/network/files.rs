//! Small files, read whole.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read};

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
