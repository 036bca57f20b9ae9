//! The compiled tables decide as the naive walk over everything does.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use crate::{
    config,
    generate::{self, Pick},
    naive, subject,
};

proptest! {
    #![proptest_config(config(900))]

    #[test]
    #[ignore = "the naive implementation does not know owners, interfaces, DNS and IPv6 off"]
    fn compiled_decisions_are_the_naive_ones(world in generate::world(), picks in generate::picks()) {
        let snapshot = subject::snapshot(&world)?;
        let services = naive::services(&snapshot);
        let (ips, ports) = generate::interesting();
        let node = subject::plans(&snapshot);
        for planned in &node.workloads {
            let workload = naive::Workload::of(&snapshot, planned);
            for Pick { inbound, from_proxy, ip, port, src, mapped } in &picks {
                let ip = *ip.get(&ips);
                let dst = SocketAddr::new(if *mapped { to_mapped(ip) } else { ip }, *port.get(&ports));
                let src = *src.get(&ips);
                let expected = if *inbound {
                    naive::inbound(&snapshot, &services, &workload, src, dst)
                } else {
                    naive::outbound(&snapshot, &services, &workload, dst, *from_proxy)
                };
                let decided = subject::decide(planned, *inbound, src, dst, *from_proxy);
                prop_assert_eq!(
                    decided, expected,
                    "{} {}: {} from {}, proxy: {}",
                    planned.workload, if *inbound { "inbound" } else { "outbound" }, dst, src, from_proxy
                );
            }
        }
    }
}

fn to_mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(_) => ip,
    }
}
