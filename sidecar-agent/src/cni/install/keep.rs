//! The plugin is kept where it is, whoever rewrites the runtime's configuration.

use std::time::Duration;

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{Done, Install};
use crate::source::files::watch;

/// It is looked at least so often: a watch may be degraded, or what could not be written be possible
/// now.
const LOOK: Duration = Duration::from_secs(30);

/// The plugin, being kept. Dropping this ends that, and leaves the plugin where it is.
#[derive(Debug)]
pub struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Installs the plugin, and does so again whenever something changes in the runtime's directories.
/// Must be called within a tokio runtime.
#[must_use]
pub fn keep(install: Install) -> Keeper {
    Keeper(tokio::spawn(async move {
        let mut changes = watch(&[install.conf_dir.clone(), install.bin_dir.clone()]);
        let mut last_problem = None;
        loop {
            let work = install.clone();
            let done = spawn_blocking(move || work.install()).await;
            let problem = match done {
                Ok(Ok(done)) => {
                    tell(&done);
                    let dir = install.conf_dir.display();
                    let waiting = || format!("{dir} has no configuration of a network yet");
                    done.list.is_none().then(waiting)
                }
                Ok(Err(error)) => Some(format!("{error:#}")),
                // The runtime ends.
                Err(_) => return,
            };
            if problem != last_problem {
                if let Some(problem) = &problem {
                    tracing::warn!("the CNI plugin is not installed: {problem}; trying again");
                } else {
                    tracing::info!("the CNI plugin is installed");
                }
                last_problem = problem;
            }
            // Whether it was a change or the time does not matter.
            let _ = timeout(LOOK, changes.changed()).await;
        }
    }))
}

fn tell(done: &Done) {
    for path in &done.written {
        tracing::info!("CNI plugin: written {}", path.display());
    }
}
