//! Two sides side by side: option sets and attempts made up by chance have the same outcome.
//!
//! A failure prints the seed, the options, the attempt and both outcomes; `SIDECAR_TEST_SEED`
//! repeats a run.

use anyhow::{Context as _, ensure};
use sidecar_agent::conformance::iptables::cases::OptionSet;
use sidecar_tests::{
    chance,
    interception::{Attempt, Iptables, Observed, Observer, Ours, Side},
    require_root,
};

use crate::random;

/// Option sets of a run.
const OPTION_SETS: usize = 25;

/// Attempts under each of them.
const ATTEMPTS: usize = 20;

/// What two sides have done, and whether that is all right.
type Judge = fn(&OptionSet, &Attempt, &Observed, &Observed) -> bool;

/// The same seed has the same outcome: what else is compared here differs for no other reason
/// than the side.
#[test]
fn iptables_and_iptables() -> anyhow::Result<()> {
    require_root!();
    let sides = (Iptables::new()?, Iptables::new()?);
    compare(sides, |_, _, one, other| one == other)
}

/// The same outcome, but for two things. Without NAT the accepted socket's local address is another
/// under `REDIRECT`. And a straight call to a capture port has an original destination, its own
/// address, where conntrack happens to watch, and with the agent where somebody else makes it: told
/// of its own calls, a proxy would call itself.
#[test]
fn iptables_and_the_agents_programs() -> anyhow::Result<()> {
    require_root!();
    let sides = (Iptables::new()?, Ours::new()?);
    compare(sides, |options, attempt, iptables, ours| {
        let comparable = |observed: &Observed| {
            let mut observed = observed.clone();
            if let Observed::Captured {
                to_port,
                local,
                original_dst,
                ..
            } = &mut observed
            {
                if *to_port == attempt.to.port() {
                    *original_dst = None;
                }
                if options.interception_mode != "TPROXY" {
                    *local = None;
                }
            }
            observed
        };
        comparable(iptables) == comparable(ours)
    })
}

fn compare<A: Side, B: Side>(sides: (A, B), judge: Judge) -> anyhow::Result<()> {
    let mut rng = chance::seeded()?;
    let (mut one, mut other) = (Observer::new(sides.0)?, Observer::new(sides.1)?);
    let (mut captured, mut differ) = (0, 0);
    for _ in 0..OPTION_SETS {
        let options = random::options(&mut rng);
        one.load(&options)
            .with_context(|| format!("{options:#?}"))?;
        other
            .load(&options)
            .with_context(|| format!("{options:#?}"))?;
        for _ in 0..ATTEMPTS {
            let attempt = random::attempt(&mut rng, &options);
            let outcomes = (one.observe(&attempt)?, other.observe(&attempt)?);
            captured += usize::from(matches!(outcomes.0, Observed::Captured { .. }));
            if !judge(&options, &attempt, &outcomes.0, &outcomes.1) {
                differ += 1;
                let (one, other) = (one.side().name(), other.side().name());
                println!(
                    "DIFFERENT {attempt}\n{one}: {:?}\n{other}: {:?}\nunder {options:#?}",
                    outcomes.0, outcomes.1
                );
            }
        }
    }
    let attempts = OPTION_SETS * ATTEMPTS;
    println!("{attempts} attempts, {captured} captured, {differ} different");
    ensure!(differ == 0, "{differ} of {attempts} attempts differ");
    // Chance would have to be very unlucky: it is the generator that is wrong.
    ensure!(
        captured > attempts / 10 && captured < attempts / 10 * 9,
        "{captured} of {attempts} attempts were captured, which proves little"
    );
    Ok(())
}
