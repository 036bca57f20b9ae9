//! What a workload's network has to be like, and what the kernel is told of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use sidecar_common::{
    Addr,
    keys::{PlanId, WorkloadInterface},
    values::{Identity, PlanHeader},
};

use super::Attachment;
use crate::{
    compile::Plan,
    dataplane::{
        maps::{Maps, ToldWorkload},
        netns::Netns,
        network::{Network, RouteTo, Sources, Steering},
    },
};

/// What of a workload's network the kernel was told.
#[derive(Default, PartialEq, Eq)]
pub struct Told {
    /// Interfaces that are unlike others, with their flags.
    pub interfaces: BTreeMap<WorkloadInterface, u32>,
    /// Routes, where it makes a difference which is taken.
    pub routes: Vec<RouteTo>,
}

impl Attachment {
    /// Sets up what a plan needs of the workload's network, and tells the kernel of it, before that
    /// plan is in force.
    pub fn prepare(&mut self, maps: &mut Maps, id: PlanId, plan: &Plan) -> Result<()> {
        let mut network_changed = self.interfaces.announce(id, &plan.interfaces);
        // What is the host's is nobody's to be set up.
        if self.netns.id == Netns::open(None)?.id {
            if !plan.interfaces.is_empty() {
                bail!(
                    "interfaces are excluded, or virtual, of a workload that shares the host's \
                     network namespace; give it one of its own, or name no interfaces"
                );
            }
        } else {
            let passthrough_v6 = plan.header.flags & PlanHeader::IPV6 != 0;
            self.steering = Steering::declared(plan);
            let existing = if self.steering.iter().any(Steering::depends_on_names) {
                Network::read(&self.netns)?.interfaces
            } else {
                BTreeMap::new()
            };
            let steering = Steering::among(&self.steering, &existing);
            // What was set up may be an address.
            if self
                .setup
                .bring_to(&self.netns, &steering, passthrough_v6)?
            {
                network_changed |= self.refresh_local_addrs(maps)?;
            }
        }
        if network_changed {
            self.tell_network(maps)?;
        }
        Ok(())
    }

    /// Tells the kernel which addresses are the workload's own now; returns whether others are.
    pub(super) fn refresh_local_addrs(&mut self, maps: &mut Maps) -> Result<bool> {
        let now: BTreeSet<Addr> = self
            .netns
            .local_addrs()?
            .into_iter()
            .map(Addr::from)
            .collect();
        if now == self.local_addrs {
            return Ok(false);
        }
        maps.set_local_addrs(self.identity.workload, &self.local_addrs, &now)?;
        self.local_addrs = now;
        Ok(true)
    }

    /// Tells the kernel by which interfaces the workload's connections leave, and from where. Returns
    /// the interfaces that exist: their indices by name.
    pub(super) fn tell_network(&mut self, maps: &mut Maps) -> Result<BTreeMap<String, u32>> {
        let network = Network::read(&self.netns)?;
        let workload = self.identity.workload;
        let Sources { routed, v4, v6 } = network.sources(!self.interfaces.is_empty());
        let told = Told {
            interfaces: self.interfaces.entries(workload, &network.interfaces),
            routes: if routed { network.routes } else { Vec::new() },
        };
        if told != self.told {
            maps.set_interfaces(&self.told.interfaces, &told.interfaces)?;
            self.told.interfaces = told.interfaces;
            maps.set_routes(workload, &self.told.routes, &told.routes)?;
            self.told.routes = told.routes;
        }
        let before = self.identity;
        self.identity.flags &= !Identity::ROUTED;
        if routed {
            self.identity.flags |= Identity::ROUTED;
        }
        self.identity.source_v4 = v4;
        self.identity.source_v6 = v6;
        if self.identity != before {
            self.publish_identity(maps)?;
        }
        Ok(network.interfaces)
    }

    /// What the kernel was told of it.
    pub fn told(&self) -> ToldWorkload {
        ToldWorkload {
            local_addrs: self.local_addrs.clone(),
            interfaces: self.told.interfaces.clone(),
            routes: self.told.routes.clone(),
            listen_ports: self.listen_ports.clone(),
        }
    }

    /// Entries in map `INTERFACES`.
    pub fn told_interfaces(&self) -> usize {
        self.told.interfaces.len()
    }

    /// Entries in map `ROUTES`.
    pub fn told_routes(&self) -> usize {
        self.told.routes.len()
    }
}
