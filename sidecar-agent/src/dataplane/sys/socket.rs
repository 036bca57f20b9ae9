//! Options of sockets.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// The cookie of the network namespace that a socket is in, as `bpf_get_netns_cookie` tells it
/// (kernel 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = 8;
    // SAFETY: the buffer and its length are valid for the duration of the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// Lets a socket answer from addresses that are not local (`IP_TRANSPARENT`, which IPv6 sockets
/// share). Needs `CAP_NET_ADMIN` or `CAP_NET_RAW` in the user namespace of the socket's network.
pub fn set_transparent(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value and its size are valid for the duration of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            (&raw const on).cast(),
            4,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
