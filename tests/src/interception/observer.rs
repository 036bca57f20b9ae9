//! Makes attempts and observes what comes of them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context as _;
use sidecar_agent::conformance::iptables::cases::OptionSet;

use super::{
    attempt::{Attempt, From, Interface},
    observed::{Observed, Who},
    pod::{GUEST, PASSTHROUGH_V6, POD_NET1, POD_V4, POD_V6, Pod},
    rules::DNS_CAPTURE_PORT,
    side::Side,
};
use crate::{
    Place, Probe,
    apps::{
        Answerer,
        answerer::Listen,
        visit::{Transport, Visit},
    },
};

/// How long connecting may take, and then the answer. Longer than a lost packet takes to be sent
/// again, since machines are busy.
const PATIENCE: Duration = Duration::from_secs(4);

/// A side with those who call and those who answer.
#[derive(Debug)]
pub struct Observer<S> {
    // Dropped in this order: the pod goes last.
    inside: Probe,
    callers: [Probe; 2],
    outside: Answerer,
    guest: Answerer,
    pod: Option<Residents>,
    side: S,
}

/// Those in the pod who answer; they are others for each option set.
#[derive(Debug)]
struct Residents {
    app: Answerer,
    /// Lives as long as its listeners are to.
    _proxy: Answerer,
    proxy_ports: Vec<u16>,
}

impl<S: Side> Observer<S> {
    /// Starts what lives as long as the pod.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn new(side: S) -> anyhow::Result<Self> {
        let Pod { outside, guest, .. } = side.pod();
        let at = |netns| Place::here().netns(netns);
        Ok(Self {
            inside: Probe::start(side.pod().inside())?,
            callers: [Probe::start(at(outside))?, Probe::start(at(guest))?],
            outside: Answerer::named(Who::Outside.name())
                .place(at(outside))
                .start()?,
            guest: Answerer::named(Who::Guest.name())
                .place(at(guest))
                .start()?,
            pod: None,
            side,
        })
    }

    /// The side.
    pub fn side(&self) -> &S {
        &self.side
    }

    /// Puts an option set in force and starts the proxy and the application for it.
    ///
    /// # Errors
    /// When the side refuses the options, or a process cannot be started.
    pub fn load(&mut self, options: &OptionSet) -> anyhow::Result<()> {
        // The ports of the last are free for the next.
        self.pod = None;
        self.side
            .apply(options)
            .with_context(|| format!("{} does not take the options", self.side.name()))?;
        self.pod = Some(self.residents(options)?);
        self.side.listening()
    }

    fn residents(&self, options: &OptionSet) -> anyhow::Result<Residents> {
        let first = |list: &str| -> anyhow::Result<u32> {
            let first = list.split(',').next().unwrap_or_default();
            let parsed = first.trim().parse();
            parsed.with_context(|| format!("{list:?} does not begin with an id"))
        };
        let inside = self.side.pod().inside();
        let tproxy = options.interception_mode == "TPROXY";
        let proxy = Answerer::named(Who::Proxy.name())
            .place(inside)
            .user(first(&options.proxy_uid)?, first(&options.proxy_gid)?)
            .transparent(tproxy && self.side.wants_transparent_listeners())
            .start()?;
        let mut proxy_ports = Vec::new();
        for port in [&options.proxy_port, &options.inbound_capture_port] {
            let port = port.parse().with_context(|| format!("no port: {port:?}"))?;
            for ip in WILDCARDS {
                proxy.listen(Listen::Tcp((ip, port).into()))?;
            }
            proxy_ports.push(port);
        }
        // pilot-agent's name server listens on `localhost`.
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let address = (ip, DNS_CAPTURE_PORT).into();
            proxy.listen(Listen::Tcp(address))?;
            proxy.listen(Listen::Udp(address))?;
        }
        Ok(Residents {
            app: Answerer::named(Who::App.name()).place(inside).start()?,
            _proxy: proxy,
            proxy_ports,
        })
    }

    /// Makes an attempt, under the options that were loaded last. Sees to it that its destination
    /// would answer.
    ///
    /// # Errors
    /// When a process has ended: what the kernel makes of the attempt is an [`Observed`].
    pub fn observe(&self, attempt: &Attempt) -> anyhow::Result<Observed> {
        let destination = self.serve(attempt)?;
        self.side.forget_flows()?;
        let (caller, user) = match &attempt.from {
            From::Inside(user) => (&self.inside, Some(user.clone())),
            From::Through(Interface::Eth0) => (&self.callers[0], None),
            From::Through(Interface::Net1) => (&self.callers[1], None),
        };
        let visited = caller.make(Visit {
            user,
            transport: attempt.transport,
            source: attempt.source,
            to: attempt.to,
            patience: PATIENCE,
        })?;
        Ok(Observed::new(visited, attempt.to, destination))
    }

    /// Makes the destination listen; tells who it is.
    fn serve(&self, attempt: &Attempt) -> anyhow::Result<Who> {
        let residents = self.pod.as_ref().context("no options are loaded")?;
        let (ip, port) = (attempt.to.ip(), attempt.to.port());
        let udp = attempt.transport != Transport::Tcp;
        let (who, answerer) = if ip == IpAddr::from(GUEST) {
            (Who::Guest, &self.guest)
        } else if is_own(ip) {
            (Who::App, &residents.app)
        } else {
            (Who::Outside, &self.outside)
        };
        let taken = who == Who::App
            && if udp {
                port == DNS_CAPTURE_PORT && is_localhost(ip)
            } else {
                residents.proxy_ports.contains(&port) || port == DNS_CAPTURE_PORT
            };
        if taken {
            // The proxy's, or nobody's.
            return Ok(who);
        }
        answerer.listen(if udp {
            // An answer from a wildcard would come from an address that was not asked.
            Listen::Udp(attempt.to)
        } else {
            let wildcard = WILDCARDS[usize::from(ip.is_ipv6())];
            Listen::Tcp((wildcard, port).into())
        })?;
        Ok(who)
    }
}

const WILDCARDS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::from(Ipv4Addr::LOCALHOST) || ip == IpAddr::from(Ipv6Addr::LOCALHOST)
}

/// Whether an address is the pod's.
fn is_own(ip: IpAddr) -> bool {
    let own: [IpAddr; 4] = [
        POD_V4.into(),
        POD_V6.into(),
        POD_NET1.into(),
        PASSTHROUGH_V6.into(),
    ];
    ip.is_loopback() || own.contains(&ip)
}
