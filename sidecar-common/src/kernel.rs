//! What the running kernel has, as far as it makes a difference to the programs. They hold it as a
//! constant (`KERNEL`) that the loader sets: what it rules out the verifier does not look at, so
//! that one object serves every kernel from 5.10 on.

/// See the module. All zero: the oldest.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kernel {
    /// `Kernel::SET_RETVAL` and so on.
    pub features: u32,
    /// Where the network namespace is in `struct sock` (`__sk_common.skc_net`), in bytes; used
    /// with [`Kernel::NETNS_INODE`].
    pub sock_netns: u32,
    /// Where its inode number is in `struct net` (`ns.inum`), in bytes.
    pub netns_inode: u32,
}

impl Kernel {
    /// `bpf_set_retval` (5.18): a refused call ends with the error we choose. Else it is led to
    /// where nobody can listen.
    pub const SET_RETVAL: u32 = 1;
    /// `bpf_get_netns_cookie` for `sock_ops` (5.15). Else see [`Kernel::NETNS_INODE`].
    pub const NETNS_COOKIE: u32 = 2;
    /// A socket's network namespace is known by its inode number, read at the offsets above, which
    /// the kernel's BTF tells. Without it, and without cookies, the agent alone finds listeners.
    pub const NETNS_INODE: u32 = 4;
    /// `bpf_sk_lookup::ingress_ifindex` (5.17). Else a connection is taken to have arrived by the
    /// interface that leads back.
    pub const INGRESS_IFINDEX: u32 = 8;

    /// All of these, with their names.
    pub const ALL: [(u32, &str); 4] = [
        (Self::SET_RETVAL, "set_retval"),
        (Self::NETNS_COOKIE, "netns_cookie"),
        (Self::NETNS_INODE, "netns_inode"),
        (Self::INGRESS_IFINDEX, "ingress_ifindex"),
    ];

    /// Whether the kernel has this.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }
}
