//! Memory-mapped arrays.

use std::{io, os::fd::BorrowedFd, ptr::NonNull, sync::atomic::AtomicU64};

/// An array map of `u64`, mapped: each word is stored and read whole, here and by programs.
pub struct MappedWords {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: shared memory reached through atomics only.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps `len` elements of the array map `map` (created with `BPF_F_MMAPABLE`).
    pub fn map(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len * size_of::<u64>(),
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                map,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, len })
    }

    /// The element with this index; `None`: out of range.
    pub fn get(&self, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        // SAFETY: within the mapping, which lives as long as self; page-aligned base.
        (index < self.len).then(|| unsafe { self.base.add(index).as_ref() })
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no reference into it outlives self.
        let _ =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}
