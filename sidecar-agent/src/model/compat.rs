//! Which release of Istio says what is valid.

/// Compatibility with an older Istio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compat {
    /// None: the current Istio decides.
    #[default]
    Current,
    /// Also accept, with a warning, what Istio 1.0 described and current Istio refuses: ingress
    /// listeners on unix sockets (port 0).
    #[value(name = "istio-1.0")]
    Istio1_0,
}
