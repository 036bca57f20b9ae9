//! What the agent tells about itself.

mod health;
mod logs;
mod metrics;
mod top;
mod trace;
