//! A name server.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use crate::Namespace;

/// How long the server takes to notice that it is to end.
const STOP: Duration = Duration::from_millis(50);

/// What the server answers; it can be changed while it runs.
#[derive(Debug)]
struct Zone {
    /// By name in lower case, with the final dot.
    addresses: HashMap<String, Vec<IpAddr>>,
    /// For every answer, in seconds.
    ttl: u32,
    /// Instead of every answer.
    failure: Option<ResponseCode>,
    queries: Vec<(String, RecordType)>,
}

/// A name server for A and AAAA over UDP, in a thread of the test. A name it has no address for
/// does not exist (NXDOMAIN). Ends when dropped.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts one at an address (port 0 takes a free one), in a namespace or in the test's own.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(netns: Option<&Namespace>, address: SocketAddr) -> anyhow::Result<Self> {
        let bind = || UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"));
        let socket = netns.map_or_else(bind, |netns| netns.run(bind)?)?;
        socket
            .set_read_timeout(Some(STOP))
            .context("cannot limit reading")?;
        let address = socket.local_addr().context("the socket has no address")?;
        let zone = Arc::new(Mutex::new(Zone {
            addresses: HashMap::new(),
            ttl: 1,
            failure: None,
            queries: Vec::new(),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            move || serve(&socket, &zone, &stop)
        });
        Ok(Self {
            address,
            zone,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a name these addresses instead of those it had. None: it exists and has none.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        lock(&self.zone)
            .addresses
            .insert(key(name), addresses.to_vec());
    }

    /// Makes a name cease to exist.
    pub fn remove(&self, name: &str) {
        lock(&self.zone).addresses.remove(&key(name));
    }

    /// For how long answers may be kept, in seconds; 1 unless set.
    pub fn set_ttl(&self, seconds: u32) {
        lock(&self.zone).ttl = seconds;
    }

    /// Answers everything with this code, or as usual again.
    pub fn fail(&self, failure: Option<ResponseCode>) {
        lock(&self.zone).failure = failure;
    }

    /// What was asked so far: name with its final dot, and type.
    #[must_use]
    pub fn queries(&self) -> Vec<(String, RecordType)> {
        lock(&self.zone).queries.clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.').to_lowercase())
}

fn serve(socket: &UdpSocket, zone: &Mutex<Zone>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let (length, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // Nothing came, or a client has closed before our answer reached it.
            Err(error) if is_passing(&error) => continue,
            Err(error) => return eprintln!("the name server ends: {error}"),
        };
        let Ok(query) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        if let Ok(answer) = answer(&query, &mut lock(zone)).to_vec() {
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        ConnectionRefused | Interrupted | TimedOut | WouldBlock
    )
}

fn answer(query: &Message, zone: &mut Zone) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    for question in &query.queries {
        let name = key(&question.name.to_ascii());
        zone.queries.push((name.clone(), question.query_type));
        match (zone.failure, zone.addresses.get(&name)) {
            (Some(failure), _) => answer.metadata.response_code = failure,
            (None, None) => answer.metadata.response_code = ResponseCode::NXDomain,
            (None, Some(addresses)) => {
                answer.add_answers(records(
                    &question.name,
                    question.query_type,
                    addresses,
                    zone.ttl,
                ));
            }
        }
    }
    answer
}

fn records(name: &Name, kind: RecordType, addresses: &[IpAddr], ttl: u32) -> Vec<Record> {
    let data = addresses.iter().map(|address| match address {
        IpAddr::V4(v4) => RData::A((*v4).into()),
        IpAddr::V6(v6) => RData::AAAA((*v6).into()),
    });
    data.filter(|data| data.record_type() == kind)
        .map(|data| Record::from_rdata(name.clone(), ttl, data))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use hickory_proto::op::Query;

    use super::*;

    fn ask(server: &Dns, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(crate::DEADLINE)).unwrap();
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        socket
            .send_to(&query.to_vec().unwrap(), server.address())
            .unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        answer
    }

    fn data(answer: &Message) -> Vec<String> {
        answer
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect()
    }

    #[test]
    fn answers_change_with_the_map() {
        let server = Dns::start(None, "127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(
            ask(&server, "db.test.", RecordType::A)
                .metadata
                .response_code,
            ResponseCode::NXDomain
        );
        server.set(
            "DB.test",
            &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        );
        assert_eq!(
            data(&ask(&server, "db.test.", RecordType::A)),
            ["192.0.2.1"]
        );
        assert_eq!(
            data(&ask(&server, "db.test.", RecordType::AAAA)),
            ["2001:db8::1"]
        );
        server.set("db.test", &["192.0.2.2".parse().unwrap()]);
        assert_eq!(
            data(&ask(&server, "db.test.", RecordType::A)),
            ["192.0.2.2"]
        );
        let none = ask(&server, "db.test.", RecordType::AAAA);
        assert_eq!(none.metadata.response_code, ResponseCode::NoError);
        assert!(none.answers.is_empty());
        server.fail(Some(ResponseCode::ServFail));
        assert_eq!(
            ask(&server, "db.test.", RecordType::A)
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
        assert_eq!(server.queries().len(), 6);
    }
}
