//! CPU time of processes.

use std::fs;

use anyhow::Context as _;

/// The CPU time of all threads of a process so far, in ns, of those that have not ended: the first
/// number of `schedstat`, which is exact where `times(2)` counts ticks. What the kernel does for
/// others in a softirq while the process runs is in it, unless the kernel counts that apart
/// (`CONFIG_IRQ_TIME_ACCOUNTING`).
///
/// # Errors
/// When the process has ended, or the kernel has no scheduler statistics.
pub fn cpu_time(pid: u32) -> anyhow::Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))?;
    let mut sum = 0;
    for thread in threads.flatten() {
        // One that has just ended.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        let first = text
            .split_whitespace()
            .next()
            .context("schedstat is empty")?;
        sum += first.parse::<u64>().context("schedstat has no number")?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    #[test]
    fn work_takes_time_of_the_cpu() {
        let started = Instant::now();
        let before = super::cpu_time(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while super::cpu_time(std::process::id()).unwrap() < before + 1_000_000 {
            sum = black_box(sum + 1);
            assert!(started.elapsed() < crate::DEADLINE);
        }
    }
}
