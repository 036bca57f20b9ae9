//! What the agent tells about itself.

pub mod admin;
pub mod events;
pub mod health;
pub mod http;
pub mod listeners;
pub mod metrics;
pub mod status;
pub mod trace;
