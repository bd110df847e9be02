//! The allocator's memory: how much it may keep of what it was given back.
//!
//! glibc gives each thread an arena and keeps what is freed inside of them. A daemon that once wrote the tree of a
//! large image would hold that memory for as long as it lives. Other C libraries are left as they are.

/// Lets all threads share a few arenas. For the start of a process with many threads that allocate little.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: sets a parameter of the allocator; refused, it does nothing.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    }
}

/// Gives memory that is free back to the system. Takes milliseconds: for the end of something large.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: touches free memory only, under the allocator's own locks.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_can_be_given_back_at_any_time() {
        super::share_arenas();
        let kept: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 10_000]).collect();
        super::give_back();
        assert!(kept.iter().enumerate().all(|(n, bytes)| bytes.iter().all(|byte| usize::from(*byte) == n)));
    }
}
