//! A page of memory that a process shares with its clones.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Two words that parent and child both see, for what must be said where no system
/// call is allowed any more: how far a set-up has come, and which error ended it.
#[derive(Debug)]
pub struct SharedPage {
    words: *mut [AtomicU32; 2],
}

const LENGTH: usize = 4096;

impl SharedPage {
    /// Maps a page; it must be made before the clone.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new() -> io::Result<SharedPage> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(SharedPage { words: address.cast() })
    }

    fn words(&self) -> &[AtomicU32; 2] {
        // SAFETY: the mapping is zeroed, aligned, large enough, and lives as long as self.
        unsafe { &*self.words }
    }

    /// Says which step begins.
    pub fn set_step(&self, step: u32) {
        self.words()[0].store(step, Ordering::Release);
    }

    /// The step that began last.
    pub fn step(&self) -> u32 {
        self.words()[0].load(Ordering::Acquire)
    }

    /// Says which error (errno) ended the set-up.
    pub fn set_errno(&self, errno: i32) {
        self.words()[1].store(errno.unsigned_abs(), Ordering::Release);
    }

    /// The error that ended the set-up, 0 for none.
    pub fn errno(&self) -> i32 {
        self.words()[1].load(Ordering::Acquire).cast_signed()
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by new and is referred to by nothing else; a failed unmap only leaks it.
        unsafe { libc::munmap(self.words.cast(), LENGTH) };
    }
}
