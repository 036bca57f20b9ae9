//! What a service manager is told (`sd_notify(3)`). Without one, nobody.

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service, as its manager sees it. Ends when dropped.
pub struct Service {
    /// When to say that we are alive; `None`: nobody asks.
    watchdog: Option<Interval>,
    /// The status that was told last; `None`: not ready yet.
    told: Option<String>,
}

impl Service {
    /// Reads from the environment who wants to know, and how often.
    pub fn new() -> Self {
        // As `sd_watchdog_enabled(3)` recommends.
        let watchdog = sd_notify::watchdog_enabled().map(|timeout| {
            let mut watchdog = interval(timeout / 2);
            watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
            watchdog
        });
        Self {
            watchdog,
            told: None,
        }
    }

    /// The configuration is in force, for so many workloads of so many: the first time, the service
    /// is ready.
    pub fn applied(&mut self, generation: u64, (captured, workloads): (usize, usize)) {
        let status = format!(
            "{captured} of {workloads} workloads captured; configuration applied {generation} times"
        );
        if self.told.as_ref() == Some(&status) {
            return;
        }
        let mut news = vec![NotifyState::Status(&status)];
        if self.told.is_none() {
            news.push(NotifyState::Ready);
        }
        tell(&news);
        self.told = Some(status);
    }

    /// Waits until it is time to say that we are alive.
    pub async fn due(&mut self) {
        match &mut self.watchdog {
            Some(watchdog) => {
                watchdog.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Says that we are alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

impl Drop for Service {
    fn drop(&mut self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("telling the service manager: {error}; see NOTIFY_SOCKET");
    }
}
