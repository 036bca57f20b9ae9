//! The agent on a cluster's node: real containers, real CNI plugins.

mod cni;
mod pods;
