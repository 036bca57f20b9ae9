//! Which kernel is meant.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};

/// A kernel's version in numbers, or the beginning of some: `5.10`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(Vec<u32>);

impl Version {
    /// The kernel's part of the version of one of Debian's packages: `6.12.117` of
    /// `6.12.117-1~deb12u1`.
    pub fn of_package(version: &str) -> Option<Self> {
        let end = version.find(['-', '~', '+']).unwrap_or(version.len());
        version[..end].parse().ok()
    }

    /// Whether this is `series`, or one of it.
    pub fn is_of(&self, series: &Self) -> bool {
        self.0.starts_with(&series.0)
    }

    /// The first two numbers, by which kernels are called.
    pub fn series(&self) -> Self {
        Self(self.0.iter().take(2).copied().collect())
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let numbers = text.split('.').map(str::parse);
        let numbers: Vec<u32> = numbers
            .collect::<Result<_, _>>()
            .with_context(|| format!("{text} is no version of a kernel, such as 5.10"))?;
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

/// What `--kernel` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The newest of all.
    Newest,
    /// The newest of this series, or this very one.
    Series(Version),
    /// An image.
    Image(PathBuf),
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        if text.contains('/') || Path::new(text).is_file() {
            return Ok(Self::Image(text.into()));
        }
        match text.parse() {
            Ok(version) => Ok(Self::Series(version)),
            Err(_) => {
                bail!("neither `newest`, nor a version such as 5.10, nor the path of an image")
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::Series(version) => version.fmt(f),
            Self::Image(path) => path.display().fmt(f),
        }
    }
}

/// The newest of what is asked for.
pub fn choose<'a, T>(
    wanted: &Wanted,
    offers: &'a [T],
    version: impl Fn(&T) -> &Version,
) -> Option<&'a T> {
    let fits = |offer: &&T| match wanted {
        Wanted::Newest => true,
        Wanted::Series(series) => version(offer).is_of(series),
        Wanted::Image(_) => false,
    };
    offers
        .iter()
        .filter(fits)
        .max_by(|a, b| version(a).cmp(version(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &str, offers: &[&str]) -> Option<String> {
        let offers: Vec<Version> = offers.iter().map(|text| text.parse().unwrap()).collect();
        choose(&wanted.parse().unwrap(), &offers, |version| version).map(Version::to_string)
    }

    #[test]
    fn the_newest_of_what_is_asked_for() {
        let offers = ["6.1.192", "5.10.9", "6.12.3", "5.10.262", "6.18.5"];
        assert_eq!(chosen("5.10", &offers).unwrap(), "5.10.262");
        assert_eq!(
            chosen("6.1", &offers).unwrap(),
            "6.1.192",
            "6.12 is not 6.1"
        );
        assert_eq!(chosen("5.10.9", &offers).unwrap(), "5.10.9");
        assert_eq!(chosen("newest", &offers).unwrap(), "6.18.5");
        assert_eq!(chosen("5.15", &offers), None);
        assert_eq!(chosen("newest", &[]), None);
    }

    #[test]
    fn the_kernels_part_of_a_packages_version() {
        for (package, kernel) in [
            ("5.10.262-1", "5.10.262"),
            ("6.12.117-1~deb12u1", "6.12.117"),
            ("7.4~rc3-1~exp1", "7.4"),
        ] {
            assert_eq!(Version::of_package(package).unwrap().to_string(), kernel);
        }
        assert_eq!(Version::of_package("unknown"), None);
    }

    #[test]
    fn paths_are_told_from_versions() {
        let image = Wanted::Image("./vmlinuz".into());
        assert_eq!("./vmlinuz".parse::<Wanted>().unwrap(), image);
        assert!("five".parse::<Wanted>().is_err());
        assert!("".parse::<Wanted>().is_err());
    }
}
