//! Ctrl-C and its like. The first one cancels: the work is dropped, and with it go processes, mounts
//! and temporary files. A second one ends rbuild at once; what is left then, the next rbuild removes.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for SIGINT, SIGTERM or SIGHUP and returns its number. From then on the next one ends the
/// process.
///
/// A signal that was ignored when rbuild began stays ignored: `nohup`, and shells that start
/// something in the background, mean it.
pub(crate) async fn first() -> u8 {
    let mut signals = Signals::new();
    let first = signals.next().await;
    tokio::spawn(async move {
        let second = signals.next().await;
        std::process::exit(128 + i32::from(second));
    });
    first
}

struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        let ignored = ignored();
        let listen = |kind: SignalKind| {
            let bit = 1_u64 << (kind.as_raw_value() - 1);
            // Where a handler cannot be had, the signal ends rbuild as it does without one.
            (ignored & bit == 0).then(|| signal(kind).ok()).flatten()
        };
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hangup: listen(SignalKind::hangup()),
        }
    }

    async fn next(&mut self) -> u8 {
        tokio::select! {
            () = came(&mut self.interrupt) => 2,
            () = came(&mut self.terminate) => 15,
            () = came(&mut self.hangup) => 1,
        }
    }
}

async fn came(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => pending().await,
    }
}

/// The signals that this process ignores, as bits (proc(5), `SigIgn`); none where it is not known.
fn ignored() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
