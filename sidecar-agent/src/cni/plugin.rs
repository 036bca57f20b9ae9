//! The plugin, as a container runtime runs it: what is to be done in the environment, the
//! configuration on standard input, the result on standard output.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    args,
    config::{Absent, Config, Settings, VERSIONS},
    error::{Code, Error, Result},
    wire::{self, PodRef, Reply, Request, socket_path},
};

/// Longest configuration.
const CONFIG_BYTES: u64 = 1024 * 1024;
/// When an agent that does not answer is looked for again.
const RETRY: Duration = Duration::from_millis(100);
/// How long the agent may take to answer what needs no waiting, and beyond the patience that it was
/// asked for.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a container runtime runs this program, which gives it no arguments.
#[must_use]
pub fn is_wanted() -> bool {
    env::args_os().len() == 1 && env::var_os("CNI_COMMAND").is_some()
}

/// Does what the environment says.
#[must_use]
pub fn run() -> ExitCode {
    let command = env::var("CNI_COMMAND").unwrap_or_default();
    let mut text = Vec::new();
    let read = io::stdin().take(CONFIG_BYTES).read_to_end(&mut text);
    let config = match read {
        Ok(_) => Config::read(&text),
        Err(error) => Err(Error::new(Code::Io, format!("standard input: {error}"))),
    };
    let version = config
        .as_ref()
        .map_or("1.0.0", |config| &config.cni_version)
        .to_owned();
    let printed = match (command.as_str(), config) {
        ("VERSION", _) => Ok(Some(versions())),
        // Whatever is wrong, what is being removed must not stay for it.
        ("DEL", config) => {
            if let Ok(config) = config {
                del(&config.settings);
            }
            Ok(None)
        }
        (_, Err(error)) => Err(error),
        ("ADD", Ok(config)) => add(&config).map(Some),
        ("CHECK", Ok(config)) => check(&config).map(|()| None),
        // There is nothing of ours outside the agent. And that the agent is away is no reason to take
        // the node for unready: then neither could the pods start that need no agent.
        ("GC" | "STATUS", Ok(_)) => Ok(None),
        (other, Ok(_)) => Err(Error::new(
            Code::InvalidEnvironment,
            format!("CNI_COMMAND {other:?} is not known"),
        )),
    };
    let (text, code) = match printed {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(&version)), ExitCode::FAILURE),
    };
    if let Some(text) = text {
        // Who does not listen any more has decided already.
        let _ = writeln!(io::stdout(), "{text}");
    }
    code
}

fn versions() -> String {
    json!({"cniVersion": VERSIONS.last(), "supportedVersions": VERSIONS}).to_string()
}

/// The pod, unless it is none that the agent is to be asked about.
fn pod(settings: &Settings) -> Result<Option<PodRef>> {
    let pod = args::pod(&env::var("CNI_ARGS").unwrap_or_default())?;
    Ok(pod.filter(|pod| !settings.exclude_namespaces.contains(&pod.namespace)))
}

fn open_netns() -> Result<File> {
    let path = env::var_os("CNI_NETNS")
        .filter(|path| !path.is_empty())
        .ok_or_else(|| Error::new(Code::InvalidEnvironment, "CNI_NETNS is missing"))?;
    File::open(&path).map_err(|error| {
        let path = path.display();
        Error::new(
            Code::Io,
            format!("opening the network namespace {path}: {error}"),
        )
    })
}

fn add(config: &Config) -> Result<String> {
    let previous = config.previous()?;
    let passed_on = previous.text.get().to_owned();
    let Some(pod) = pod(&config.settings)? else {
        return Ok(passed_on);
    };
    let netns = open_netns()?;
    let settings = &config.settings;
    let deadline = Instant::now() + settings.timeout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = Request::Add {
            pod: pod.clone(),
            addresses: previous.addresses.clone(),
            patience: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let why = match ask(settings, &request, Some(&netns), left + GRACE) {
            Ok(Reply::InForce | Reply::Left(_)) => return Ok(passed_on),
            Ok(Reply::NotYet(why)) => {
                return not_captured(settings, &pod, &why).map(|()| passed_on);
            }
            Ok(other) => format!("the agent has answered {other:?}"),
            Err(error) => {
                let path = socket_path(&settings.run_dir);
                format!("no agent answers at {}: {error}", path.display())
            }
        };
        if settings.agent_absent != Absent::Wait || left.is_zero() {
            return not_captured(settings, &pod, &why).map(|()| passed_on);
        }
        sleep(RETRY.min(left));
    }
}

/// Capture is not in force: whether the pod may start all the same.
fn not_captured(settings: &Settings, pod: &PodRef, why: &str) -> Result<()> {
    let PodRef {
        namespace, name, ..
    } = pod;
    let message = format!("traffic of pod {namespace}/{name} is not captured: {why}");
    if settings.agent_absent == Absent::Allow {
        eprintln!("sidecar-agent: {message}; it starts all the same (agentAbsent: allow)");
        return Ok(());
    }
    Err(Error::new(
        Code::TryAgain,
        format!("{message}; kubelet tries again (agentAbsent in the CNI configuration)"),
    ))
}

fn check(config: &Config) -> Result<()> {
    let Some(pod) = pod(&config.settings)? else {
        return Ok(());
    };
    match ask(&config.settings, &Request::Check { pod }, None, GRACE) {
        Ok(Reply::NotYet(why)) => Err(Error::new(Code::NotCaptured, why)),
        // What is captured stays so without an agent.
        _ => Ok(()),
    }
}

fn del(settings: &Settings) {
    let Ok(Some(pod)) = pod(settings) else {
        return;
    };
    let netns = open_netns().ok();
    // The agent finds out by itself as well.
    let _ = ask(settings, &Request::Del { pod }, netns.as_ref(), GRACE);
}

fn ask(
    settings: &Settings,
    request: &Request,
    netns: Option<&File>,
    patience: Duration,
) -> io::Result<Reply> {
    let stream = UnixStream::connect(socket_path(&settings.run_dir))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(GRACE))?;
    wire::send(&stream, request, netns.map(File::as_fd))?;
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    BufReader::new(stream)
        .take(CONFIG_BYTES)
        .read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::other("it has ended without an answer"));
    }
    Ok(serde_json::from_str(&line)?)
}
