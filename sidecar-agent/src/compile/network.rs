//! The interfaces of a workload's network namespace, as far as they decide anything.

use std::net::IpAddr;

use ipnet::IpNet;

/// The interfaces of a network namespace, beside the loopback one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network(pub Vec<NetworkInterface>);

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkInterface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: Vec<IpNet>,
    /// Further networks that are reached by it.
    pub routes: Vec<IpNet>,
}

impl Network {
    /// The name of the loopback interface.
    pub const LOOPBACK: &str = "lo";

    /// All addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0
            .iter()
            .flat_map(|interface| &interface.addresses)
            .map(IpNet::addr)
    }

    /// The name of the interface with this index.
    #[must_use]
    pub fn name(&self, index: u32) -> Option<&str> {
        let mut interfaces = self.0.iter();
        let found = interfaces.find(|interface| interface.index == index)?;
        Some(&found.name)
    }

    /// The index of the interface of this name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u32> {
        let mut interfaces = self.0.iter();
        Some(interfaces.find(|interface| interface.name == name)?.index)
    }

    /// The name of the interface by which an address is reached that is not the workload's own.
    #[must_use]
    pub fn towards(&self, dst: IpAddr) -> Option<&str> {
        Some(&self.route(dst)?.name)
    }

    /// Where connections to `dst` come from, unless they are bound: the address itself if it is the
    /// workload's own or loopback, else that of the interface that leads there.
    #[must_use]
    pub fn source(&self, dst: IpAddr) -> Option<IpAddr> {
        if dst.is_loopback() {
            let v4 = IpAddr::from([127, 0, 0, 1]);
            return Some(if dst.is_ipv4() { v4 } else { dst });
        }
        if self.addresses().any(|own| own == dst) {
            return Some(dst);
        }
        let addresses = &self.route(dst)?.addresses;
        let mut own = addresses.iter().map(IpNet::addr);
        own.find(|own| own.is_ipv4() == dst.is_ipv4())
    }

    fn route(&self, dst: IpAddr) -> Option<&NetworkInterface> {
        self.0
            .iter()
            .flat_map(|interface| {
                let nets = interface.addresses.iter().chain(&interface.routes);
                nets.map(move |net| (net, interface))
            })
            .filter(|(net, _)| net.contains(&dst))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, interface)| interface)
    }
}
