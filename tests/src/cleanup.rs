//! Undoing what was made, also when the process is interrupted.

use std::{
    collections::BTreeMap,
    mem, process,
    sync::{Mutex, Once, OnceLock, PoisonError},
    thread::{self, ThreadId},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

type Action = Box<dyn FnOnce() + Send>;

/// Actions by the order in which they were registered.
static ACTIONS: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());

/// The thread that runs all actions because the process was interrupted.
static CLEANER: OnceLock<ThreadId> = OnceLock::new();

/// Runs its action once: when dropped, or when SIGINT, SIGTERM or SIGHUP ends the process.
#[must_use = "dropping it runs the action"]
#[derive(Debug)]
pub struct Cleanup(u64);

/// Registers an action that undoes something.
pub fn on_drop(action: impl FnOnce() + Send + 'static) -> Cleanup {
    watch_signals();
    let mut actions = ACTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let id = actions.last_key_value().map_or(0, |(last, _)| last + 1);
    actions.insert(id, Box::new(action));
    Cleanup(id)
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // What other threads hold is being undone already; they must not end the process before
        // that is done, which they would: what they use is being taken away from under them.
        if CLEANER
            .get()
            .is_some_and(|cleaner| *cleaner != thread::current().id())
        {
            loop {
                thread::park();
            }
        }
        let action = ACTIONS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0);
        if let Some(action) = action {
            action();
        }
    }
}

/// Runs all actions, the latest first, as drops would.
fn run_all() {
    let actions = mem::take(&mut *ACTIONS.lock().unwrap_or_else(PoisonError::into_inner));
    for action in actions.into_values().rev() {
        action();
    }
}

fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!("an interrupted run will leave things behind: {error}");
                return;
            }
        };
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _ = CLEANER.set(thread::current().id());
                run_all();
                // As a shell reports a process that the signal killed.
                process::exit(128 + signal);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::on_drop;

    #[test]
    fn an_action_runs_once_also_in_a_panic() {
        let runs = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&runs);
        let panicked = std::panic::catch_unwind(|| {
            let _cleanup = on_drop(move || {
                counter.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.load(Ordering::Relaxed), 0);
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }
}
