//! Becoming another program: execve(2), with all memory prepared before.

use std::ffi::{CStr, CString};
use std::io;

/// A null-terminated array of strings, as execve takes it.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl StringArray {
    /// Takes the strings; a clone of the process may use it too.
    pub fn new(strings: Vec<CString>) -> StringArray {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        StringArray { strings, pointers }
    }

    /// The first string, where there is one.
    pub fn first(&self) -> Option<&CStr> {
        self.strings.first().map(CString::as_c_str)
    }
}

/// Becomes the program at `path`. Returns only what went wrong. Makes no other system call.
pub fn execute(path: &CStr, arguments: &StringArray, environment: &StringArray) -> io::Error {
    // SAFETY: path is terminated, both arrays end with null and their strings live in the values that hold them.
    unsafe {
        libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    io::Error::last_os_error()
}

/// Replaces the command line that others see of this process (proc(5), cmdline), where it tells what
/// they need not know. Nothing may look at the process's arguments afterwards.
///
/// # Errors
/// Those of reading /proc/self/stat; `InvalidData` where it is not understood.
pub fn set_title(title: &[u8]) -> io::Result<()> {
    // proc(5): fields 48 and 49 count from the process id; the name in field 2 may hold anything, but no later ')'.
    const ARG_START: usize = 48 - 3;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let address = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<usize>().ok())
            .filter(|address| *address != 0)
    };
    let (Some(start), Some(end)) = (address(ARG_START), address(ARG_START + 1)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let length = end.saturating_sub(start);
    let start = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel laid this process's argument strings out there, writable, and by the caller's word nothing
    // refers to them any more.
    let area = unsafe { std::slice::from_raw_parts_mut(start, length) };
    area.fill(0);
    let shown = title.len().min(length.saturating_sub(1));
    area[..shown].copy_from_slice(&title[..shown]);
    Ok(())
}
