//! The program attached to a workload's network namespace. Nothing tells an sk_lookup program
//! which namespace it runs in, so each workload gets a copy with its own constant.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "BPF entry points")]

use aya_ebpf::{macros::sk_lookup as sk_lookup_program, programs::SkLookupContext};
use sidecar_common::keys::WorkloadId;
use sidecar_ebpf as programs;

/// The workload this copy serves; set by the loader.
#[unsafe(no_mangle)]
static WORKLOAD: WorkloadId = 0;

#[sk_lookup_program]
fn inbound(ctx: SkLookupContext) -> u32 {
    // SAFETY: a plain constant; volatile because the loader replaces it.
    let workload = unsafe { core::ptr::read_volatile(&raw const WORKLOAD) };
    programs::sk_lookup::sk_lookup(&ctx, workload)
}
