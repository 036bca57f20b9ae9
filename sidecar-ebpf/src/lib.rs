//! The BPF programs, one file per hook. The binaries hold nothing but entry points: `cgroup` what is
//! attached to a workload's cgroup, `netns` what is attached to its network namespace, `accelerate`
//! is what is loaded only where a workload asks for it; its maps are its own, as the linker keeps all
//! maps that it sees.
#![no_std]
#![feature(asm_experimental_arch)]
#![allow(unsafe_code, reason = "kernel contexts, helpers and map memory")]

pub mod connect;
pub mod ctx;
pub mod datagram;
pub mod getsockopt;
mod kernel;
mod listening;
pub mod maps;
mod outcome;
mod runtime;
pub mod sk_lookup;
pub mod sock_addr;
pub mod sock_ops;
mod sockaddr;
mod source;
