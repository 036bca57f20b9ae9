//! The programs attached to a workload's cgroup.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "BPF entry points")]

use aya_ebpf::{
    macros::{cgroup_sock_addr, cgroup_sockopt, sock_ops as sock_ops_program},
    programs::{SockAddrContext, SockOpsContext, SockoptContext},
};
use sidecar_ebpf::{
    connect, datagram, getsockopt as original_dst, sock_addr::Hook, sock_ops as tcp,
};

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(ctx.sock_addr, Hook::V4)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(ctx.sock_addr, Hook::V6)
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    connect::getpeername(ctx.sock_addr, Hook::V4)
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    connect::getpeername(ctx.sock_addr, Hook::V6)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg(ctx.sock_addr, Hook::V4)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::sendmsg(ctx.sock_addr, Hook::V6)
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg(ctx.sock_addr, Hook::V4)
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    datagram::recvmsg(ctx.sock_addr, Hook::V6)
}

#[sock_ops_program]
fn sock_ops(ctx: SockOpsContext) -> u32 {
    tcp::sock_ops(&ctx)
}

#[cgroup_sockopt(getsockopt)]
fn getsockopt(ctx: SockoptContext) -> i32 {
    original_dst::getsockopt(ctx.sockopt)
}
