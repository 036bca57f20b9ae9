//! What has to be set up in a workload's namespace, and is undone when it is no longer wanted: the
//! routing of what is to be delivered here although it is addressed to others, and the address
//! that Istio's proxies pass inbound IPv6 connections on from. No packet filter is involved.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Error, Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        route::{RouteMessage, RouteScope, RouteType},
    },
};
use rustix::io::Errno;

use super::{netlink, read::LO, steering::Steering};
use crate::dataplane::netns::Netns;

/// The table that has everything delivered here; Istio's number.
pub(super) const TABLE: u8 = 133;
/// The mark that a transparent proxy has on its connections to the application; Istio's.
pub(super) const PROXY_MARK: u32 = 1337;
/// Before the rules for the main and default tables (32766, 32767). The next is ours, too.
pub(super) const PRIORITY: u32 = 13_300;
/// Has an accepted socket answer with the mark of what it accepted.
const MARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
/// Where Istio's proxies pass inbound IPv6 connections on from. (127.0.0.6 is local anyway.)
const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// What is set up in a namespace.
#[derive(Debug, Default)]
pub struct Setup {
    steering: BTreeSet<Steering>,
    passthrough_v6: bool,
    /// What the setting was before it was changed.
    mark_accept: Option<String>,
}

impl Setup {
    /// What an earlier agent has set up in a namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or netlink refuses.
    pub fn found(netns: &Netns) -> Result<Self> {
        let steering = netlink::within(netns, async |handle| {
            let mut found = BTreeSet::new();
            for family in [IpVersion::V4, IpVersion::V6] {
                let mut rules = handle.rule().get(family).execute();
                // A family that the kernel does not have has no rules.
                while let Ok(Some(rule)) = rules.try_next().await {
                    found.extend(Steering::of(&rule));
                }
            }
            Ok(found)
        })
        .with_context(|| format!("reading the routing rules of {}", netns.path.display()))?;
        let accepts_marks = steering
            .iter()
            .any(|rule| matches!(rule, Steering::ToTransparentProxy { .. }));
        Ok(Self {
            steering,
            passthrough_v6: false,
            // The kernel's default; what it was before is not known any more.
            mark_accept: accepts_marks.then(|| "0".to_owned()),
        })
    }

    /// What is delivered in the namespace.
    #[must_use]
    pub fn steering(&self) -> &BTreeSet<Steering> {
        &self.steering
    }

    /// Sets up what is wanted, and undoes what no longer is. Returns whether anything had to be done.
    ///
    /// # Errors
    /// If netlink refuses; what was set up is known, and the next call goes on from there.
    pub fn bring_to(
        &mut self,
        netns: &Netns,
        steering: &BTreeSet<Steering>,
        passthrough_v6: bool,
    ) -> Result<bool> {
        if *steering == self.steering && passthrough_v6 == self.passthrough_v6 {
            return Ok(false);
        }
        netlink::within(netns, async |handle| {
            self.change(&handle, steering, passthrough_v6).await
        })
        .with_context(|| {
            format!(
                "setting up the routing of {} (the agent needs CAP_NET_ADMIN)",
                netns.path.display()
            )
        })?;
        Ok(true)
    }

    /// Undoes all of it.
    ///
    /// # Errors
    /// As [`bring_to`](Self::bring_to).
    pub fn undo(&mut self, netns: &Netns) -> Result<()> {
        self.bring_to(netns, &BTreeSet::new(), false).map(drop)
    }

    /// Has this delivered in the namespace, and nothing else.
    ///
    /// # Errors
    /// As [`Setup::bring_to`].
    pub fn steer(&mut self, netns: &Netns, steering: &BTreeSet<Steering>) -> Result<bool> {
        self.bring_to(netns, steering, self.passthrough_v6)
    }

    async fn change(
        &mut self,
        handle: &Handle,
        steering: &BTreeSet<Steering>,
        passthrough_v6: bool,
    ) -> Result<()> {
        let before = self.steering.clone();
        let has = |set: &BTreeSet<Steering>, v4| set.iter().any(|rule| rule.is_v4() == v4);
        for v4 in [true, false] {
            if has(steering, v4) && !has(&before, v4) {
                let added = handle.route().add(everything_here(v4)).execute().await;
                exists_or(added).context("adding a local default route in table 133")?;
            }
        }
        for rule in steering.difference(&before) {
            let mut request = handle.rule().add();
            *request.message_mut() = rule.message();
            let added = request.execute().await;
            exists_or(added).with_context(|| format!("adding a routing rule for {rule:?}"))?;
            self.steering.insert(rule.clone());
        }
        for rule in before.difference(steering) {
            // The interface, or the rule, may have gone by itself.
            let _ = handle.rule().del(rule.message()).execute().await;
            self.steering.remove(rule);
        }
        for v4 in [true, false] {
            if has(&before, v4) && !has(steering, v4) {
                let _ = handle.route().del(everything_here(v4)).execute().await;
            }
        }
        self.accept_marks(
            steering
                .iter()
                .any(|rule| matches!(rule, Steering::ToTransparentProxy { .. })),
        )?;
        if passthrough_v6 && !self.passthrough_v6 {
            let mut request = handle.address().add(LO, PASSTHROUGH_V6.into(), 128);
            // Of use at once: otherwise it is looked for duplicates first, and a proxy that is called
            // meanwhile cannot bind it.
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(nodad);
            exists_or(request.execute().await).context("adding ::6 to lo")?;
        }
        // Not taken away again: a proxy may have it in use, and it is nobody else's.
        self.passthrough_v6 = passthrough_v6;
        Ok(())
    }

    fn accept_marks(&mut self, wanted: bool) -> Result<()> {
        match (wanted, self.mark_accept.take()) {
            (true, None) => {
                let before =
                    fs::read_to_string(MARK_ACCEPT).context("reading tcp_fwmark_accept")?;
                set_mark_accept("1").context("setting tcp_fwmark_accept")?;
                self.mark_accept = Some(before);
            }
            (true, before) => self.mark_accept = before,
            (false, Some(before)) => {
                set_mark_accept(before.trim()).context("resetting tcp_fwmark_accept")?;
            }
            (false, None) => {}
        }
        Ok(())
    }
}

/// In a container `/proc/sys` is read-only; the chart mounts the node's beside it. Either way it is
/// that of the namespace we are in.
fn set_mark_accept(value: &str) -> io::Result<()> {
    match fs::write(MARK_ACCEPT, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            fs::write(format!("/host{MARK_ACCEPT}"), value)
        }
        other => other,
    }
}

/// `local default dev lo table 133`.
fn everything_here(v4: bool) -> RouteMessage {
    let mut route = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(LO)
            .build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(LO)
            .build()
    };
    route.header.table = TABLE;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route
}

/// What is there already need not be added.
fn exists_or(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NetlinkError(error)) if error.raw_code() == -Errno::EXIST.raw_os_error() => {
            Ok(())
        }
        other => other,
    }
}
