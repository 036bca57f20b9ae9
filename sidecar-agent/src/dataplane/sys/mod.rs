//! The system calls that neither aya 0.14 nor rustix offers, one file for each group of them; the
//! only place of the agent with `unsafe`.

mod bpf;
mod element;
mod link;
mod namespace;
mod pin;
mod program;
mod ring;
pub mod run;
mod socket;
mod words;

pub use self::{
    element::{count_entries, identity, set_identity},
    link::{
        AttachType, LinkInfo, LinkTarget, link_by_id, link_create, link_info, link_update,
        next_link_id,
    },
    namespace::{leave_namespaces, owning_userns},
    pin::{open_pin, pin},
    program::{
        Attached, ProgramInfo, attach_to_sockets, load_drop_all, load_ingress_ifindex, prog_query,
        prog_query_effective, program_by_id, program_info,
    },
    ring::{read_pod, watch},
    socket::{netns_cookie, set_transparent},
    words::MappedWords,
};
