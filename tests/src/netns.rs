//! Network namespaces.

use std::{
    fs::{self, File},
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
    thread,
};

use anyhow::Context as _;
use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    cleanup::{self, Cleanup},
    command::output,
    names,
};

/// Where `ip netns` keeps namespaces, as bind mounts of `/proc/PID/ns/net`.
const DIR: &str = "/run/netns";

/// A network namespace of its own, with the loopback interface up and nothing else. Removed when
/// dropped; it lives on while a process is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    _cleanup: Cleanup,
}

impl Namespace {
    /// Makes a namespace; `label` ends its name, for who looks at a test that hangs.
    ///
    /// # Errors
    /// When `ip` fails: mostly for want of root.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        Self::make(label, "add", &[])
    }

    /// The namespace that a process is in, which has made it for itself.
    ///
    /// # Errors
    /// When `ip` fails: mostly for want of root, or of the process.
    pub fn of_process(label: &str, pid: u32) -> anyhow::Result<Self> {
        Self::make(label, "attach", &[&pid.to_string()])
    }

    fn make(label: &str, verb: &str, more: &[&str]) -> anyhow::Result<Self> {
        remove_orphans();
        let name = names::unique(label);
        output(Command::new("ip").args(["netns", verb, &name]).args(more))?;
        let cleanup = cleanup::on_drop({
            let name = name.clone();
            move || remove(&name)
        });
        let path = Path::new(DIR).join(&name);
        let namespace = Self {
            name,
            path,
            _cleanup: cleanup,
        };
        // An address is of use at once: no looking for duplicates (DAD).
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, for `ip -n`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that names it, for `setns(2)`, `nsenter --net=` and the agent.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its inode number, which is how the kernel tells namespaces apart.
    ///
    /// # Errors
    /// When it was removed behind our back.
    pub fn inode(&self) -> anyhow::Result<u64> {
        let metadata = fs::metadata(&self.path)
            .with_context(|| format!("cannot look at {}", self.path.display()))?;
        Ok(metadata.ino())
    }

    /// Runs a closure in a thread of its own that has entered the namespace, so that sockets it
    /// opens are in there. For `/proc/net` the closure wants `/proc/thread-self/net`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When the closure does.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        run_in(&self.path, closure)
    }

    /// Runs `ip` on the namespace; `args` are separated by blanks: `link set eth0 mtu 1400`.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        output(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(args.split_whitespace()),
        )
    }

    /// Adds an address to an interface.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_address(&self, interface: &str, address: IpNet) -> anyhow::Result<()> {
        let nodad = if address.addr().is_ipv6() {
            " nodad"
        } else {
            ""
        };
        self.ip(&format!("address add {address} dev {interface}{nodad}"))?;
        Ok(())
    }

    /// Makes every address of `net` a local one (`AnyIP`): what listens on a wildcard answers at
    /// all of them.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_local(&self, net: IpNet) -> anyhow::Result<()> {
        self.add_route(&format!("local {net} dev lo"))
    }

    /// Adds a route, in the words of `ip route`.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_route(&self, route: &str) -> anyhow::Result<()> {
        // ip tells the family from a prefix, but not from `default`.
        let gateway = route
            .split_whitespace()
            .skip_while(|word| *word != "via")
            .nth(1);
        let v6 = gateway.is_some_and(|via| via.parse::<IpAddr>().is_ok_and(|via| via.is_ipv6()));
        let family = if v6 { "-6 " } else { "" };
        self.ip(&format!("{family}route add {route}"))?;
        Ok(())
    }

    /// Sets a kernel parameter of the namespace: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such parameter, or it does not take the value.
    pub fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys").join(name);
        // The kernel shows each thread the parameters of the namespace that the thread is in.
        self.run(|| {
            fs::write(&path, value)
                .with_context(|| format!("cannot set {} to {value}", path.display()))
        })?
    }
}

/// As [`Namespace::run`], in a namespace that is known by its path.
pub(crate) fn run_in<T: Send>(
    path: &Path,
    closure: impl FnOnce() -> T + Send,
) -> anyhow::Result<T> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {}", path.display()))?;
            Ok(closure())
        });
        entered
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn remove(name: &str) {
    if let Err(error) = output(Command::new("ip").args(["netns", "delete", name])) {
        eprintln!("left behind: {error:#}");
    }
}

/// Removes, once in a process, what test runs that were killed have left.
fn remove_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(remove_all_orphans);
}

pub(crate) fn remove_all_orphans() {
    for name in names::orphans(Path::new(DIR)) {
        // Another test run may be at it as well.
        let _ = output(Command::new("ip").args(["netns", "delete", &name]));
    }
}
