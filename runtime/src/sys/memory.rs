//! How the allocator gives memory back (mallopt(3)).

/// From this size on an allocation is a mapping of its own, which goes back to the kernel when it is freed. glibc would
/// raise the threshold to the largest it has seen freed, up to 32 MiB, and keep what is below it.
const MAPPED: libc::c_int = 128 << 10;
/// Free bytes at the top of the heap that are kept.
const KEPT: libc::c_int = 128 << 10;
/// Heaps for threads that allocate at the same time; glibc would make eight for each processor.
const ARENAS: libc::c_int = 2;

/// Has the allocator of this process give large allocations back at once. Does nothing where the libc is not glibc.
pub fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        // SAFETY: takes numbers, and locks the allocator while it changes it.
        unsafe { libc::mallopt(parameter, value) };
    }
}
