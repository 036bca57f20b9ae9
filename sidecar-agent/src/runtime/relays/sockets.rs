//! Listening sockets on their way from one agent to the next.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::routes::TcpRoutes;
use crate::relay::{Engine, ListenerSpec, Namespaces, Role, listen::Listening};

/// Listening sockets of one workload that no relay serves: on their way from one agent to the next.
/// Who connects waits until they are served again.
pub type Sockets = BTreeMap<Role, OwnedFd>;

/// One workload's relay, whose listeners are not served.
pub struct Paused {
    /// Its listening sockets.
    pub sockets: Sockets,
    pub(super) routes: Arc<TcpRoutes>,
    pub(super) namespaces: Namespaces,
}

impl Paused {
    /// Serves the TCP listeners again, and leaves the others alone.
    pub fn serve_tcp(self, engine: &Engine) {
        for (role, socket) in self.sockets {
            if matches!(role, Role::Unix(_)) {
                continue;
            }
            let added = engine.add(ListenerSpec {
                socket: Listening::adopt(socket),
                namespaces: self.namespaces.clone(),
                routes: self.routes.clone(),
            });
            if let Err(error) = added {
                tracing::warn!("serving the relay's listener: {error}");
            }
        }
    }
}

/// Takes over listening sockets. One whose file is gone is closed: nobody could reach it.
pub(super) fn adopt(inherited: Sockets, root: Option<&OwnedFd>) -> BTreeMap<Role, Listening> {
    let mut adopted = BTreeMap::new();
    for (role, socket) in inherited {
        let listening = match &role {
            Role::V4 | Role::V6 => Ok(Listening::adopt(socket)),
            Role::Unix(bind) => Listening::adopt_unix(root.map(AsFd::as_fd), bind, socket),
        };
        match listening {
            Ok(listening) => {
                adopted.insert(role, listening);
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
    adopted
}
