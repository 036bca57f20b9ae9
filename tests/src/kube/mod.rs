//! A real API server: etcd and kube-apiserver on a loopback address of their own, asked by kubectl.

mod assets;
mod process;
mod server;

pub use assets::Assets;
pub use server::{AT_ONCE, ApiServer, patiently};

/// Skips the running test unless it is root's and there is an API server.
#[macro_export]
macro_rules! require_kube {
    () => {
        $crate::require_root!();
        if let Err(error) = $crate::kube::Assets::find() {
            $crate::skip!("API server: {error:#}");
        }
    };
}
