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
