//! What a workload can do against its capture, and against that of others: nothing. Each attack is
//! made for real, by a process in the workload's cgroup and network namespace.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    process::Command,
};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use serde_json::{Value, json};
use sidecar_tests::{
    Cgroup, Client, DEADLINE, Namespace, Place, Server, command::output, lab::Lab,
    poll::poll_result, require_root,
};

use crate::fixture::registry_only;

const SCRIPT: &str = include_str!("../src/attack.py");

/// The attacker's user, unless it is another.
const USER: u32 = 1000;

/// What is not reached by the workload.
const SECRET: &str = "10.96.0.4:9080";

/// `setpriv` for an ordinary user that has `CAP_NET_ADMIN` over the workload's network.
const NET_ADMIN: &[&str] = &[
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=+net_admin",
    "--ambient-caps=+net_admin",
    "--",
];

/// The lab, and what an attacker wants.
struct Scene {
    lab: Lab,
    /// Another workload's.
    _other: (Cgroup, Namespace),
    target: Value,
}

impl Scene {
    fn new(mut lab: Lab) -> anyhow::Result<Self> {
        lab.start_agent()?;
        let agent = lab.agent()?;
        // Nothing but their own permissions is to protect them.
        let run_dir = agent.run_dir();
        let dir = run_dir.parent().context("no directory")?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        // The workload rules its cgroup, as a container with cgroups of its own does.
        let cgroup = lab.cgroup().path();
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(cgroup.join(file), Some(USER), Some(USER))?;
        }
        let other = Cgroup::new("other")?;
        let netns = Namespace::new("other")?;
        let mut target = ids()?;
        for (name, path) in [
            ("cgroup", cgroup.to_owned()),
            ("root", Cgroup::root()?),
            ("other", other.path().to_owned()),
            ("netns", netns.path().to_owned()),
            ("pins", agent.bpffs().join("sidecar-agent")),
            ("admin", run_dir.join("admin.sock")),
        ] {
            target[name] = json!(path);
        }
        target["secret"] = json!(["10.96.0.4", 9080]);
        Ok(Self {
            lab,
            _other: (other, netns),
            target,
        })
    }

    /// What came of each attack.
    fn attacked(
        &self,
        user: Option<u32>,
        words: &[&str],
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let mut place = self.lab.inside();
        if let Some(user) = user {
            place = place.user(user, user);
        }
        let (first, rest) = words.split_first().unwrap_or((&"env", &[]));
        let target = self.target.to_string();
        let text = output(
            place
                .command(first)
                .args(rest)
                .args(["python3", "-c", SCRIPT, &target])
                // Where every user may look for it.
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .current_dir("/"),
        )?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Capture is as it was.
    fn stands(&self) -> anyhow::Result<()> {
        let reaches = |address: &str| -> anyhow::Result<bool> {
            let address = address.parse()?;
            let place = self.lab.inside();
            Ok(Client::tcp(address).place(place).connect()?.connected)
        };
        ensure!(!reaches(SECRET)?, "the workload reaches what it must not");
        ensure!(reaches("10.96.0.1:9080")?, "nor what it may");
        self.lab.wait_captured()
    }
}

/// The kernel's numbers of all links, maps and programs, which an attacker could guess.
fn ids() -> anyhow::Result<Value> {
    let text = output(Command::new("python3").args(["-c", SCRIPT, "\"ids\""]))?;
    let ids: Value = serde_json::from_str(&text)?;
    for kind in ["links", "maps", "programs"] {
        let count = ids[kind].as_array().map_or(0, Vec::len);
        ensure!(count > 10, "there is nothing to attack: {count} {kind}");
    }
    Ok(ids)
}

/// Errors by which the kernel refuses what is forbidden, or what is not there.
const REFUSED: &[&str] = &["EPERM", "EACCES"];

/// Checks what came of the attacks; `else_than` are those that end otherwise than refused, each with
/// how.
fn check(
    who: &str,
    outcomes: &BTreeMap<String, String>,
    else_than: &[(&str, &[&str])],
) -> anyhow::Result<()> {
    ensure!(outcomes.len() > 25, "{outcomes:?}");
    for (attack, outcome) in outcomes {
        let expected = else_than
            .iter()
            .find(|(name, _)| name == attack)
            .map(|(_, expected)| *expected);
        let expected = expected.unwrap_or(match attack.as_str() {
            // The call may be forbidden, or find that there is nothing that could be detached so.
            attack if attack.starts_with("detach ") => {
                &["EPERM", "EINVAL", "ENOENT", "EACCES", "EBUSY"]
            }
            // The marks of others may not be set; without it, or with it, it is refused.
            "connect with a mark" => &["EPERM", "ECONNREFUSED"],
            "connect from a cgroup below" => &["moved, and ECONNREFUSED"],
            attack if attack.starts_with("connect") => &["ECONNREFUSED"],
            _ => REFUSED,
        });
        ensure!(
            expected.contains(&outcome.as_str()),
            "{who}: {attack}: {outcome}, not one of {expected:?}"
        );
    }
    Ok(())
}

#[test]
fn a_workload_cannot_get_rid_of_its_capture() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new(registry_only()?)?;
    let attack = |who: &str, user, words: &[&str]| -> anyhow::Result<()> {
        check(who, &scene.attacked(user, words)?, &[])?;
        scene.stands().with_context(|| format!("after {who}"))
    };
    attack("an ordinary user", Some(USER), &[])?;
    let net_admin = [&["setpriv"], NET_ADMIN].concat();
    attack("CAP_NET_ADMIN", None, &net_admin)?;
    let userns = ["unshare", "--user", "--map-root-user"];
    attack("root of a user namespace", Some(USER), &userns)?;
    let mounts = [&userns[..], &["--mount"]].concat();
    attack("with mounts of its own", Some(USER), &mounts)?;
    Ok(())
}

/// The attacks are real: who may do these things can.
#[test]
fn root_of_the_host_could_do_it_all() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new(registry_only()?)?;
    // Not those that would change anything; others' objects are among the numbers.
    let outcomes = scene.attacked(None, &["setpriv", "--bounding-set=-all,+sys_admin", "--"])?;
    for (attack, gained) in [
        ("link by id", "got "),
        ("map by id", "got "),
        ("program by id", "got "),
        ("load a program", "loaded"),
        ("list the pins", "["),
        ("ask the agent", "{\"status\":"),
        ("enter another's netns", "entered"),
    ] {
        let outcome = outcomes.get(attack).context("not tried")?;
        ensure!(outcome.starts_with(gained), "{attack}: {outcome}");
    }
    Ok(())
}

/// A network namespace that the workload makes has no capture inbound, and none of the way out; what
/// is decided at connect holds there as well.
#[test]
fn a_network_namespace_of_its_own_leads_nowhere() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new(registry_only()?)?;
    let words = ["unshare", "--user", "--map-root-user", "--net"];
    let outcomes = scene.attacked(Some(USER), &words)?;
    let no_device: &[&str] = &["ENODEV"];
    // Its own namespace has no sk_lookup to be detached; it is no help to have it.
    check(
        "a new netns",
        &outcomes,
        &[
            ("connect by a device", no_device),
            ("connect with a mark", &["ECONNREFUSED"]),
        ],
    )?;
    scene.stands()
}

/// The proxy's uid means something only where the configuration says so.
#[test]
fn the_uid_of_a_proxy_is_worth_nothing_without_one_or_beside_its_cgroup() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new(registry_only()?)?;
    // Its cgroup is another user's.
    let not_moved: &[(&str, &[&str])] = &[("connect from a cgroup below", &["EACCES"])];
    check("1337", &scene.attacked(Some(1337), &[])?, not_moved)?;
    scene.stands()?;

    let mut lab = registry_only()?;
    let proxy = Cgroup::new("proxy")?;
    lab.write_workload(&[
        "capture.sidecar-agent.io/proxy: external",
        &format!(
            "capture.sidecar-agent.io/proxy-cgroup: {}",
            proxy.below_root()?
        ),
    ])?;
    lab.start_agent()?;
    let in_proxy_cgroup = Place::here()
        .netns(&lab.workload().netns)
        .cgroup(&proxy)
        .user(1337, 1337);
    let reaches = |place: Place<'_>| -> anyhow::Result<bool> {
        Ok(Client::tcp(SECRET.parse()?)
            .place(place)
            .connect()?
            .connected)
    };
    // Captured, and nobody listens on the proxy's port.
    ensure!(
        !reaches(lab.inside().user(1337, 1337))?,
        "1337 is not captured"
    );
    ensure!(reaches(in_proxy_cgroup)?, "the proxy itself is captured");
    Ok(())
}

const INGRESS: &str = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: in, namespace: prod-us1}
spec:
  ingress:
  - port: {number: 9080, protocol: TCP, name: in}
    defaultEndpoint: 127.0.0.1:8080
";

/// Listens at the endpoint of a workload's ingress, from where that is not the workload's own: what
/// calls the workload must not be led there.
#[test]
fn nobody_else_gets_the_connections_of_a_workload() -> anyhow::Result<()> {
    require_root!();
    let mut lab = Lab::new()?;
    lab.write("sidecar.yaml", INGRESS)?;
    lab.write_workload(&[])?;
    lab.write_mesh("{}\n")?;
    lab.start_agent()?;
    let address = (lab.workload().v4, 9080).into();
    let reached = |lab: &Lab| -> anyhow::Result<Option<String>> {
        let outcome = Client::tcp(address).place(lab.outside()).banner()?;
        Ok(outcome.banner.map(|seen| seen.name))
    };
    let other = Cgroup::new("other")?;
    let elsewhere = Namespace::new("elsewhere")?;
    let netns = &lab.workload().netns;
    // Of another cgroup in this namespace, and of this cgroup in another namespace.
    for place in [
        Place::here().netns(netns).cgroup(&other),
        Place::here().netns(&elsewhere).cgroup(lab.cgroup()),
        Place::here().netns(&elsewhere).cgroup(&other),
    ] {
        let _thief = Server::tcp("127.0.0.1:8080".parse()?)
            .place(place.user(USER, USER))
            .name("thief")
            .start()?;
        // Not only do they not reach the thief, who may have no way back: they are refused.
        let outcome = Client::tcp(address).place(lab.outside()).banner()?;
        let errno = outcome.errno.map(Errno::from_raw_os_error);
        ensure!(
            errno == Some(Errno::CONNREFUSED),
            "{outcome:?} from {place:?}"
        );
    }
    let _own = Server::tcp("127.0.0.1:8080".parse()?)
        .place(lab.inside().user(USER, USER))
        .name("own")
        .start()?;
    poll_result(DEADLINE, "its own listener", || {
        ensure!(reached(&lab)?.as_deref() == Some("own"), "not reached");
        Ok(())
    })
}

/// A limit, which docs/security.md names: what a workload with `CAP_NET_ADMIN` does to its packets comes
/// after our decision. `doctor` finds such rules.
#[test]
fn with_cap_net_admin_packets_can_be_rewritten_which_doctor_finds() -> anyhow::Result<()> {
    require_root!();
    let scene = Scene::new(registry_only()?)?;
    let lab = &scene.lab;
    let rule = "add table ip evil; add chain ip evil out { type nat hook output priority -100 ; }; \
                add rule ip evil out ip daddr 10.96.0.1 dnat to 10.96.0.4";
    let mut nft = lab.inside().command("setpriv");
    output(nft.args(NET_ADMIN).args(["nft", rule]))?;
    let outcome = Client::tcp("10.96.0.1:9080".parse()?)
        .place(lab.inside())
        .banner()?;
    let reached = outcome.banner.map(|seen| seen.name);
    ensure!(
        reached.as_deref() == Some("secret"),
        "{reached:?}: mend the documents"
    );
    let said = lab
        .agent()?
        .cli(&["doctor", "-o", "json"])
        .map(|output| output.stdout)?;
    let said: Value = serde_json::from_slice(&said)?;
    let finding = said["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|check| {
            check["code"] == "SCD0701"
                && check["found"]
                    .as_str()
                    .is_some_and(|found| found.contains("nft: ip evil out: dnat"))
        });
    ensure!(finding.is_some(), "{said:#}");
    Ok(())
}
