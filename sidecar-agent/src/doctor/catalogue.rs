//! The catalogue of everything that `doctor` can find wrong: one entry per code, and nothing else
//! defines a code.

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something works less well, or not for every workload.
    Warning,
    /// The agent cannot do without; `run` refuses to start where its preflight finds this.
    Missing,
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `SCD` and four digits; never reused for something else.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a few words.
    pub name: &'static str,
    /// What does not work because of it.
    pub lost: &'static str,
    /// How to mend it.
    pub remedy: &'static str,
}

macro_rules! catalogue {
    ($($name:ident $id:literal $severity:ident $title:literal, $lost:literal, $remedy:literal;)*) => {
        $(
            #[doc = concat!($id, ": ", $title, ".")]
            pub const $name: &Code = &Code {
                id: $id,
                severity: Severity::$severity,
                name: $title,
                lost: $lost,
                remedy: $remedy,
            };
        )*

        /// Every code, in the order of their ids.
        pub const ALL: &[&Code] = &[$($name),*];
    };
}

catalogue! {
    // The kernel.
    NOT_TRIED "SCD0101" Missing "the kernel's features cannot be tried",
        "Whether programs can be loaded and attached is not known; an agent that may not do this may not capture either",
        "run `doctor` as root, outside of containers that withhold CAP_SYS_ADMIN";
    MAPS "SCD0102" Missing "the BPF maps cannot be made",
        "Nothing can be captured",
        "use kernel 5.10 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_BPF_STREAM_PARSER, CONFIG_NET and BTF; where the cause is EPERM, see the capabilities and the lockdown below";
    PROGRAM "SCD0103" Missing "a BPF program is refused by the kernel",
        "Nothing can be captured",
        "use kernel 5.10 or newer; the cause shown is the end of the verifier's log: report it, with the kernel's release, if the kernel is newer";
    CGROUP_LINK "SCD0104" Missing "programs cannot be attached to a cgroup by links",
        "Nothing can be captured",
        "if a foreign program is reported below that keeps ours out, detach it; if the cgroup cannot be made, mount cgroup2 for writing; else use a kernel with CONFIG_CGROUP_BPF";
    NETNS_LINK "SCD0105" Missing "programs cannot be attached to a network namespace by links",
        "Inbound connections cannot be captured",
        "use a kernel with CONFIG_INET, CONFIG_NET_NS and CONFIG_BPF_SYSCALL (`sk_lookup`, from 5.9)";
    CGROUP_STORAGE "SCD0106" Missing "cgroup storage is not keyed by the cgroup's id",
        "Programs cannot know whose connection they see",
        "use kernel 5.9 or newer";
    MAPPED_ARRAY "SCD0107" Missing "an array cannot be mapped into memory",
        "A workload cannot be switched from one plan to another by one store",
        "use kernel 5.5 or newer; a hardened sandbox (seccomp) may forbid it, too";
    SOCKET_MAP "SCD0108" Missing "a listening socket cannot be entered into a sockhash",
        "Inbound connections cannot be handed to listeners, nor outbound ones to the relay",
        "use a kernel with CONFIG_BPF_STREAM_PARSER (from 5.8 it is on with CONFIG_NET_SOCK_MSG)";
    LISTENER_NETNS "SCD0109" Warning "programs cannot tell the network namespace of a listening socket",
        "The agent alone finds listeners: connections are refused for up to a second after an application or a proxy has begun to listen",
        "use kernel 5.15 or newer (`bpf_get_netns_cookie` for sock_ops), or one that has CONFIG_DEBUG_INFO_BTF and whose lockdown is not `confidentiality`";
    BORROWED_SOCKET "SCD0110" Warning "sockets of other processes cannot be borrowed",
        "Connections to applications and proxies that listened before they were captured are refused until these listen anew",
        "allow pidfd_getfd(2): set kernel.yama.ptrace_scope below 3, permit it in the agent's seccomp profile, and let the agent have CAP_SYS_PTRACE";
    RING_BUFFER "SCD0111" Warning "the kernel has no ring buffers for BPF",
        "Decisions cannot be followed live; counters are not affected",
        "use kernel 5.8 or newer";
    SET_RETVAL "SCD0112" Warning "programs cannot choose the error of a system call",
        "A connection that is refused is led to port 0 of loopback, where the kernel refuses it: tools that watch `lo` see it; a refused datagram fails with EPERM instead of ECONNREFUSED",
        "nothing has to be done; kernel 5.18 and newer have `bpf_set_retval`";
    INGRESS_IFINDEX "SCD0113" Warning "programs cannot tell by which interface a connection arrives",
        "Where interfaces are excluded, or virtual (annotations `traffic.sidecar.istio.io/excludeInterfaces`, `istio.io/reroute-virtual-interfaces` and `traffic.sidecar.istio.io/kubevirtInterfaces`), a connection is taken to have arrived by the interface that leads back to its source; with asymmetric routes that is another one",
        "use kernel 5.17 or newer where that matters";
    ACCELERATION "SCD0114" Warning "connections to proxies cannot be accelerated",
        "The annotation `capture.sidecar-agent.io/accelerate` has no effect; connections are captured all the same",
        "nothing has to be done where no workload asks for it; else use kernel 5.15 or newer that has CONFIG_BPF_STREAM_PARSER and CONFIG_DEBUG_INFO_BTF, and whose lockdown is not `confidentiality`";

    // Control groups.
    NO_CGROUP2 "SCD0201" Missing "cgroup2 is not mounted",
        "There is nothing to attach outbound capture to",
        "mount it beside version 1 with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with `systemd.unified_cgroup_hierarchy=1`; and have the workloads' processes in it";
    TASKS_ELSEWHERE "SCD0202" Warning "no process is in a cgroup of version 2",
        "Workloads that are only in cgroups of version 1 are not captured: for cgroup2 they are in the root, which is not attached to",
        "boot with `systemd.unified_cgroup_hierarchy=1`, or have the runtime put the workloads' processes into cgroup2 as well (containerd and runc with the systemd cgroup driver)";
    NESTED "SCD0203" Warning "this process is in a cgroup namespace of its own, and sees nothing outside",
        "Cgroups outside of it are neither seen nor captured; paths of workloads count from its root; programs attached above it are not seen by `doctor`",
        "mount the host's /sys/fs/cgroup (in Kubernetes the chart does), or run the agent in the host's cgroup namespace (`nsenter --cgroup=/proc/1/ns/cgroup`); nothing has to be done where all workloads are inside, as in a node of kind";
    WORKLOAD_CGROUP "SCD0204" Warning "a workload's cgroup cannot be used",
        "This workload is not captured until it can",
        "start the workload, or correct its annotation `capture.sidecar-agent.io/cgroup`";
    EMPTY_CGROUP "SCD0205" Warning "a workload's cgroup has no process",
        "Nothing of this workload is captured: its processes are elsewhere, or gone",
        "start the workload; on a hybrid host make sure that its processes are in cgroup2 (`cat /proc/PID/cgroup`, line `0::`)";
    WORKLOAD_NETNS "SCD0206" Warning "a workload's network namespace cannot be used",
        "This workload is not captured until it can",
        "start the workload, or correct its annotation `capture.sidecar-agent.io/netns`";

    // bpffs.
    NO_BPFFS "SCD0301" Missing "bpffs is not mounted, and cannot be",
        "The programs of workloads cannot share their maps: the agent does not start",
        "mount it with `mount -t bpf -o mode=0700 bpf /sys/fs/bpf`, or let the agent have CAP_SYS_ADMIN";
    FOREIGN_PINS "SCD0302" Missing "the directory of pins is another user's, or open to others",
        "Whoever may write there can replace maps and links, so the agent does not start",
        "remove the directory after a look at what is in it, and mount bpffs with mode 0700";
    OPEN_BPFFS "SCD0303" Warning "everybody may make directories in bpffs",
        "Any user can take the name of the agent's directory before it starts, which keeps it from starting",
        "remount it: `mount -o remount,mode=0700 /sys/fs/bpf`";

    // Privileges.
    VITAL_CAPABILITY "SCD0401" Missing "a capability is missing that nothing works without",
        "Nothing is captured",
        "run the agent as root with the capabilities of docs/capabilities.md (systemd: CapabilityBoundingSet, Kubernetes: securityContext.capabilities.add)";
    CAPABILITY "SCD0402" Warning "a capability is missing",
        "Some workloads are not captured, or not completely",
        "run the agent with the capabilities of docs/capabilities.md (systemd: CapabilityBoundingSet, Kubernetes: securityContext.capabilities.add)";

    // Others at our hooks.
    EXCLUSIVE_PROGRAM "SCD0601" Missing "a foreign program keeps ours out",
        "It is attached without BPF_F_ALLOW_MULTI: the kernel lets nobody attach to this hook, at this cgroup or below",
        "detach it (`bpftool cgroup detach`), or have its owner attach it with BPF_F_ALLOW_MULTI or by a link";
    OVERRIDDEN_PROGRAM "SCD0602" Warning "ours replace a foreign program",
        "It is attached with BPF_F_ALLOW_OVERRIDE: in the cgroups of captured workloads it does not run any more",
        "have its owner attach it with BPF_F_ALLOW_MULTI or by a link";
    FOREIGN_PROGRAM "SCD0603" Warning "a foreign program runs at our hooks",
        "After ours (attached to a cgroup above, or later to the same one): it sees connections as ours have rewritten them, and may rewrite or refuse them again. Before ours (attached to a cgroup below, earlier to the same one, or with BPF_F_PREORDER): ours see what it has rewritten, so rules for a service's address do not apply where it has put a backend's",
        "after ours: a load balancer for service addresses, as Cilium's, goes with capture, other programs have to be looked at; before ours: have one that rewrites addresses attached to a cgroup above the workload's; docs/coexistence.md tells more, `explain` knows nothing of it";
    FOREIGN_LOOKUP "SCD0604" Warning "a foreign sk_lookup program is in a workload's network namespace",
        "It may assign inbound connections to other sockets, or refuse them",
        "detach it if the workload is to be captured (`bpftool link list`, `bpftool link detach`)";
    HOOKS_UNKNOWN "SCD0605" Warning "the kernel does not tell what is attached",
        "Programs that are in the way are not found",
        "run `doctor` as root";

    // Packet filters.
    REDIRECTING_RULES "SCD0701" Warning "packet filter rules redirect as well",
        "Connections are led elsewhere before or after our programs see them, whatever the Sidecar says; with Istio's own rules they are captured twice",
        "remove them: delete the pod and let it start without istio-init or istio-cni, or run `istio-clean-iptables` (or `iptables -t nat -F`, in both variants) in the namespace named";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_in_order() {
        let ids: Vec<_> = ALL.iter().map(|code| code.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    }
}
