//! What the kernel was told of a workload's network and sockets, against what is there now.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sidecar_common::{Addr, keys::WorkloadInterface, values::Identity};

use super::{InForce, compare};
use crate::{
    compile::{Plan, plan::interface_flags},
    dataplane::{
        cgroup::Cgroup,
        dump::names,
        listeners,
        maps::route_to,
        netns::Netns,
        network::{Network, Sources},
    },
};

/// Where a workload is.
#[derive(Debug)]
pub struct Place<'a> {
    /// Its cgroup, and its proxy's if that is apart.
    pub cgroups: Vec<&'a Cgroup>,
    /// Its network namespace.
    pub netns: &'a Netns,
}

impl InForce {
    /// In what `LOCAL_ADDRS`, `INTERFACES`, `ROUTES`, `SOCKETS` and the identity differ from what is
    /// found in the namespace; each as a sentence. An agent that runs looks once a second.
    ///
    /// # Errors
    /// If the namespace cannot be read.
    pub fn strange_surroundings(&self, place: &Place<'_>, plan: &Plan) -> Result<Vec<String>> {
        let network = Network::read(place.netns)?;
        let mut found = Vec::new();
        self.compare_addresses(place.netns, &mut found)?;
        self.compare_interfaces(&network, plan, &mut found);
        self.compare_routes(&network, plan, &mut found);
        self.compare_sockets(place, plan, &mut found);
        Ok(found)
    }

    fn compare_addresses(&self, netns: &Netns, to: &mut Vec<String>) -> Result<()> {
        let own = netns.local_addrs()?.into_iter().map(Addr::from);
        // Two interfaces may have one.
        let own: BTreeSet<Addr> = own.collect();
        let wanted = own.into_iter().map(|addr| (addr, ())).collect();
        let keys = self.maps.local_addrs.keys().flatten();
        let found = keys.filter(|key| key.workload == self.slot);
        let found = found.map(|key| (key.endpoint.addr, ()));
        let name = ToString::to_string;
        compare("LOCAL_ADDRS", wanted, found, name, |()| listed(), to);
        Ok(())
    }

    fn compare_interfaces(&self, network: &Network, plan: &Plan, to: &mut Vec<String>) {
        let (workload, id) = (self.slot, self.word.plan());
        let key = |index| WorkloadInterface {
            workload,
            plan: id,
            index,
        };
        let existing = network.interfaces.iter();
        let wanted: Vec<_> = existing
            .map(|(name, &index)| (key(index), interface_flags(&plan.interfaces, name)))
            .filter(|(_, flags)| *flags != 0)
            .collect();
        let found = self.maps.interfaces.iter().flatten();
        let found = found.filter(|(key, _)| key.workload == workload && key.plan == id);
        let by_index: BTreeMap<u32, &String> = network
            .interfaces
            .iter()
            .map(|(name, index)| (*index, name))
            .collect();
        compare(
            "INTERFACES",
            wanted,
            found,
            |key| match by_index.get(&key.index) {
                Some(name) => (*name).clone(),
                None => key.index.to_string(),
            },
            |flags| names::set_in(&names::INTERFACE, *flags).join("+"),
            to,
        );
    }

    fn compare_routes(&self, network: &Network, plan: &Plan, to: &mut Vec<String>) {
        let Sources { routed, v4, v6 } = network.sources(!plan.interfaces.is_empty());
        let Identity {
            flags,
            source_v4,
            source_v6,
            ..
        } = self.identity;
        if (flags & Identity::ROUTED != 0, source_v4, source_v6) != (routed, v4, v6) {
            to.push(
                "IDENTITIES: from where connections come is not as the namespace's routes say"
                    .to_owned(),
            );
        }
        let wanted = network.routes.iter().filter(|_| routed);
        let wanted = wanted.map(|route| (route.net.trunc(), (route.interface, route.source)));
        let keys = self.maps.routes.keys().flatten();
        let found = keys.filter(|key| key.data().workload == self.slot);
        let found = found.filter_map(|key| {
            let route = route_to(&key, &self.maps.routes.get(&key, 0).ok()?);
            Some((route.net, (route.interface, route.source)))
        });
        compare(
            "ROUTES",
            wanted.collect(),
            found,
            ToString::to_string,
            |(interface, source)| match source {
                Some(source) => format!("by interface {interface} from {source}"),
                None => format!("by interface {interface}"),
            },
            to,
        );
    }

    /// What listens on a port that the plan leads to has to be known. What does not listen any more
    /// the kernel removes itself.
    fn compare_sockets(&self, place: &Place<'_>, plan: &Plan, to: &mut Vec<String>) {
        let mut known = self.maps.sockets().remove(&self.slot).unwrap_or_default();
        let cgroups = place.cgroups.iter().map(|cgroup| cgroup.path.as_path());
        let listening = listeners::endpoints(place.netns, cgroups, &plan.listen_ports);
        let missing = listening.difference(&known);
        to.extend(missing.map(|endpoint| format!("SOCKETS {endpoint}: missing, but it listens")));
        let relay = [
            (Addr::ANY_V4, self.identity.relay_port_v4),
            (Addr::ANY, self.identity.relay_port_v6),
        ];
        known.retain(|endpoint| endpoint.port == 0);
        for (family, port) in relay {
            if port != 0 && self.has_agent() && !known.iter().any(|of| of.addr == family) {
                to.push(format!(
                    "SOCKETS: the relay's listener at port {port} is missing"
                ));
            }
        }
    }
}

fn listed() -> String {
    "listed".to_owned()
}
