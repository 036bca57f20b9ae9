//! The plugin's configuration, which comes on standard input with the result of the plugins before.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::{Code, Error, Result};

/// Versions of the specification; those before these know no chains.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What becomes of a pod while no agent answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Absent {
    /// It waits for the agent, `timeoutSeconds` at most; then its sandbox fails, and kubelet tries
    /// again.
    #[default]
    Wait,
    /// Its sandbox fails at once, and kubelet tries again.
    Fail,
    /// It starts, and passes until an agent finds it.
    Allow,
}

/// What is written in the list of plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The agent's directory of sockets.
    pub run_dir: PathBuf,
    /// What becomes of a pod while no agent answers.
    pub agent_absent: Absent,
    /// How long a pod waits for the agent, and for its capture to be in force.
    pub timeout_seconds: u64,
    /// Namespaces whose pods never wait for the agent.
    pub exclude_namespaces: BTreeSet<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run_dir: Path::new("/run/sidecar-agent").to_owned(),
            agent_absent: Absent::default(),
            timeout_seconds: 30,
            exclude_namespaces: ["kube-system".to_owned()].into(),
        }
    }
}

impl Settings {
    /// How long a pod waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

/// One call's configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The version of the specification that everything is in.
    #[serde(default)]
    pub cni_version: String,
    /// Ours.
    #[serde(flatten)]
    pub settings: Settings,
    /// What the plugins before have made.
    #[serde(skip)]
    pub previous: Option<Previous>,
}

/// The result of the plugins before.
#[derive(Debug)]
pub struct Previous {
    /// As it came: it is passed on.
    pub text: Box<RawValue>,
    /// The addresses in the pod's network namespace.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct OfPrevious {
    #[serde(rename = "prevResult")]
    previous: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    interface: Option<usize>,
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// If it is no JSON, of a version that is not supported, or says what cannot be.
    pub fn read(text: &[u8]) -> Result<Self> {
        let decoding = |error: &serde_json::Error| {
            let code = if error.is_data() {
                Code::InvalidConfig
            } else {
                Code::Decoding
            };
            Error::new(
                code,
                format!("the configuration on standard input: {error}"),
            )
        };
        let mut config: Self = serde_json::from_slice(text).map_err(|error| decoding(&error))?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            let message = format!(
                "cniVersion {:?} is not supported; write one of {}",
                config.cni_version,
                VERSIONS.join(", ")
            );
            return Err(Error::new(Code::IncompatibleVersion, message));
        }
        let OfPrevious { previous } =
            serde_json::from_slice(text).map_err(|error| decoding(&error))?;
        config.previous = previous.map(Previous::read).transpose()?;
        Ok(config)
    }

    /// What the plugins before have made.
    ///
    /// # Errors
    /// If there are none.
    pub fn previous(&self) -> Result<&Previous> {
        self.previous.as_ref().ok_or_else(|| {
            let message = "there is no prevResult: this plugin makes no network; put it behind one \
                           that does, in the same list of plugins";
            Error::new(Code::InvalidConfig, message)
        })
    }
}

impl Previous {
    fn read(text: Box<RawValue>) -> Result<Self> {
        let made: Made = serde_json::from_str(text.get())
            .map_err(|error| Error::new(Code::InvalidConfig, format!("prevResult: {error}")))?;
        let in_pod = |ip: &&Ip| {
            let interface = ip.interface.and_then(|at| made.interfaces.get(at));
            interface.is_none_or(|interface| !interface.sandbox.is_empty())
        };
        let ips = made.ips.iter().filter(in_pod);
        Ok(Self {
            addresses: ips.map(|ip| ip.address.addr().to_canonical()).collect(),
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_sends() {
        let text = r#"{
            "cniVersion": "1.0.0", "name": "k8s", "type": "sidecar-agent",
            "agentAbsent": "allow", "timeoutSeconds": 5, "runtimeConfig": {"x": 1},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
                "ips": [
                    {"address": "10.1.0.1/24", "interface": 0},
                    {"address": "10.1.0.2/24", "interface": 1, "gateway": "10.1.0.1"},
                    {"address": "fd00::2/64"}
                ],
                "dns": {}
            }
        }"#;
        let config = Config::read(text.as_bytes()).unwrap();
        assert_eq!(config.settings.agent_absent, Absent::Allow);
        assert_eq!(config.settings.timeout(), Duration::from_secs(5));
        assert_eq!(config.settings.run_dir, Settings::default().run_dir);
        let previous = config.previous().unwrap();
        let ips: Vec<IpAddr> = ["10.1.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(previous.addresses, ips);
        let passed_on: serde_json::Value = serde_json::from_str(previous.text.get()).unwrap();
        let came: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(passed_on, came["prevResult"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_code() {
        for (text, code) in [
            ("{", Code::Decoding),
            ("[]", Code::InvalidConfig),
            ("{}", Code::IncompatibleVersion),
            (r#"{"cniVersion":"0.2.0"}"#, Code::IncompatibleVersion),
            (
                r#"{"cniVersion":"1.0.0","agentAbsent":"hope"}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","timeoutSeconds":-1}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"x"}]}}"#,
                Code::InvalidConfig,
            ),
        ] {
            assert_eq!(
                Config::read(text.as_bytes()).unwrap_err().code,
                code,
                "{text}"
            );
        }
        let alone = Config::read(br#"{"cniVersion":"0.3.1"}"#).unwrap();
        assert_eq!(alone.previous().unwrap_err().code, Code::InvalidConfig);
    }
}
