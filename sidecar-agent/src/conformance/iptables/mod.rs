//! `iptables-cases.yaml`: what is captured under the options of `istio-iptables`.

pub mod cases;
pub mod deviations;
