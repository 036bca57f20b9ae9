//! What becomes of a workload's connections when something fails: open, they pass; closed, they are
//! refused.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer, ser::SerializeMap};

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// The proxy does not listen.
    ProxyGone,
    /// The plan cannot be put in force, and there is none from before; or the kernel has no memory
    /// for a connection.
    MapFull,
    /// What the kernel has of the plan is not complete.
    UnknownWorkload,
    /// No target of a relayed connection can be connected.
    RelayTargetGone,
}

/// A case, for whoever writes or reads a policy.
#[derive(Debug)]
pub struct About {
    /// The case.
    pub case: Case,
    /// Its name in a policy.
    pub name: &'static str,
    /// When it is one.
    pub when: &'static str,
    /// What becomes of connections where it is closed.
    pub closed: &'static str,
    /// What becomes of connections where it is open.
    pub open: &'static str,
    /// What neither changes.
    pub limits: &'static str,
}

/// Every case, in the order of [`Case`].
pub const CASES: &[About; 4] = &[
    About {
        case: Case::ProxyGone,
        name: "proxy-gone",
        when: "A connection was to be led to a port of the proxy's, and nobody listens there. For \
               inbound ones: no listening socket of the workload's own that the agent knows. Asked \
               anew for each connection, so that the proxy gets the next one as soon as it listens.",
        closed: "Outbound: connect fails with `ECONNREFUSED`. Inbound: it is reset \
                 (`target-not-listening`). DNS by UDP: the query is refused, so that no resolver has \
                 to wait.",
        open: "It goes where it was going, untouched; an inbound one to the application; a DNS query \
               to the server it was sent to (`proxy-gone`).",
        limits: "A connected UDP socket stays with what was found when it was connected. What \
                 arrives by a virtual interface was going elsewhere and cannot get there from here: \
                 it is refused all the same (by IPv6 with a reset; by IPv4 the kernel sends none \
                 from an address that is not its own, so that the caller waits). A proxy that listens but does not accept is there. Of several \
                 listeners that share one port, when the one that came last closes, inbound \
                 connections may take the others for gone for up to a second.",
    },
    About {
        case: Case::MapFull,
        name: "map-full",
        when: "The workload's plan does not fit into the maps, or cannot be put in force for another \
               cause (its relay cannot be opened, ...), and none of it was in force before. Also: \
               the kernel has no memory to remember where a connection was going.",
        closed: "Everything new of the workload is refused (`map-full`), in both directions, \
                 whatever its settings exempt; but not its calls to itself, nor those of its proxy, \
                 nor UDP other than captured DNS. What cannot be remembered is refused \
                 (`no-memory`).",
        open: "Everything of the workload passes, and nothing is counted. What cannot be remembered \
               passes (`no-memory-open`).",
        limits: "A plan that was in force stays so, whatever the policy. To refuse takes no room in \
                 the tables of rules: one entry for each workload is set aside when it is attached. \
                 By that a proxy is known by its cgroup, and its first user and group only. A \
                 workload that cannot even be attached (all slots in use, its cgroup not there) \
                 passes, unless it is attached from before. An entry of `ORIGINAL_DST` that cannot be written is noticed too late for \
                 both: the proxy is not told where the connection was going.",
    },
    About {
        case: Case::UnknownWorkload,
        name: "unknown-workload",
        when: "The workload is attached, but what it follows is not in the maps: its plan, or the \
               backend that a rule leads to. Without a defect this takes somebody who changes the \
               maps.",
        closed: "It is refused (`plan-incomplete`).",
        open: "It passes (`plan-incomplete-open`).",
        limits: "UDP passes where the plan is missing. Until the first plan of a workload is in \
                 force, a moment after it was attached, everything passes, as it did before. A \
                 workload whose Sidecar was never valid follows Istio's built-in default, as one \
                 without a Sidecar; one whose files are not valid any more follows its last valid \
                 plan, also when the agent restarts.",
    },
    About {
        case: Case::RelayTargetGone,
        name: "relay-target-gone",
        when: "The relay has accepted a connection, and none of its targets can be connected.",
        closed: "It is reset, as soon as the last target has refused, or has not answered in time.",
        open: "Outbound: the relay connects to where it was going. If that fails too, it is reset.",
        limits: "Inbound connections, and those to a unix socket of the relay's, have no other place \
                 to go: they are reset. The connection that the relay makes comes from the \
                 workload's network namespace, and is not captured.",
    },
];

impl Case {
    /// Its name in a policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        CASES[self as usize].name
    }
}

/// What a policy says of one case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// Connections are refused.
    #[default]
    Closed,
    /// Connections pass.
    Open,
}

impl Action {
    /// Its name in a policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }

    fn named(text: &str) -> Option<Self> {
        [Self::Closed, Self::Open]
            .into_iter()
            .find(|action| action.name() == text)
    }
}

/// What it says of each case. By default, all are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailurePolicy([Action; CASES.len()]);

/// What can be written, for people.
pub const EXPECTED: &str = "`open` or `closed` for all cases, or a list such as \
                            proxy-gone=open,relay-target-gone=closed (also map-full, \
                            unknown-workload)";

impl FailurePolicy {
    /// What it says of a case.
    #[must_use]
    pub const fn of(&self, case: Case) -> Action {
        self.0[case as usize]
    }

    /// Whether a case is open.
    #[must_use]
    pub fn is_open(&self, case: Case) -> bool {
        self.of(case) == Action::Open
    }

    /// This policy, less what `text` says otherwise: elements separated by commas, each `case=action`,
    /// or an action for all that no other element names. Empty elements are tolerated.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn but(self, text: &str) -> Result<Self, String> {
        let mut for_all = None;
        let mut single: [Option<Action>; CASES.len()] = [None; CASES.len()];
        for element in super::settings::elements(text) {
            let (place, action) = match element.split_once('=') {
                None => (&mut for_all, element),
                Some((name, action)) => {
                    let name = name.trim();
                    let Some(about) = CASES.iter().find(|about| about.name == name) else {
                        let names = CASES.each_ref().map(|about| about.name).join(", ");
                        return Err(format!("`{name}` is none of {names}"));
                    };
                    (&mut single[about.case as usize], action.trim())
                }
            };
            let Some(action) = Action::named(action) else {
                return Err(format!("`{action}` is neither `open` nor `closed`"));
            };
            if place.replace(action).is_some() {
                return Err(format!("`{element}`: that was said before"));
            }
        }
        let mut policy = self;
        for (action, one) in policy.0.iter_mut().zip(single) {
            *action = one.or(for_all).unwrap_or(*action);
        }
        Ok(policy)
    }
}

impl FromStr for FailurePolicy {
    type Err = String;

    /// As [`FailurePolicy::but`], of the default.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::default().but(text)
    }
}

impl fmt::Display for FailurePolicy {
    /// As it can be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, About { case, name, .. }) in CASES.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{name}={}", self.of(*case).name())?;
        }
        Ok(())
    }
}

impl Serialize for FailurePolicy {
    /// A map of cases to actions.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(CASES.len()))?;
        for About { case, name, .. } in CASES {
            map.serialize_entry(name, self.of(*case).name())?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_cases() {
        for (number, about) in CASES.iter().enumerate() {
            assert_eq!(about.case as usize, number, "{}", about.name);
        }
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        let open = |text: &str| {
            let policy: FailurePolicy = text.parse().unwrap();
            assert_eq!(policy.to_string().parse(), Ok(policy), "{text}");
            CASES.each_ref().map(|about| policy.is_open(about.case))
        };
        assert_eq!(open(""), [false; 4]);
        assert_eq!(open("closed"), [false; 4]);
        assert_eq!(open(" open , "), [true; 4]);
        assert_eq!(open("proxy-gone=open"), [true, false, false, false]);
        // The order does not matter.
        for text in ["open,map-full=closed", "map-full = closed , open"] {
            assert_eq!(open(text), [true, false, true, true], "{text}");
        }
        let node: FailurePolicy = "open".parse().unwrap();
        let workload = node.but("relay-target-gone=closed").unwrap();
        assert!(workload.is_open(Case::UnknownWorkload));
        assert!(!workload.is_open(Case::RelayTargetGone));
    }

    #[test]
    fn what_cannot_be_meant() {
        for (text, cause) in [
            ("proxy=open", "none of proxy-gone"),
            ("proxy-gone", "neither"),
            ("proxy-gone=", "neither"),
            ("proxy-gone=yes", "neither"),
            ("Open", "neither"),
            ("open,closed", "before"),
            ("map-full=open,map-full=open", "before"),
        ] {
            let error = text.parse::<FailurePolicy>().unwrap_err();
            assert!(error.contains(cause), "{text}: {error}");
        }
    }
}
