//! The options of istio-iptables in the running kernel, by real iptables and by the agent.

mod differential;
mod iptables;
mod random;
