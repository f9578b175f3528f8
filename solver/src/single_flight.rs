//! One run per key, however many ask: within a process and between processes that share the state
//! folder.
//!
//! Whoever holds the lock of a key does its work; the others wait, and then find the result under
//! the key. The lock is the kernel's (flock), so it ends with its process, however that ends.

use std::time::Duration;

use rbuild_cache::digest::CacheKey;
use rbuild_cache::lock::{LockGuard, Locks};

use crate::error::Cause;

/// How long to wait before asking again for a lock that another step holds.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
];

/// Waits until nobody else works on `key`. The wait ends when the future is dropped.
pub(crate) async fn lock(locks: &Locks, key: &CacheKey) -> Result<LockGuard, Cause> {
    lock_hurrying(locks, key, || {}).await
}

/// Like [`lock`]. Whoever has to wait calls `hurry`, since what holds the lock may be a result of this
/// process that waits for others to be written down with.
pub(crate) async fn lock_hurrying(
    locks: &Locks,
    key: &CacheKey,
    hurry: impl Fn(),
) -> Result<LockGuard, Cause> {
    let name = format!("step-{}", key.0.hex());
    let mut tries = 0;
    loop {
        if let Some(guard) = locks.try_exclusive(&name).map_err(Cause::state)? {
            return Ok(guard);
        }
        hurry();
        tokio::time::sleep(PATIENCE[tries.min(PATIENCE.len() - 1)]).await;
        tries += 1;
    }
}
