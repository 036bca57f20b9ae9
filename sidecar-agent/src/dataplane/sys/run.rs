//! Running a program on what it is given (`BPF_PROG_TEST_RUN`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use sidecar_common::IPPROTO_TCP;

use super::{bpf_mut, raw};

const BPF_PROG_TEST_RUN: u32 = 10;

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgRun {
    prog_fd: u32,
    /// Written by the kernel.
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `struct bpf_sk_lookup` of kernel 5.17.
#[repr(C, align(8))]
#[derive(Default)]
struct Lookup {
    /// Written by the kernel: the cookie of the socket that was selected.
    cookie: u64,
    family: u32,
    protocol: u32,
    remote_ip4: [u8; 4],
    remote_ip6: [u8; 16],
    remote_port: [u8; 2],
    zero: u16,
    local_ip4: [u8; 4],
    local_ip6: [u8; 16],
    local_port: u32,
    /// Must be zero here.
    ingress_ifindex: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Lookup>() == 72);

/// What a program has done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It refuses it (`SK_DROP`).
    Refused,
    /// It gives it to the socket with this cookie.
    Given(u64),
    /// It gives it to one of several sockets that share a port: the kernel does not say which.
    Shared,
    /// It leaves it alone.
    Passed,
}

/// Has a program of type `sk_lookup` look at a TCP connection that arrives by no interface in
/// particular. It does all that it does for a real one (kernel 5.13).
pub fn look_up(
    program: BorrowedFd<'_>,
    source: SocketAddr,
    destination: SocketAddr,
) -> io::Result<Looked> {
    let mut lookup = Lookup {
        protocol: IPPROTO_TCP,
        remote_port: source.port().to_be_bytes(),
        local_port: destination.port().into(),
        ..Lookup::default()
    };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            lookup.family = libc::AF_INET.cast_unsigned();
            lookup.remote_ip4 = from.octets();
            lookup.local_ip4 = to.octets();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            lookup.family = libc::AF_INET6.cast_unsigned();
            lookup.remote_ip6 = from.octets();
            lookup.local_ip6 = to.octets();
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
    let lookup = &raw mut lookup;
    let size = u32::try_from(size_of::<Lookup>()).map_err(io::Error::other)?;
    let mut attr = ProgRun {
        prog_fd: raw(program),
        ctx_size_in: size,
        ctx_size_out: size,
        ctx_in: lookup as u64,
        ctx_out: lookup as u64,
        ..ProgRun::default()
    };
    match bpf_mut(BPF_PROG_TEST_RUN, &mut attr) {
        // It has run; see `bpf_prog_test_run_sk_lookup` in net/bpf/test_run.c.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Looked::Shared),
        result => result?,
    };
    // SAFETY: it is this function's own, and the kernel has written whole words to it.
    let cookie = unsafe { (*lookup).cookie };
    Ok(match (attr.retval, cookie) {
        (SK_DROP, _) => Looked::Refused,
        (_, 0) => Looked::Passed,
        (_, cookie) => Looked::Given(cookie),
    })
}

/// `SK_DROP`.
const SK_DROP: u32 = 0;
