//! A real, unmodified Envoy behind our capture, as a sidecar: the agent as users run it, Envoy as
//! user 1337 without a capability, in the workload's namespace. Where it matters that it is not only
//! Envoy, also a real `HAProxy`.

mod accelerated;
mod conntrack;
mod fixture;
mod inbound;
mod life;
mod loops;
mod none;
mod outbound;
mod transparent;
mod userns;
