//! How long the calling thread has worked: unlike the clock, that does not hang on what else the
//! machine does.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time that the calling thread has spent so far.
pub(crate) fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap())
}

/// The time that the calling thread has spent since `start`.
pub(crate) fn since(start: Duration) -> Duration {
    spent().saturating_sub(start)
}
