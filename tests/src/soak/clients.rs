//! Who makes the connections: one thread and one process for each path.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    Check,
    world::{EXCLUDED, EXPOSED, HIDDEN, SOMETIMES, World},
};
use crate::{Probe, apps::wire::Seen};

/// So many failures are told in full.
const TOLD: usize = 3;

/// What has to become of a connection.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// It reaches the server of this name.
    Reaches(&'static str),
    /// It reaches the proxy, which is told where it was going.
    Proxied,
    /// It is refused.
    Refused,
    /// It reaches the server of this name, or is refused: both are right while a file changes.
    Either(&'static str),
}

/// Connections of one kind.
struct Kind {
    path: &'static str,
    address: SocketAddr,
    wanted: Wanted,
}

/// All clients.
pub struct Clients {
    threads: Vec<JoinHandle<()>>,
    results: Arc<Mutex<BTreeMap<&'static str, Result>>>,
    made: Arc<AtomicU64>,
    left: Arc<AtomicI64>,
    done: mpsc::Receiver<()>,
}

#[derive(Default)]
struct Result {
    made: u64,
    wrong: u64,
    told: Vec<String>,
}

impl Clients {
    /// Starts them, for so many connections together.
    pub fn start(world: &World, connections: u64) -> anyhow::Result<Self> {
        let inside = || Probe::start(world.lab.inside());
        let kind = |path, address: &str, wanted| -> anyhow::Result<Kind> {
            let address = address.parse()?;
            Ok(Kind {
                path,
                address,
                wanted,
            })
        };
        let ingress = world.ingress().to_string();
        let groups = [
            (
                inside()?,
                vec![
                    kind("direct, outbound", EXPOSED, Wanted::Reaches("exposed"))?,
                    kind("deny, outbound", HIDDEN, Wanted::Refused)?,
                ],
            ),
            (
                inside()?,
                vec![
                    kind("pass, outbound", EXCLUDED, Wanted::Reaches("excluded"))?,
                    kind(
                        "what the edits change",
                        SOMETIMES,
                        Wanted::Either("sometimes"),
                    )?,
                ],
            ),
            (
                world.behind_proxy()?,
                vec![
                    kind("proxy, outbound", EXPOSED, Wanted::Proxied)?,
                    kind(
                        "pass, beside a proxy",
                        EXCLUDED,
                        Wanted::Reaches("excluded"),
                    )?,
                ],
            ),
            (
                Probe::start(world.lab.outside())?,
                vec![kind(
                    "direct, inbound",
                    &ingress,
                    Wanted::Reaches("application"),
                )?],
            ),
        ];
        let left = Arc::new(AtomicI64::new(i64::try_from(connections)?));
        let made = Arc::new(AtomicU64::new(0));
        let results: Arc<Mutex<BTreeMap<_, Result>>> = Arc::default();
        let (sender, done) = mpsc::channel();
        let mut threads = Vec::new();
        for (probe, kinds) in groups {
            let (left, made) = (Arc::clone(&left), Arc::clone(&made));
            let (results, sender) = (Arc::clone(&results), sender.clone());
            threads.push(thread::spawn(move || {
                // Dropped with the thread, however that ends.
                let _sender = sender;
                let own = visit_all(&probe, &kinds, &left, &made);
                let mut all = results.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(own);
            }));
        }
        Ok(Self {
            threads,
            results,
            made,
            left,
            done,
        })
    }

    /// Whether connections are to be made still.
    pub fn are_busy(&self) -> bool {
        self.left.load(Ordering::Relaxed) > 0
            && self.threads.iter().any(|thread| !thread.is_finished())
    }

    /// How many were made.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Waits for so long, or until all have ended.
    pub fn wait(&self, time: Duration) {
        // Nothing is ever sent: the channel closes with the last client.
        let _ = self.done.recv_timeout(time);
    }

    /// Waits for the last one, and says how each kind fared.
    pub fn end(self) -> Vec<Check> {
        let panicked = self
            .threads
            .into_iter()
            .map(JoinHandle::join)
            .filter(std::result::Result::is_err)
            .count();
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks: Vec<Check> = results
            .iter()
            .map(|(path, result)| {
                Check::new(
                    *path,
                    result.wrong == 0 && result.made > 0,
                    format!(
                        "{} connections, {} failed or went astray {}",
                        result.made,
                        result.wrong,
                        result.told.join("; ")
                    ),
                )
            })
            .collect();
        checks.push(Check::new(
            "clients",
            panicked == 0 && !results.is_empty(),
            format!("{panicked} ended badly"),
        ));
        checks
    }
}

fn visit_all(
    probe: &Probe,
    kinds: &[Kind],
    left: &AtomicI64,
    made: &AtomicU64,
) -> BTreeMap<&'static str, Result> {
    let mut results: BTreeMap<&'static str, Result> = BTreeMap::new();
    for kind in kinds.iter().cycle() {
        if left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            break;
        }
        let result = results.entry(kind.path).or_default();
        result.made += 1;
        let problem = match probe.visit(kind.address) {
            Ok(seen) => problem(kind, &seen),
            Err(error) => Some(format!("the client has ended: {error:#}")),
        };
        if let Some(problem) = problem {
            result.wrong += 1;
            if result.told.len() < TOLD {
                let number = made.load(Ordering::Relaxed);
                result.told.push(format!("(at {number}: {problem})"));
            }
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
    results
}

/// What is wrong with a connection.
fn problem(kind: &Kind, seen: &std::result::Result<Seen, Errno>) -> Option<String> {
    let is_right = match (kind.wanted, seen) {
        (Wanted::Reaches(name) | Wanted::Either(name), Ok(seen)) => seen.name == name,
        (Wanted::Proxied, Ok(seen)) => {
            seen.name == "proxy" && seen.original_dst == Some(kind.address)
        }
        (Wanted::Refused | Wanted::Either(_), Err(errno)) => *errno == Errno::CONNREFUSED,
        (Wanted::Refused, Ok(_)) | (Wanted::Reaches(_) | Wanted::Proxied, Err(_)) => false,
    };
    (!is_right).then(|| format!("{:?} {seen:?}", kind.wanted))
}
