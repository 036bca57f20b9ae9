//! A decision does not look up again what it knows.

use std::cell::Cell;

use sidecar_common::{
    Addr, Endpoint,
    decide::{self, Arrival, Caller, InboundCall, OutboundCall, Tables, Transport},
    keys::{BackendKey, OwnerKey, PlanId, PrefixKey, RuleKey},
    values::{PlanHeader, Rule},
};

use super::*;
use crate::{
    compile::MemTables,
    model::settings::{EXCLUDE_INTERFACES, INTERCEPTION_MODE, VIRTUAL_INTERFACES},
};

/// Tables that count how often it is asked whether an address is the workload's own.
struct Counting<'a> {
    tables: MemTables<'a>,
    asked: Cell<u32>,
}

impl Tables for Counting<'_> {
    fn outbound_exact(&self, key: &RuleKey) -> Option<Rule> {
        self.tables.outbound_exact(key)
    }
    fn outbound_prefix(&self, key: &PrefixKey) -> Option<Rule> {
        self.tables.outbound_prefix(key)
    }
    fn inbound(&self, key: &RuleKey) -> Option<Rule> {
        self.tables.inbound(key)
    }
    fn backend(&self, key: &BackendKey) -> Option<Endpoint> {
        self.tables.backend(key)
    }
    fn is_local(&self, addr: &Addr) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.tables.is_local(addr)
    }
    fn random(&self) -> u32 {
        self.tables.random()
    }
    fn owner(&self, key: &OwnerKey) -> bool {
        self.tables.owner(key)
    }
    fn egress(&self, plan: PlanId, dst: &Addr) -> u32 {
        self.tables.egress(plan, dst)
    }
    fn ingress(&self, plan: PlanId, index: u32) -> u32 {
        self.tables.ingress(plan, index)
    }
    fn arrival(&self, client: &Endpoint, server: &Endpoint) -> Arrival {
        self.tables.arrival(client, server)
    }
}

/// The largest number of such questions that an outbound, and an inbound, decision asks.
fn most(node: Node) -> (u32, u32) {
    let compiled = node
        .service(NS, "a", "10.96.0.1", &["http:80"])
        .endpoint(NS, "a", "10.0.0.7")
        .compile();
    let plan = compiled.plan();
    let asked = |ask: &dyn Fn(&Counting<'_>, &PlanHeader)| {
        let counting = Counting {
            tables: MemTables::new(plan, &["10.0.0.1".parse().unwrap()]),
            asked: Cell::new(0),
        };
        ask(&counting, &plan.header);
        counting.asked.get()
    };
    let at = |address: &str| Endpoint::from(address.parse::<SocketAddr>().unwrap());
    let remote = ["10.0.0.1:80", "10.96.0.1:80", "10.0.0.9:99", "127.0.0.1:80"].map(at);
    let (mut outbound, mut inbound) = (0, 0);
    for remote in remote {
        for id in [1000, 1337] {
            let call = OutboundCall {
                dst: remote,
                src: Addr::ANY_V4,
                transport: Transport::Tcp,
                caller: Caller {
                    uid: id,
                    gid: id,
                    in_proxy_cgroup: false,
                },
                bound_device: false,
            };
            outbound = outbound.max(asked(&|tables, header| {
                decide::outbound(tables, 0, header, &call);
            }));
        }
        let call = InboundCall {
            src: remote,
            dst: at("10.0.0.1:8080"),
            interface: 2,
        };
        inbound = inbound.max(asked(&|tables, header| {
            decide::inbound(tables, 0, header, &call);
        }));
    }
    (outbound, inbound)
}

#[test]
fn whether_an_address_is_the_workloads_own_is_looked_up_once() {
    let own = || Node::new("10.0.0.1");
    let excluded = |node: Node| node.annotate(EXCLUDE_INTERFACES.annotation, "net1");
    assert_eq!(most(own().proxied()), (1, 1));
    assert_eq!(most(excluded(own().proxied())), (1, 1));
    let vm = own().proxied();
    let vm = vm.annotate(VIRTUAL_INTERFACES.annotation, "vm+");
    assert_eq!(most(excluded(vm)), (1, 1));
    let tproxy = own().proxied();
    let tproxy = tproxy.annotate(INTERCEPTION_MODE.annotation, "TPROXY");
    assert_eq!(most(excluded(tproxy)), (1, 1));
    // Without a proxy, the rule wants to know.
    assert_eq!(most(own()), (1, 0));
    assert_eq!(most(excluded(own())), (1, 1));
}
