//! Decisions, live: from the kernel's ring to whoever asks over the admin socket.
//!
//! Programs tell only while somebody listens. One task reads the ring, gives each decision its names
//! ([`Directory`]) and hands it to the clients whose [`Filter`] it passes. Every queue on the way is
//! bounded; what does not fit is counted, and nobody waits for anybody.

mod directory;
mod filter;
mod hub;
mod record;
mod stream;

pub use directory::Directory;
pub use filter::Filter;
pub use hub::{Hub, Lost};
pub use record::{Record, Resource};
pub use stream::{Line, serve};
