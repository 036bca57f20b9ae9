//! What the agent's process may have of the system. A limit that cannot be raised stays as it is:
//! `doctor` shows it, and what meets it says so.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limits that the agent would meet on a busy node. To be called before capabilities are
/// given up.
pub fn raise() {
    // Every workload takes two descriptors, every relayed connection some, and the usual 1024 are
    // what programs get that cannot do with more.
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    set(Resource::Nofile, most, "RLIMIT_NOFILE");
    // Before kernel 5.11 maps count as locked memory; later ones do not care. Needs
    // CAP_SYS_RESOURCE, which is gone when aya would raise it.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    set(Resource::Memlock, unlimited, "RLIMIT_MEMLOCK");
}

fn set(resource: Resource, limit: Rlimit, name: &str) {
    if let Err(error) = setrlimit(resource, limit) {
        tracing::debug!("raising {name}: {error}");
    }
}
