//! What the agent tells about itself.

pub mod admin;
pub mod status;
