//! What accelerates connections to the proxy: loaded only where a workload asks for it.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "BPF entry points")]

use aya_ebpf::{
    macros::{sk_msg as sk_msg_program, sock_ops as sock_ops_program},
    programs::{SkMsgContext, SockOpsContext},
};

mod hops;
mod joining;
mod peek;
mod sk_msg;

/// Attached to the cgroups of workloads whose plan asks for it, beside the other `sock_ops`.
#[sock_ops_program]
fn join(ctx: SockOpsContext) -> u32 {
    joining::sock_ops(&ctx)
}

/// Attached to the map `MEMBERS`.
#[sk_msg_program]
fn hand_over(ctx: SkMsgContext) -> u32 {
    sk_msg::sk_msg(&ctx)
}
