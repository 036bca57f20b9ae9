//! The compiled tables decide as the naive walk over everything does.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use crate::{
    config,
    generate::{self, Pick},
    naive::{self, Call},
    subject,
};

proptest! {
    #![proptest_config(config(900))]

    #[test]
    fn compiled_decisions_are_the_naive_ones(world in generate::world(), picks in generate::picks()) {
        let snapshot = subject::snapshot(&world)?;
        let services = naive::services(&snapshot);
        let (ips, ports) = generate::interesting();
        let node = subject::plans(&snapshot);
        for planned in &node.workloads {
            let workload = naive::Workload::of(&snapshot, planned);
            for pick in &picks {
                let Pick { inbound, bound, uid, gid, udp, interface, ip, port, src, mapped } = pick;
                let ip = *ip.get(&ips);
                let dst = SocketAddr::new(if *mapped { to_mapped(ip) } else { ip }, *port.get(&ports));
                let src = *src.get(&ips);
                let call = Call {
                    dst,
                    src: bound.then_some(src),
                    uid: *uid,
                    gid: *gid,
                    udp: *udp,
                    interface: *interface,
                };
                let expected = if *inbound {
                    naive::inbound(&snapshot, &services, &workload, src, dst, *interface)
                } else {
                    naive::outbound(&snapshot, &services, &workload, &call)
                };
                let decided = subject::decide(planned, *inbound, src, &call);
                prop_assert!(
                    expected.is(&decided),
                    "{}: {} from {}: {:?}\ndecided  {:?}\nexpected {:?}",
                    planned.workload, dst, src, pick, decided, expected
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
