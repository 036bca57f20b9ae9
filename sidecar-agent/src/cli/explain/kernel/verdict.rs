//! Whether what was decided is what was explained. Pure.

use std::net::SocketAddr;

use sidecar_common::{
    Path, Reason,
    decide::{Direction, Transport},
};

use super::Decided;
use crate::{
    compile::Target,
    explain::{Connection, Explanation, WhileGone},
};

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leads here: to a destination, or to what listens there.
    Led(SocketAddr),
    /// It goes where it was going.
    Passed,
    /// It was refused; outbound: with this error.
    Refused(Option<String>),
    /// It failed before that mattered: without a route, or a source address.
    Failed(String),
    /// The kernel does not tell.
    Unknown,
}

/// What is to be said of it.
#[derive(Debug, Default)]
pub struct Verdict {
    /// In what it is not as explained.
    pub differences: Vec<String>,
    /// What is so just now, and explains it.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Holds what was decided, and what became of it, against what was explained. `relay`: the port
    /// of the relay.
    #[must_use]
    pub fn of(
        explained: &Explanation,
        connection: &Connection<'_>,
        relay: u16,
        decided: Option<&Decided>,
        fate: &Fate,
    ) -> Self {
        let mut verdict = Self::default();
        let Explanation { path, reason, .. } = explained;
        let Some(decided) = decided else {
            // Programs look at datagrams only where they may be DNS that is captured.
            if connection.transport == Transport::Tcp || *path != Path::Pass {
                verdict.differs(format!(
                    "the programs decided nothing, the connection passed them by: {path}, {reason} \
                     is wanted"
                ));
            }
            return verdict;
        };
        match verdict.path(explained, decided) {
            None => verdict.differs(format!(
                "the programs decided {}, {}: {path}, {reason} is wanted",
                decided.path, decided.reason
            )),
            Some(path) => verdict.fate(explained, connection, relay, path, fate),
        }
        verdict
    }

    fn differs(&mut self, text: String) {
        self.differences.push(text);
    }

    /// By which path it goes, if that was to be expected.
    fn path(&mut self, explained: &Explanation, decided: &Decided) -> Option<Path> {
        let Decided { path, reason } = decided;
        let is = |wanted: Path, why: Reason| *path == wanted.name() && *reason == why.name();
        if is(explained.path, explained.reason) {
            return Some(explained.path);
        }
        // What takes it may be gone just now: the failure policy says what is to be then.
        if let Some(WhileGone {
            case,
            policy,
            path,
            reason: Some(reason),
        }) = explained.while_gone
            && is(path, reason)
        {
            self.notes
                .push(format!("the proxy does not listen: by {case}={policy}"));
            return Some(path);
        }
        // Whether it listens unknown to the programs is told by the comparison of `SOCKETS`.
        let needs_socket = matches!(explained.path, Path::Direct | Path::Relay);
        if needs_socket && is(Path::Deny, Reason::TargetNotListening) {
            let by = match explained.path {
                Path::Relay => "the relay",
                _ => "the application",
            };
            self.notes.push(format!("{by} does not listen"));
            return Some(Path::Deny);
        }
        None
    }

    fn fate(
        &mut self,
        explained: &Explanation,
        connection: &Connection<'_>,
        relay: u16,
        path: Path,
        fate: &Fate,
    ) {
        let dst = connection.dst;
        let leads_on = path == Path::Pass
            || explained.targets.iter().any(|wanted| match wanted {
                Target::Original => true,
                // Where it was going, the proxy's own listener takes it.
                Target::Tcp(wanted) => wanted.port() == dst.port(),
                Target::Unix(_) => false,
            });
        match fate {
            Fate::Failed(_) | Fate::Refused(_) if path == Path::Deny => {}
            _ if path == Path::Deny => {
                self.differs("the decision was to refuse, and it is not refused".to_owned());
            }
            Fate::Refused(_) => {
                self.differs(format!("the decision was {path}, and it is refused"));
            }
            Fate::Unknown if connection.direction == Direction::Outbound => {
                self.differs("the kernel does not tell where the connection leads".to_owned());
            }
            Fate::Passed if !leads_on => {
                self.differs(format!(
                    "the decision was {path}, and it is given to nobody"
                ));
            }
            Fate::Led(target) if !is_right(explained, connection, relay, path, *target) => {
                let wanted: Vec<String> =
                    explained.targets.iter().map(ToString::to_string).collect();
                let wanted = wanted.join(" or ");
                self.differs(format!(
                    "it leads to {target} by {path}: to {wanted} is wanted"
                ));
            }
            // Without a route, or a source address, nothing is said of the decision.
            Fate::Led(_) | Fate::Passed | Fate::Unknown | Fate::Failed(_) => {}
        }
    }
}

/// Whether the target is where a connection by this path has to lead. Inbound it is a listener's
/// address, which may be a wildcard.
fn is_right(
    explained: &Explanation,
    connection: &Connection<'_>,
    relay: u16,
    path: Path,
    target: SocketAddr,
) -> bool {
    let ip = target.ip().to_canonical();
    let is_inbound = connection.direction == Direction::Inbound;
    let is_any = is_inbound && ip.is_unspecified();
    let leads = |wanted: SocketAddr| {
        let wanted_ip = wanted.ip().to_canonical();
        wanted.port() == target.port() && (wanted_ip == ip || wanted_ip.is_unspecified() || is_any)
    };
    let on_loopback = |port| target.port() == port && (ip.is_loopback() || is_any);
    match path {
        Path::Pass => leads(connection.dst),
        Path::Direct => explained.targets.iter().any(|wanted| match wanted {
            Target::Original => leads(connection.dst),
            Target::Tcp(wanted) => leads(*wanted),
            Target::Unix(_) => false,
        }),
        Path::Relay => on_loopback(relay),
        Path::Proxy => explained.targets.iter().any(|wanted| match wanted {
            Target::Tcp(wanted) => on_loopback(wanted.port()),
            _ => false,
        }),
        Path::Deny => false,
    }
}
