//! What the running kernel has, found out by trying.

use std::{collections::BTreeMap, fs, sync::OnceLock};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation};
use sidecar_common::kernel::Kernel;

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
    let read = fs::read(BTF).with_context(|| format!("reading {BTF}"))?;
    let types = TypeInformation::new(&Btf(read)).map_err(|error| in_btf(&error))?;
    let offset = |of: &str, path: &str| -> Result<u32> {
        let id = types
            .id_of(of)
            .with_context(|| format!("{BTF} has no type {of}"))?;
        match types.offset_of(id, path).map_err(|error| in_btf(&error))? {
            (_, Offset::ByteOffset(bytes)) => Ok(bytes),
            (_, Offset::BitOffsetAndSize(..)) => bail!("{path} of {of} in {BTF} is no plain field"),
        }
    };
    Ok((
        offset("sock", "__sk_common.skc_net.net")?,
        offset("net", "ns.inum")?,
    ))
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
