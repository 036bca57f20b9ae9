//! The digest of a plan: equal plans, and only those, have equal digests.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sidecar_common::{
    Endpoint,
    values::{PlanHeader, Rule},
};

use crate::model::ResourceRef;

use super::plan::{DeclaredBy, Listener, Outbound, Place, Plan, Target, UnixAddr};

impl Plan {
    /// BLAKE3 over the plan's contents in one canonical form: integers little-endian, addresses
    /// as on the wire, every sequence and string preceded by its length.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        // Destructured, so that a new field is not forgotten.
        let Self {
            header,
            outbound,
            inbound,
            inbound_listeners,
            listen_ports,
            owners,
            interfaces,
            virtual_ranges,
            sidecar,
        } = self;
        let mut out = Canonical::default();
        out.header(header);
        out.bytes(outbound.digest.as_bytes());
        out.sequence(inbound, |out, (dst, rule)| {
            out.endpoint(dst);
            out.rule(rule);
        });
        out.sequence(inbound_listeners, Canonical::listener);
        out.sequence(listen_ports, |out, port| out.bytes(&port.to_le_bytes()));
        out.sequence(owners, |out, (role, id)| {
            out.bytes(&role.to_le_bytes());
            out.bytes(&id.to_le_bytes());
        });
        out.sequence(interfaces, |out, (name, flags)| {
            out.text(name);
            out.bytes(&flags.to_le_bytes());
        });
        out.sequence(virtual_ranges, Canonical::net);
        out.optional(sidecar.as_ref(), Canonical::resource);
        out.finish()
    }
}

impl Outbound {
    /// As [`Plan::digest`], of this half.
    pub(super) fn compute_digest(&self) -> blake3::Hash {
        let Self {
            default,
            exact,
            prefixes,
            backends,
            listeners,
            digest: _,
        } = self;
        // Room for what is usual, so that it need not grow step by step.
        let mut out = Canonical(Vec::with_capacity(exact.len() * 64 + listeners.len() * 160));
        out.rule(default);
        out.sequence(exact, |out, (dst, rule)| {
            out.endpoint(dst);
            out.rule(rule);
        });
        out.sequence(prefixes, |out, ((port, net), rule)| {
            out.bytes(&port.to_le_bytes());
            out.net(net);
            out.rule(rule);
        });
        out.sequence(backends, |out, group| {
            out.sequence(group, Canonical::endpoint);
        });
        out.sequence(listeners, Canonical::listener);
        out.finish()
    }
}

/// Collected first and hashed at once: BLAKE3 is many times faster on long input.
#[derive(Default)]
struct Canonical(Vec<u8>);

impl Canonical {
    fn finish(self) -> blake3::Hash {
        blake3::hash(&self.0)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn sequence<I: IntoIterator>(&mut self, items: I, mut each: impl FnMut(&mut Self, I::Item))
    where
        I::IntoIter: ExactSizeIterator,
    {
        let items = items.into_iter();
        self.number(items.len() as u64);
        for item in items {
            each(self, item);
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    fn optional<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        self.bytes(&[u8::from(value.is_some())]);
        if let Some(value) = value {
            some(self, value);
        }
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => {
                self.bytes(&[4]);
                self.bytes(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.bytes(&[6]);
                self.bytes(&v6.octets());
            }
        }
    }

    fn net(&mut self, net: &IpNet) {
        self.ip(net.addr());
        self.bytes(&[net.prefix_len()]);
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        let address = SocketAddr::from(*endpoint);
        self.ip(address.ip());
        self.bytes(&address.port().to_le_bytes());
    }

    fn rule(&mut self, rule: &Rule) {
        let Rule {
            path,
            reason,
            flags,
            pad,
            listener,
            group,
            backends,
            target,
        } = rule;
        self.bytes(&[*path, *reason, *flags, *pad]);
        for word in [listener, group, backends] {
            self.bytes(&word.to_le_bytes());
        }
        self.endpoint(target);
    }

    fn header(&mut self, header: &PlanHeader) {
        let PlanHeader {
            tables,
            flags,
            outbound_port,
            inbound_port,
            tunnel_port,
            dns_port,
            proxy_uid,
            proxy_gid,
            loopback,
            loopback_mask,
            outbound_default,
            inbound_default,
        } = header;
        for word in [tables, flags, proxy_uid, proxy_gid] {
            self.bytes(&word.to_le_bytes());
        }
        for port in [outbound_port, inbound_port, tunnel_port, dns_port] {
            self.bytes(&port.to_le_bytes());
        }
        // In network order already.
        for word in [loopback, loopback_mask] {
            self.bytes(&word.to_ne_bytes());
        }
        self.rule(outbound_default);
        self.rule(inbound_default);
    }

    fn unix(&mut self, address: &UnixAddr) {
        let (kind, text) = match address {
            UnixAddr::Path(path) => (0, path),
            UnixAddr::Abstract(name) => (1, name),
        };
        self.bytes(&[kind]);
        self.text(text);
    }

    fn resource(&mut self, resource: &ResourceRef) {
        let ResourceRef {
            kind,
            namespace,
            name,
            file: _,
            line: _,
        } = resource;
        self.text(kind);
        self.text(namespace);
        self.text(name);
    }

    fn listener(&mut self, listener: &Listener) {
        let Listener {
            direction,
            place,
            declared,
            service,
            targets,
        } = listener;
        self.bytes(&[*direction as u8]);
        match place {
            Place::Ip(address) => {
                self.bytes(&[0]);
                self.endpoint(&Endpoint::from(*address));
            }
            Place::Port(port) => {
                self.bytes(&[1]);
                self.bytes(&port.to_le_bytes());
            }
            Place::Unix(address) => {
                self.bytes(&[2]);
                self.unix(address);
            }
            Place::Unknown => self.bytes(&[3]),
        }
        match declared {
            DeclaredBy::Nothing => self.bytes(&[0]),
            DeclaredBy::Resource(resource) => {
                self.bytes(&[1]);
                self.resource(resource);
            }
            DeclaredBy::Sidecar(_) => self.bytes(&[2]),
        }
        self.optional(service.as_deref(), Canonical::text);
        self.sequence(&targets[..], |out, target| match target {
            Target::Tcp(address) => {
                out.bytes(&[0]);
                out.endpoint(&Endpoint::from(*address));
            }
            Target::Unix(address) => {
                out.bytes(&[1]);
                out.unix(address);
            }
            Target::Original => out.bytes(&[2]),
        });
    }
}
