//! Whether this process may do what the agent does.

use rustix::thread::CapabilitySet;

use super::{Check, catalogue};
use crate::privileges::{self, NEEDS};

/// One check per capability that is needed.
pub fn look() -> Vec<Check> {
    match privileges::effective() {
        Ok(effective) => judge(effective),
        Err(error) => {
            let found = format!("{error:#}");
            vec![Check::finding("capabilities", catalogue::CAPABILITY, found)]
        }
    }
}

fn judge(effective: CapabilitySet) -> Vec<Check> {
    NEEDS
        .iter()
        .map(|need| {
            if effective.contains(need.capability) {
                return Check::ok(need.name, need.reason);
            }
            let code = if need.is_vital {
                catalogue::VITAL_CAPABILITY
            } else {
                catalogue::CAPABILITY
            };
            let found = format!("not effective; it {}", need.reason);
            Check::finding(need.name, code, found).losing(need.lost)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::report::State, privileges::needed};

    #[test]
    fn each_one_that_is_missing_is_found() {
        let all = judge(needed());
        assert!(all.iter().all(|check| check.state == State::Ok), "{all:?}");
        for need in NEEDS {
            let checks = judge(needed().difference(need.capability));
            let found: Vec<_> = checks
                .iter()
                .filter(|check| check.state != State::Ok)
                .collect();
            let [check] = found[..] else {
                panic!("{found:?}")
            };
            assert_eq!(check.check, need.name);
            assert_eq!(check.state == State::Missing, need.is_vital);
            assert_eq!(check.finding.as_ref().unwrap().lost, need.lost);
        }
    }
}
