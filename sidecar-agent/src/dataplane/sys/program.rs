//! Programs: what the kernel tells of them, what is attached where, and one of our own making.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{
    bpf::{bpf, bpf_mut, fd_by_id, object_info, owned, raw},
    link::AttachType,
};

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_PROG_QUERY: u32 = 16;

/// Most programs that are asked for at one hook; the kernel allows 64 at a cgroup.
const MOST_ATTACHED: usize = 64;

/// Most programs that are asked for of those that run at one hook of a cgroup, its own and those of
/// the cgroups above.
const MOST_EFFECTIVE: usize = 1024;

const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as kernel 5.9 needs it.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The head of `struct bpf_prog_info`.
#[repr(C, align(8))]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// `union bpf_attr` of `BPF_PROG_ATTACH`, as far as every kernel has it.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgAttach {
    target_fd: u32,
    prog_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_PROG_QUERY`, as far as kernel 5.18 has it.
#[repr(C, align(8))]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    /// Written by the kernel.
    attach_flags: u32,
    prog_ids: u64,
    /// Room in `prog_ids`; the kernel writes how many there are.
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
}

/// What the kernel tells of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// A digest of its instructions, whatever maps they use.
    pub tag: [u8; 8],
    /// The ids of its maps.
    pub maps: Vec<u32>,
    /// Its name, as far as the kernel keeps it.
    pub name: String,
}

impl ProgramInfo {
    /// Whether both do the same: the same instructions with the same maps, of which that of
    /// constants is one of its own for every load.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let shared = self.maps.iter().filter(|id| other.maps.contains(id));
        self.tag == other.tag
            && self.maps.len() == other.maps.len()
            && shared.count() + 1 >= self.maps.len()
    }
}

/// What is attached at one hook of a cgroup or a network namespace, not counting what cgroups above
/// it have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// How: `BPF_F_ALLOW_OVERRIDE` (1), `BPF_F_ALLOW_MULTI` (2).
    pub flags: u32,
    /// Ids of the programs.
    pub programs: Vec<u32>,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination and source, four bits each: in which half is which depends on the byte order.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `exit`.
    const EXIT: Self = Self::new(0x95, 0, 0, 0);
    /// `r1 = *(u32 *)(r1 + 64)`.
    const LOAD_INGRESS_IFINDEX: Self = Self::new(0x61, 0x11, 64, 0);

    /// `r0 = value`.
    const fn result(value: i32) -> Self {
        Self::new(0xb7, 0, 0, value)
    }

    const fn new(code: u8, registers: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// Loads a program that, attached to a cgroup, lets none of its packets leave.
pub fn load_drop_all() -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_CGROUP_SKB`.
    const CGROUP_SKB: u32 = 8;
    let code = [Instruction::result(0), Instruction::EXIT];
    load(
        CGROUP_SKB,
        AttachType::Egress,
        *b"sidecar_drop\0\0\0\0",
        &code,
    )
}

/// Loads a program that reads `bpf_sk_lookup::ingress_ifindex` (kernel 5.17): fails with `EACCES`
/// where there is no such field.
pub fn load_ingress_ifindex() -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SK_LOOKUP`.
    const SK_LOOKUP: u32 = 30;
    let code = [
        Instruction::LOAD_INGRESS_IFINDEX,
        Instruction::result(1),
        Instruction::EXIT,
    ];
    load(
        SK_LOOKUP,
        AttachType::SkLookup,
        *b"sidecar_probe\0\0\0",
        &code,
    )
}

/// Loads a program.
fn load(
    kind: u32,
    attach_type: AttachType,
    name: [u8; 16],
    code: &[Instruction],
) -> io::Result<OwnedFd> {
    let attr = ProgLoad {
        kind,
        instructions: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        name,
        attach_type: attach_type as u32,
        ..ProgLoad::default()
    };
    owned(bpf(BPF_PROG_LOAD, &attr)?)
}

/// Attaches an `sk_msg` program to a sockhash, in place of the one that it has. It stays for as long
/// as user space has the map, by a descriptor or a pin.
pub fn attach_to_sockets(program: BorrowedFd<'_>, sockets: BorrowedFd<'_>) -> io::Result<()> {
    /// `BPF_SK_MSG_VERDICT`.
    const SK_MSG_VERDICT: u32 = 7;
    let attr = ProgAttach {
        target_fd: raw(sockets),
        prog_fd: raw(program),
        attach_type: SK_MSG_VERDICT,
        flags: 0,
    };
    bpf(BPF_PROG_ATTACH, &attr).map(drop)
}

/// Asks for a program's tag and maps.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    const MOST_MAPS: usize = 64;
    let mut maps = vec![0_u32; MOST_MAPS];
    let mut found = RawProgramInfo {
        nr_map_ids: u32::try_from(maps.len()).map_err(io::Error::other)?,
        map_ids: maps.as_mut_ptr() as u64,
        ..RawProgramInfo::default()
    };
    object_info(program, &mut found)?;
    maps.truncate(found.nr_map_ids as usize);
    let name = found.name.split(|byte| *byte == 0).next();
    Ok(ProgramInfo {
        id: found.id,
        tag: found.tag,
        maps,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
    })
}

/// A descriptor for the program with this id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(BPF_PROG_GET_FD_BY_ID, id)
}

/// Asks what is attached. Needs `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`.
pub fn prog_query(target: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<Attached> {
    query(target, attach_type, 0, MOST_ATTACHED)
}

/// Asks which programs run at a hook of a cgroup, those of cgroups above among them: their ids, in
/// the order in which they run. Needs what [`prog_query`] does.
pub fn prog_query_effective(
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Vec<u32>> {
    let found = query(cgroup, attach_type, BPF_F_QUERY_EFFECTIVE, MOST_EFFECTIVE)?;
    Ok(found.programs)
}

fn query(
    target: BorrowedFd<'_>,
    attach_type: AttachType,
    query_flags: u32,
    room: usize,
) -> io::Result<Attached> {
    let mut ids = vec![0_u32; room];
    let mut attr = ProgQuery {
        target_fd: raw(target),
        attach_type: attach_type as u32,
        query_flags,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(room).map_err(io::Error::other)?,
        ..ProgQuery::default()
    };
    bpf_mut(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(Attached {
        flags: attr.attach_flags,
        programs: ids,
    })
}
