//! Errors as a runtime understands them.

use std::fmt;

use serde::Serialize;

/// Error codes of the CNI specification, and our own from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is none that is supported.
    IncompatibleVersion = 1,
    /// An environment variable is missing, or cannot be understood.
    InvalidEnvironment = 4,
    /// Something could not be read.
    Io = 5,
    /// What came on standard input is no JSON.
    Decoding = 6,
    /// The configuration says what cannot be.
    InvalidConfig = 7,
    /// The runtime is to try again.
    TryAgain = 11,
    /// `CHECK`: the pod is not captured.
    NotCaptured = 100,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// A result of the plugin.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of that code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// As it is printed, for a configuration of that version.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
        }
        let printed = Printed {
            cni_version: version,
            code: self.code as u32,
            msg: &self.message,
        };
        serde_json::to_string(&printed).unwrap_or_default()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (CNI error {})", self.message, self.code as u32)
    }
}

impl std::error::Error for Error {}
