//! The relay engine, over loopback and unix sockets of its own.

mod bytes;
mod dialing;
mod ends;
mod life;
mod listening;
mod namespaces;
mod support;
