//! How many commands run at once: as many as keep the cores busy, and no more.
//!
//! A command that waits (for the network, for a lock, in `sleep`) leaves its core idle. Instead of
//! holding a place for it, the gate lets a further command in whenever the machine has idle cores,
//! read from the kernel's own account in `/proc/stat`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};

/// How many commands may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jobs {
    /// As many as there are cores, and more while cores idle.
    Cores(usize),
    /// At most this many (`--jobs N`).
    Limit(usize),
}

/// Between two looks at `/proc/stat`, which counts in ticks of 10 ms.
const LOOK: Duration = Duration::from_millis(20);
/// However idle the machine, no more than this many commands for each core.
const CROWD: usize = 32;

/// Lets commands in.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    /// Held by whoever looks for idle cores: one command is let in for each look, so that its own
    /// load shows before the next one comes.
    looking: Mutex<()>,
    jobs: Jobs,
}

/// A place of a running command; dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
    running: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// A gate for `jobs`.
    pub fn new(jobs: Jobs) -> Self {
        let (Jobs::Cores(places) | Jobs::Limit(places)) = jobs;
        Self {
            places: Arc::new(Semaphore::new(places.max(1))),
            running: Arc::default(),
            looking: Mutex::new(()),
            jobs,
        }
    }

    /// Waits until one more command may run.
    #[expect(clippy::missing_panics_doc, reason = "the semaphore is never closed")]
    pub async fn enter(&self) -> Place {
        let waiting = Arc::clone(&self.places).acquire_owned();
        let permit = match self.jobs {
            Jobs::Limit(_) => Some(waiting.await.expect("the semaphore is never closed")),
            Jobs::Cores(cores) => tokio::select! {
                biased;
                permit = waiting => Some(permit.expect("the semaphore is never closed")),
                () = self.idle_core(cores) => None,
            },
        };
        self.running.fetch_add(1, Ordering::Relaxed);
        Place { _permit: permit, running: Arc::clone(&self.running) }
    }

    /// Waits until more than half a core was idle between two looks.
    async fn idle_core(&self, cores: usize) {
        let _looking = self.looking.lock().await;
        let mut before = CpuTimes::read();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = CpuTimes::read();
            let crowded = self.running.load(Ordering::Relaxed) >= cores.max(1) * CROWD;
            if let (Some(before), Some(now)) = (before, now)
                && !crowded
                && now.idle_cores_since(before, cores) > 0.5
            {
                return;
            }
            before = now;
        }
    }
}

/// The first line of `/proc/stat` (`proc_stat(5)`), in ticks over all cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTimes {
    idle: u64,
    total: u64,
}

impl CpuTimes {
    /// The counts now; `None` where `/proc` does not show them, and then nothing is thought idle.
    fn read() -> Option<Self> {
        Self::parse(&fs_err::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        let (&idle, &io_wait) = (ticks.get(3)?, ticks.get(4)?);
        Some(Self { idle: idle + io_wait, total: ticks.iter().sum() })
    }

    #[expect(clippy::cast_precision_loss, reason = "a few ticks, and a share of them")]
    fn idle_cores_since(self, before: Self, cores: usize) -> f64 {
        let total = self.total.saturating_sub(before.total);
        if total == 0 {
            return 0.0;
        }
        self.idle.saturating_sub(before.idle) as f64 / total as f64 * cores as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_account() {
        let stat = "cpu  10 0 5 80 20 0 1 0 0 0\ncpu0 1 2 3\n";
        assert_eq!(CpuTimes::parse(stat), Some(CpuTimes { idle: 100, total: 116 }));
        assert_eq!(CpuTimes::parse("intr 1"), None);
        let before = CpuTimes { idle: 0, total: 0 };
        let now = CpuTimes { idle: 3, total: 4 };
        assert!((now.idle_cores_since(before, 2) - 1.5).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_limit_holds_however_idle_the_machine() {
        let gate = Gate::new(Jobs::Limit(1));
        let first = gate.enter().await;
        let second = tokio::time::timeout(Duration::from_millis(200), gate.enter()).await;
        assert!(second.is_err());
        drop(first);
        gate.enter().await;
    }
}
