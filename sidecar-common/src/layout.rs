//! What is shared with the kernel has the same layout on every machine, whatever its byte order and
//! its alignment of numbers. Checked whenever this crate is compiled: for the node, for the BPF
//! programs, for other machines (`cargo xtask cross`).

use core::mem::offset_of;

use crate::{
    Addr, Endpoint, Event,
    accelerate::{End, Ends, Hop, Offsets},
    kernel::Kernel,
    keys::{
        BackendKey, OwnerKey, PrefixKey, RouteKey, RuleKey, Slot, Tuple, WorkloadEndpoint,
        WorkloadInterface, WorkloadPort,
    },
    values::{Identity, Meta, Original, PlanHeader, Route, Rule, Word},
};

/// The fields of a structure in their order, with their sizes in bytes. Nothing is between them, or
/// after them: the kernel compares keys byte by byte.
macro_rules! layout {
    ($($type:ty: $align:literal { $($field:tt $size:literal),+ })+) => {
        $(const _: () = {
            let mut at = 0;
            $(
                assert!(offset_of!($type, $field) == at, "a field is elsewhere");
                at += $size;
            )+
            assert!(size_of::<$type>() == at, "the size is another");
            assert!(align_of::<$type>() == $align, "the alignment is another");
        };)+
    };
}

layout! {
    Addr: 4 { words 16 }
    Endpoint: 4 { addr 16, port 2, pad 2 }
    RuleKey: 4 { plan 4, dst 20 }
    PrefixKey: 4 { plan 4, port 2, table 2, addr 16 }
    BackendKey: 4 { plan 4, group 4, index 4 }
    WorkloadEndpoint: 4 { workload 4, endpoint 20 }
    Tuple: 4 { workload 4, client 20, server 20 }
    Slot: 4 { workload 4, slot 4 }
    OwnerKey: 4 { plan 4, role 4, id 4 }
    WorkloadInterface: 4 { workload 4, plan 4, index 4 }
    RouteKey: 4 { workload 4, addr 16 }
    WorkloadPort: 4 { workload 4, port 2, pad 2 }
    Rule: 4 { path 1, reason 1, flags 1, pad 1, listener 4, group 4, backends 4, target 20 }
    PlanHeader: 4 {
        tables 4, flags 4, outbound_port 2, inbound_port 2, tunnel_port 2, dns_port 2, proxy_uid 4,
        proxy_gid 4, loopback 4, loopback_mask 4, outbound_default 36, inbound_default 36
    }
    Route: 4 { interface 4, source 16 }
    Word: 8 { 0 8 }
    Meta: 4 { abi 4, set 4 }
    Identity: 8 {
        workload 4, flags 4, proxy_cgroup 8, netns 8, uid_base 4, gid_base 4, source_v4 4,
        relay_port_v4 2, relay_port_v6 2, source_v6 16
    }
    Original: 4 { dst 20, plan 4, listener 4, kind 4 }
    Event: 8 {
        time 8, workload 4, plan 4, listener 4, direction 1, transport 1, path 1, reason 1,
        source 20, destination 20, target 20, pad 4
    }
    Ends: 8 { netns 8, here 4, there 4, here_port 2, there_port 2, pad 4 }
    End: 8 { socket 8, cookie 8, unread 4, flags 4 }
    Hop: 8 { app 24, proxy 24, turn 4, run 4, messages 4, strikes 4, demoted 4, pad 4 }
    Offsets: 4 {
        cookie 4, state 4, flags 4, err 4, low_water 4, user_data 4, socket 4, file 4, file_flags 4,
        ulp 4, write_seq 4, copied_seq 4, queue 4, references 4
    }
    Kernel: 4 { features 4, sock_netns 4, netns_inode 4 }
}
