//! What the kernel tells of the agent's own process.

use procfs::{
    WithCurrentSystemInfo as _,
    process::{LimitValue, Process},
};

/// The process, now.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// User and system time, in seconds.
    pub cpu: f64,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Virtual memory, in bytes.
    pub virtual_memory: u64,
    /// Open descriptors.
    pub open_fds: usize,
    /// Most descriptors; infinite: no limit.
    pub max_fds: f64,
    /// When it started, in seconds since the epoch.
    pub start: f64,
    /// Threads.
    pub threads: i64,
}

impl Figures {
    /// Reads /proc.
    ///
    /// # Errors
    /// If it cannot be read.
    #[allow(clippy::cast_precision_loss, reason = "numbers far below 2^52")]
    pub fn read() -> procfs::ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let max_fds = match process.limits()?.max_open_files.soft_limit {
            LimitValue::Value(most) => most as f64,
            LimitValue::Unlimited => f64::INFINITY,
        };
        Ok(Self {
            cpu: (stat.utime + stat.stime) as f64 / ticks,
            resident: stat.rss_bytes().get(),
            virtual_memory: stat.vsize,
            open_fds: process.fd_count()?,
            max_fds,
            start: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
            threads: stat.num_threads,
        })
    }
}
