//! What the running kernel has, found out by trying.

use std::{collections::BTreeMap, fs, sync::OnceLock};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation};
use sidecar_common::{accelerate::Offsets, kernel::Kernel};

use super::sys;

/// Where the kernel tells of its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the running kernel has: tried once.
pub fn running() -> &'static Kernel {
    static RUNNING: OnceLock<Kernel> = OnceLock::new();
    RUNNING.get_or_init(|| {
        let mut kernel = Kernel::default();
        let mut note = |feature, found: Result<()>| match found {
            Ok(()) => kernel.features |= feature,
            Err(error) => tracing::debug!("{error:#}"),
        };
        note(Kernel::SET_RETVAL, set_retval());
        note(Kernel::NETNS_COOKIE, netns_cookie());
        note(Kernel::INGRESS_IFINDEX, ingress_ifindex());
        // Reading all types of the kernel takes a while.
        if !kernel.has(Kernel::NETNS_COOKIE) {
            match netns_inode() {
                Ok((sock_netns, netns_inode)) => {
                    kernel.features |= Kernel::NETNS_INODE;
                    kernel.sock_netns = sock_netns;
                    kernel.netns_inode = netns_inode;
                }
                Err(error) => tracing::debug!("{error:#}"),
            }
        }
        kernel
    })
}

/// The same by name.
#[must_use]
pub fn features() -> BTreeMap<String, bool> {
    let kernel = running();
    Kernel::ALL
        .into_iter()
        .map(|(feature, name)| (name.to_owned(), kernel.has(feature)))
        .collect()
}

/// [`Kernel::SET_RETVAL`].
///
/// # Errors
/// If the kernel does not have it.
pub fn set_retval() -> Result<()> {
    let helper = BpfHelper::BPF_FUNC_set_retval;
    has_helper(ProgramType::CgroupSockAddr, helper, "bpf_set_retval")
}

/// [`Kernel::NETNS_COOKIE`].
///
/// # Errors
/// If the kernel does not have it.
pub fn netns_cookie() -> Result<()> {
    let helper = BpfHelper::BPF_FUNC_get_netns_cookie;
    has_helper(ProgramType::SockOps, helper, "bpf_get_netns_cookie")
}

/// [`Kernel::INGRESS_IFINDEX`].
///
/// # Errors
/// If the kernel does not have it.
pub fn ingress_ifindex() -> Result<()> {
    sys::load_ingress_ifindex().context("reading bpf_sk_lookup::ingress_ifindex")?;
    Ok(())
}

/// [`Kernel::NETNS_INODE`]: where the namespace is in a socket, and where its inode number is in
/// the namespace.
///
/// # Errors
/// If the kernel does not let `sock_ops` programs read its memory, or does not tell.
pub fn netns_inode() -> Result<(u32, u32)> {
    let helper = BpfHelper::BPF_FUNC_probe_read_kernel;
    has_helper(ProgramType::SockOps, helper, "bpf_probe_read_kernel")?;
    let types = Types::read()?;
    Ok((
        types.offset("sock", "__sk_common.skc_net.net")?,
        types.offset("net", "ns.inum")?,
    ))
}

/// Where the kernel keeps what the guards of acceleration look at.
///
/// # Errors
/// If the kernel does not let `sk_msg` programs read its memory or tell namespaces, does not tell where
/// something is, or is confused by sockets that join.
pub fn socket_offsets() -> Result<Offsets> {
    for (program, helper, name) in [
        (
            ProgramType::SkMsg,
            BpfHelper::BPF_FUNC_probe_read_kernel,
            "bpf_probe_read_kernel",
        ),
        (
            ProgramType::SkMsg,
            BpfHelper::BPF_FUNC_get_netns_cookie,
            "bpf_get_netns_cookie",
        ),
        (
            ProgramType::SockOps,
            BpfHelper::BPF_FUNC_get_netns_cookie,
            "bpf_get_netns_cookie",
        ),
    ] {
        has_helper(program, helper, name)?;
    }
    let types = Types::read()?;
    if types.has("mptcp_sock") && !leaves_fallen_back_alone()? {
        bail!(
            "this kernel has MPTCP, and before 6.18 its accept(2) takes a socket that fell back to TCP \
             for one of MPTCP when it has joined a sockhash"
        );
    }
    let at = |of, path| types.offset(of, path);
    Ok(Offsets {
        cookie: at("sock", "__sk_common.skc_cookie")?,
        state: at("sock", "__sk_common.skc_state")?,
        flags: at("sock", "__sk_common.skc_flags")?,
        err: at("sock", "sk_err")?,
        low_water: at("sock", "sk_rcvlowat")?,
        user_data: at("sock", "sk_user_data")?,
        socket: at("sock", "sk_socket")?,
        file: at("socket", "file")?,
        file_flags: at("file", "f_flags")?,
        ulp: at("inet_connection_sock", "icsk_ulp_ops")?,
        write_seq: at("tcp_sock", "write_seq")?,
        copied_seq: at("tcp_sock", "copied_seq")?,
        queue: at("sk_psock", "ingress_msg")?,
        references: at("sk_psock", "refcnt")?,
    })
}

/// Whether a listener for MPTCP hands out what has joined a sockhash as what it is ("mptcp: Fix proto
/// fallback detection with BPF"). To try that is to corrupt memory where it does not, so here the
/// release counts; that of a distribution may have it earlier.
fn leaves_fallen_back_alone() -> Result<bool> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (6, 18)),
        _ => bail!("the kernel's release `{release}` is no version"),
    }
}

/// The kernel's types.
struct Types(TypeInformation);

impl Types {
    fn read() -> Result<Self> {
        let read = fs::read(BTF).with_context(|| format!("reading {BTF}"))?;
        let types = TypeInformation::new(&Btf(read)).map_err(|error| in_btf(&error))?;
        Ok(Self(types))
    }

    fn has(&self, name: &str) -> bool {
        self.0.id_of(name).is_some()
    }

    /// Where a field is in a structure, in bytes.
    fn offset(&self, of: &str, path: &str) -> Result<u32> {
        let Self(types) = self;
        let id = types
            .id_of(of)
            .with_context(|| format!("{BTF} has no type {of}"))?;
        match types.offset_of(id, path) {
            Ok((_, Offset::ByteOffset(bytes))) => Ok(bytes),
            Ok((_, Offset::BitOffsetAndSize(..))) => {
                bail!("{path} of {of} in {BTF} is no plain field")
            }
            Err(error) => Err(in_btf(&error).context(format!("looking for {path} of {of}"))),
        }
    }
}

fn in_btf(error: &Error) -> anyhow::Error {
    anyhow!("reading the types in {BTF}: {error:?}")
}

/// The kernel's types as they are in their file.
struct Btf(Vec<u8>);

impl Readable for Btf {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.0.get(start..)?.get(..buffer.len()));
        let end = || Error::new(ErrorKind::EOF, "the file ends before that");
        buffer.copy_from_slice(found.ok_or_else(end)?);
        Ok(())
    }
}

fn has_helper(program: ProgramType, helper: BpfHelper, name: &str) -> Result<()> {
    let found = is_helper_supported(program, helper);
    if found.with_context(|| format!("trying {name} in a {program:?} program"))? {
        Ok(())
    } else {
        bail!("{program:?} programs have no {name}")
    }
}
