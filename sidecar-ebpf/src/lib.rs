//! The BPF programs, one file per hook. The two binaries hold nothing but entry points: `cgroup`
//! what is attached to a workload's cgroup, `netns` what is attached to its network namespace.
#![no_std]
#![feature(asm_experimental_arch)]
#![allow(unsafe_code, reason = "kernel contexts, helpers and map memory")]

pub mod connect;
mod ctx;
pub mod datagram;
pub mod getsockopt;
mod kernel;
mod listening;
mod maps;
mod outcome;
mod runtime;
pub mod sk_lookup;
pub mod sock_addr;
pub mod sock_ops;
mod sockaddr;
mod source;
