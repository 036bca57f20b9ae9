//! Records that programs write into a ring.

use std::io;

use tokio::io::{Interest, unix::AsyncFd};

use crate::dataplane::Tap;

/// Has the runtime watch the ring for events.
pub fn watch(tap: Tap) -> io::Result<AsyncFd<Tap>> {
    // SAFETY: a tap's descriptor is the one of the map that it owns for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(tap, Interest::READABLE) }?)
}

/// A value as its bytes are in memory; `None`: they are not as many.
pub fn read_pod<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the type has, every pattern of which is valid; aligned or not.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
