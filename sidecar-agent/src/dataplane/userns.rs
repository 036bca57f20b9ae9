//! User namespaces: what a workload's own users and groups are on the host. As `iptables` has it,
//! those count that are known in the user namespace to which the network namespace belongs.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{cgroup, netns::Netns, sys};

/// What the host's ids of a workload's users and groups begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdBases {
    /// The host's uid of the workload's user 0.
    pub uid: u32,
    /// The host's gid of the workload's group 0.
    pub gid: u32,
}

impl IdBases {
    /// Those of the workload whose processes are in these cgroups; `None`: no process is there yet
    /// from which to read them.
    ///
    /// # Errors
    /// If the network namespace does not tell its user namespace.
    pub fn of<'a>(
        netns: &Netns,
        cgroups: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Option<Self>> {
        let owner = sys::owning_userns(netns.as_fd())
            .and_then(|owner| fs::File::from(owner).metadata())
            .with_context(|| format!("asking whose {} is", netns.path.display()))?;
        let is_in = |pid: &str| {
            fs::metadata(format!("/proc/{pid}/ns/user"))
                .is_ok_and(|of| (of.dev(), of.ino()) == (owner.dev(), owner.ino()))
        };
        if is_in("self") {
            return Ok(Some(Self::default()));
        }
        let base =
            |pid: &str, map: &str| base(&fs::read_to_string(format!("/proc/{pid}/{map}")).ok()?);
        Ok(cgroups
            .into_iter()
            .flat_map(cgroup::processes)
            .map(|pid| pid.to_string())
            .filter(|pid| is_in(pid))
            .find_map(|pid| {
                Some(Self {
                    uid: base(&pid, "uid_map")?,
                    gid: base(&pid, "gid_map")?,
                })
            }))
    }
}

/// What the largest range of a map (`ID-INSIDE ID-OUTSIDE LENGTH`, one a line) adds to an id.
fn base(map: &str) -> Option<u32> {
    map.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse::<u32>);
            let mut word = || words.next()?.ok();
            let (inside, outside, length) = (word()?, word()?, word()?);
            Some((length, outside.wrapping_sub(inside)))
        })
        .max()
        .map(|(_, base)| base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_counts() {
        assert_eq!(base("         0     100000      65536\n"), Some(100_000));
        assert_eq!(base("0 1000 1\n1 200000 65535\n"), Some(199_999));
        assert_eq!(base("1337 5000 1\n"), Some(3663));
        assert_eq!(base(""), None);
    }
}
