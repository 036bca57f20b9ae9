//! What is delivered: the Helm chart and what it renders, by a real helm, and the image, by a real
//! container runtime.

mod agreement;
mod chart;
mod documents;
mod image;
mod podman;
mod server;
