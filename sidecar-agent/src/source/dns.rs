//! Resolves the host names that are wanted, and keeps resolving them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use crate::model::{catalogue, diagnostic::Diagnostic};

/// Longest time an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a question is asked within [`TIMEOUT`].
const ATTEMPTS: u32 = 2;
/// Shortest and longest time an answer is used for, whatever its TTL is.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// When a question is asked again that was not answered, or answered without a TTL.
const RETRY: Duration = Duration::from_secs(5);
/// Most names that are being resolved at one time.
const CONCURRENT: usize = 16;

/// Names with their addresses. A name that could not be resolved has none.
pub type Addresses = BTreeMap<String, BTreeSet<IpAddr>>;

/// Asks name servers.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

impl Resolver {
    /// A resolver that asks these servers, over UDP and where needed TCP; none given: those of the
    /// system's configuration (`/etc/resolv.conf`), with its search domains.
    ///
    /// # Errors
    /// If the system's configuration cannot be used.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, NetError> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = servers.iter().map(name_server).collect();
            TokioResolver::builder_with_config(
                ResolverConfig::from_name_servers(servers),
                TokioRuntimeProvider::default(),
            )
        };
        let options = builder.options_mut();
        options.timeout = TIMEOUT / ATTEMPTS;
        options.attempts = ATTEMPTS as usize - 1;
        // Answers are kept here for as long as they are valid, and asked for again after that.
        options.cache_size = 0;
        Ok(Self(builder.build()?))
    }

    async fn lookup(&self, name: &str) -> Answer {
        let (v4, v6) = tokio::join!(
            self.lookup_family(name, RecordType::A),
            self.lookup_family(name, RecordType::AAAA)
        );
        Answer { v4, v6 }
    }

    async fn lookup_family(&self, name: &str, family: RecordType) -> Result<Records, String> {
        let mut question = Name::from_utf8(name).map_err(|cause| cause.to_string())?;
        // Names of services are written in full; only short ones are searched for.
        if name.contains('.') {
            question.set_fqdn(true);
        }
        let Ok(answer) = timeout(TIMEOUT, self.0.lookup(question, family)).await else {
            return Err(format!("no name server answered within {TIMEOUT:?}"));
        };
        match answer {
            Ok(lookup) => {
                let address = |data: &RData| match data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                };
                let left = lookup
                    .valid_until()
                    .saturating_duration_since(std::time::Instant::now());
                Ok(Records {
                    addresses: lookup
                        .answers()
                        .iter()
                        .filter_map(|r| address(&r.data))
                        .collect(),
                    ttl: Some(left),
                })
            }
            // That there is no such name, or no such record, is an answer.
            Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords { negative_ttl, .. }))) => {
                Ok(Records {
                    addresses: BTreeSet::new(),
                    ttl: negative_ttl.map(|seconds| Duration::from_secs(seconds.into())),
                })
            }
            Err(cause) => Err(cause.to_string()),
        }
    }
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

struct Answer {
    v4: Result<Records, String>,
    v6: Result<Records, String>,
}

struct Records {
    addresses: BTreeSet<IpAddr>,
    /// `None`: the server did not say.
    ttl: Option<Duration>,
}

/// What is known of the names that are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The names that were resolved, or for which it was tried at least once.
    pub addresses: Addresses,
    /// Of which of them the last try failed, and why; their addresses are the last good ones.
    pub failures: BTreeMap<String, String>,
}

impl State {
    /// The failures, for people.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let diagnostic = |(name, cause): (&String, &String)| {
            let kept = self.addresses.get(name).map_or(0, BTreeSet::len);
            let message = format!("cannot resolve {name}: {cause}; addresses still used: {kept}");
            Diagnostic::new(catalogue::DNS_FAILED, message)
        };
        self.failures.iter().map(diagnostic).collect()
    }
}

/// Resolves names once.
pub async fn resolve(names: BTreeSet<String>, resolver: &Resolver) -> State {
    let mut state = Names::default();
    state.want(&names);
    let mut lookups = JoinSet::new();
    loop {
        state.start(resolver, &mut lookups);
        let Some(joined) = lookups.join_next().await else {
            return state.state();
        };
        // Once is enough, so the time of the next try does not matter.
        state.finish(joined);
    }
}

/// Keeps resolving the names that are wanted. Dropping it ends that.
pub struct DnsWatcher {
    wanted: watch::Sender<BTreeSet<String>>,
    state: watch::Receiver<State>,
    task: AbortHandle,
}

impl DnsWatcher {
    /// Starts with no names wanted. Must be called within a tokio runtime.
    #[must_use]
    pub fn spawn(resolver: Resolver) -> Self {
        let (wanted, names) = watch::channel(BTreeSet::new());
        let (publish, state) = watch::channel(State::default());
        let task = tokio::spawn(keep_resolving(resolver, names, publish)).abort_handle();
        Self {
            wanted,
            state,
            task,
        }
    }

    /// Says which names are wanted from now on. What is known of others is forgotten.
    pub fn want(&self, names: BTreeSet<String>) {
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != names;
            *wanted = names;
            differs
        });
    }

    /// What is known, and notice of changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

impl Drop for DnsWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Joined = Result<(String, Answer), tokio::task::JoinError>;

async fn keep_resolving(
    resolver: Resolver,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    publish: watch::Sender<State>,
) {
    let mut names = Names::default();
    let mut lookups = JoinSet::new();
    loop {
        names.want(&wanted.borrow_and_update());
        let next = names.start(&resolver, &mut lookups);
        let state = names.state();
        publish.send_if_modified(|published| {
            let differs = *published != state;
            *published = state;
            differs
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(joined) = lookups.join_next() => names.finish(joined),
            () = sleep_until(next) => {}
        }
    }
}

/// The names that are wanted, and when to ask for each of them.
#[derive(Default)]
struct Names(BTreeMap<String, Entry>);

#[derive(Default)]
struct Entry {
    v4: BTreeSet<IpAddr>,
    v6: BTreeSet<IpAddr>,
    failure: Option<String>,
    next: Next,
}

#[derive(Default)]
enum Next {
    /// Never asked.
    #[default]
    Now,
    /// Being asked; whether for the first time.
    Asked { first: bool },
    /// To be asked again.
    At(Instant),
}

impl Names {
    fn want(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), Entry::default());
            }
        }
    }

    /// Starts asking for what is due; says when it has to be called again.
    fn start(&mut self, resolver: &Resolver, lookups: &mut JoinSet<(String, Answer)>) -> Instant {
        let now = Instant::now();
        let mut next = now + TTL.1;
        for (name, entry) in &mut self.0 {
            match entry.next {
                Next::Asked { .. } => continue,
                Next::At(due) if due > now => {
                    next = next.min(due);
                    continue;
                }
                Next::Now | Next::At(_) => {}
            }
            // The end of any lookup calls again.
            if lookups.len() >= CONCURRENT {
                break;
            }
            entry.next = Next::Asked {
                first: matches!(entry.next, Next::Now),
            };
            let (name, resolver) = (name.clone(), resolver.clone());
            lookups.spawn(async move {
                let answer = resolver.lookup(&name).await;
                (name, answer)
            });
        }
        next
    }

    fn finish(&mut self, joined: Joined) {
        // A lookup that panicked would leave its name waiting: ask for all such names again.
        let Ok((name, answer)) = joined else {
            for entry in self.0.values_mut() {
                if matches!(entry.next, Next::Asked { .. }) {
                    entry.next = Next::At(Instant::now() + RETRY);
                }
            }
            return;
        };
        // Names may have become unwanted in the meantime.
        let Some(entry) = self.0.get_mut(&name) else {
            return;
        };
        let mut positive = None;
        let mut negative = None;
        entry.failure = None;
        for (known, answer) in [(&mut entry.v4, answer.v4), (&mut entry.v6, answer.v6)] {
            match answer {
                Ok(Records { addresses, ttl }) => {
                    let shortest = if addresses.is_empty() {
                        &mut negative
                    } else {
                        &mut positive
                    };
                    let ttl = ttl.unwrap_or(RETRY);
                    *shortest = Some(shortest.map_or(ttl, |other: Duration| other.min(ttl)));
                    *known = addresses;
                }
                Err(cause) => entry.failure = Some(cause),
            }
        }
        // A name with addresses of one family is not asked for more often because the other
        // family has none.
        let mut again = positive.or(negative).unwrap_or(RETRY);
        if entry.failure.is_some() {
            again = again.min(RETRY);
        }
        entry.next = Next::At(Instant::now() + again.clamp(TTL.0, TTL.1));
    }

    fn state(&self) -> State {
        let mut state = State::default();
        for (name, entry) in &self.0 {
            if matches!(entry.next, Next::Now | Next::Asked { first: true }) {
                continue;
            }
            state.addresses.insert(name.clone(), &entry.v4 | &entry.v6);
            if let Some(cause) = &entry.failure {
                state.failures.insert(name.clone(), cause.clone());
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex},
    };

    use hickory_resolver::proto::{
        op::{Message, ResponseCode},
        rr::Record,
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A name server on loopback.
    struct Server {
        address: SocketAddr,
        zone: Arc<Mutex<Zone>>,
        task: AbortHandle,
    }

    #[derive(Default)]
    struct Zone {
        /// Addresses, by lower-case name with its trailing dot.
        hosts: HashMap<String, Vec<IpAddr>>,
        ttl: u32,
        /// Neither answers nor refuses.
        silent: bool,
        /// Fails questions of this type.
        broken: Option<RecordType>,
        questions: Vec<String>,
    }

    impl Server {
        async fn start() -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            let zone = Arc::new(Mutex::new(Zone {
                ttl: 60,
                ..Zone::default()
            }));
            let shared = zone.clone();
            let task = tokio::spawn(async move {
                let mut buffer = [0; 4096];
                loop {
                    let (len, peer) = socket.recv_from(&mut buffer).await.unwrap();
                    let answer = shared.lock().unwrap().answer(&buffer[..len]);
                    if let Some(answer) = answer {
                        socket.send_to(&answer, peer).await.unwrap();
                    }
                }
            });
            Self {
                address,
                zone,
                task: task.abort_handle(),
            }
        }

        fn set(&self, change: impl FnOnce(&mut Zone)) {
            change(&mut self.zone.lock().unwrap());
        }

        fn host(&self, name: &str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            self.set(|zone| _ = zone.hosts.insert(name.into(), addresses));
        }

        fn resolver(&self) -> Resolver {
            Resolver::new(&[self.address]).unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Zone {
        fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
            let question = Message::from_vec(question).unwrap();
            let query = question.queries[0].clone();
            let name = query.name().to_string().to_lowercase();
            self.questions.push(name.clone());
            if self.silent {
                return None;
            }
            let mut answer = question.into_response();
            if self.broken == Some(query.query_type()) {
                answer.metadata.response_code = ResponseCode::ServFail;
                return Some(answer.to_vec().unwrap());
            }
            match self.hosts.get(&name) {
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(addresses) => {
                    for &address in addresses {
                        let data = RData::from(address);
                        if data.record_type() == query.query_type() {
                            let owner = query.name().clone();
                            answer.add_answer(Record::from_rdata(owner, self.ttl, data));
                        }
                    }
                }
            }
            Some(answer.to_vec().unwrap())
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    fn addresses(expected: &[(&str, &[&str])]) -> Addresses {
        let set = |list: &[&str]| {
            list.iter()
                .map(|address| address.parse().unwrap())
                .collect()
        };
        expected
            .iter()
            .map(|(name, list)| ((*name).into(), set(list)))
            .collect()
    }

    /// Waits until the state is as wanted.
    async fn until(
        state: &mut watch::Receiver<State>,
        what: &str,
        holds: impl FnMut(&State) -> bool,
    ) -> State {
        let deadline = Duration::from_secs(20);
        let known = timeout(deadline, state.wait_for(holds)).await;
        known
            .unwrap_or_else(|_| panic!("never: {what}"))
            .unwrap()
            .clone()
    }

    #[tokio::test]
    async fn both_families_are_resolved_and_unknown_names_have_none() {
        let server = Server::start().await;
        server.host("both.test.", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        server.host("four.test.", &["192.0.2.3"]);
        let wanted = names(&["both.test", "four.test.", "nowhere.test", "bad..name"]);
        let state = resolve(wanted, &server.resolver()).await;
        assert_eq!(
            state.addresses,
            addresses(&[
                ("bad..name", &[]),
                ("both.test", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
                ("four.test.", &["192.0.2.3"]),
                ("nowhere.test", &[]),
            ])
        );
        let failed: Vec<_> = state.failures.keys().collect();
        assert_eq!(
            failed,
            ["bad..name"],
            "that a name does not exist is no failure"
        );
        assert_eq!(state.diagnostics()[0].code, "SCA0300");
    }

    #[tokio::test]
    async fn many_names_are_resolved() {
        let server = Server::start().await;
        let wanted: BTreeSet<_> = (0..5 * CONCURRENT).map(|i| format!("h{i}.test")).collect();
        for name in &wanted {
            server.host(&format!("{name}."), &["192.0.2.1"]);
        }
        let state = resolve(wanted.clone(), &server.resolver()).await;
        assert_eq!(state.addresses.len(), wanted.len());
        assert!(
            state.addresses.values().all(|set| set.len() == 1),
            "{state:?}"
        );
    }

    #[tokio::test]
    async fn only_so_many_names_are_asked_for_at_once() {
        let server = Server::start().await;
        server.set(|zone| zone.silent = true);
        let watcher = DnsWatcher::spawn(server.resolver());
        watcher.want((0..5 * CONCURRENT).map(|i| format!("h{i}.test")).collect());
        // Asked for the second time: by then everything that would be asked at once has been.
        let asked = timeout(Duration::from_secs(20), async {
            loop {
                let questions = server.zone.lock().unwrap().questions.clone();
                let names: BTreeSet<_> = questions.iter().collect();
                if questions.len() > 2 * names.len() {
                    return names.len();
                }
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(asked.await.expect("names are asked for again"), CONCURRENT);
    }

    #[tokio::test]
    async fn addresses_follow_their_ttl() {
        let server = Server::start().await;
        server.set(|zone| zone.ttl = 0);
        server.host("a.test.", &["192.0.2.1"]);
        let watcher = DnsWatcher::spawn(server.resolver());
        let mut state = watcher.state();
        watcher.want(names(&["a.test"]));
        let start = Instant::now();
        until(&mut state, "first address", |s| {
            s.addresses == addresses(&[("a.test", &["192.0.2.1"])])
        })
        .await;
        server.host("a.test.", &["192.0.2.2", "2001:db8::2"]);
        until(&mut state, "new address", |s| {
            s.addresses == addresses(&[("a.test", &["192.0.2.2", "2001:db8::2"])])
        })
        .await;
        assert!(
            start.elapsed() >= TTL.0,
            "a TTL of 0 must not lead to a storm of questions"
        );

        // A long TTL: nobody asks again.
        server.set(|zone| zone.ttl = 300);
        server.host("b.test.", &["192.0.2.9"]);
        watcher.want(names(&["b.test"]));
        let known = until(&mut state, "the other name only", |s| {
            s.addresses.contains_key("b.test")
        })
        .await
        .addresses;
        assert_eq!(
            known,
            addresses(&[("b.test", &["192.0.2.9"])]),
            "unwanted names are forgotten"
        );
        server.set(|zone| zone.questions.clear());
        let more = timeout(2 * TTL.0, state.changed()).await;
        assert!(more.is_err());
        assert_eq!(server.zone.lock().unwrap().questions, [""; 0]);
    }

    #[tokio::test]
    async fn last_good_addresses_stay_when_servers_fail() {
        let server = Server::start().await;
        server.set(|zone| zone.ttl = 1);
        server.host("a.test.", &["192.0.2.1", "2001:db8::1"]);
        let watcher = DnsWatcher::spawn(server.resolver());
        let mut state = watcher.state();
        watcher.want(names(&["a.test"]));
        let good = addresses(&[("a.test", &["192.0.2.1", "2001:db8::1"])]);
        until(&mut state, "addresses", |s| s.addresses == good).await;

        server.set(|zone| zone.silent = true);
        let failed = until(&mut state, "a failure", |s| !s.failures.is_empty()).await;
        assert_eq!(failed.addresses, good);

        // One family answers again, with something new; the other one stays.
        server.set(|zone| {
            zone.silent = false;
            zone.broken = Some(RecordType::AAAA);
        });
        server.host("a.test.", &["192.0.2.2"]);
        let partly = addresses(&[("a.test", &["192.0.2.2", "2001:db8::1"])]);
        let half = until(&mut state, "one family", |s| s.addresses == partly).await;
        assert!(half.failures.contains_key("a.test"));

        server.set(|zone| zone.broken = None);
        until(&mut state, "recovery", |s| {
            s.failures.is_empty() && s.addresses == addresses(&[("a.test", &["192.0.2.2"])])
        })
        .await;

        // That the name is gone is an answer, not a failure.
        server.set(|zone| zone.hosts.clear());
        until(&mut state, "no such name", |s| {
            s.failures.is_empty() && s.addresses == addresses(&[("a.test", &[])])
        })
        .await;
    }
}
