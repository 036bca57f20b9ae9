//! The socket addresses of system calls.

use sidecar_common::Addr;

use crate::ctx::{AF_INET, AF_INET6};

/// `struct sockaddr_in`.
#[repr(C)]
pub struct SockaddrIn {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u32; 2],
}

impl SockaddrIn {
    /// With this address and port (native byte order).
    #[inline(always)]
    pub fn new(addr: &Addr, port: u16) -> Self {
        Self {
            family: AF_INET as u16,
            port: port.to_be(),
            addr: addr.v4(),
            zero: [0; 2],
        }
    }
}

/// `struct sockaddr_in6`.
#[repr(C)]
pub struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow_info: u32,
    addr: [u32; 4],
    scope_id: u32,
}

impl SockaddrIn6 {
    /// With this address and port (native byte order).
    #[inline(always)]
    pub fn new(addr: &Addr, port: u16) -> Self {
        Self {
            family: AF_INET6 as u16,
            port: port.to_be(),
            flow_info: 0,
            addr: addr.words,
            scope_id: 0,
        }
    }
}
