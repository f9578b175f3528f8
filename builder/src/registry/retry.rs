//! How long to go on with a host that fails: back off with jitter, do what `Retry-After` says, and
//! give up when nothing has got through for a while.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How often something that fails at once is tried again.
const MOST_FAILURES: u32 = 7;
/// How often a host that takes no connection is tried again: it is more often a wrong name than a
/// passing fault, and the user waits.
const MOST_UNREACHABLE: u32 = 3;

/// The patience left for one operation: how much longer it may be without progress. Progress renews
/// it, so that a slow transfer may take its time while an endless failure ends.
#[derive(Debug)]
pub struct Patience {
    whole: Duration,
    spent: Duration,
    failures: u32,
}

impl Patience {
    /// Starts with `whole` to spend.
    pub fn new(whole: Duration) -> Self {
        Self { whole, spent: Duration::ZERO, failures: 0 }
    }

    /// Begins anew, since something got through.
    pub fn renew(&mut self) {
        self.spent = Duration::ZERO;
        self.failures = 0;
    }

    /// Takes off the time in which nothing got through.
    pub fn spend(&mut self, idle: Duration) {
        self.spent += idle;
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.whole.saturating_sub(self.spent)
    }

    /// Waits before the next attempt: as long as the host asked, otherwise twice as long each time.
    /// `false` when there is no patience for that.
    pub async fn pause(&mut self, asked: Option<Duration>, unreachable: bool) -> bool {
        self.failures += 1;
        let most = if unreachable { MOST_UNREACHABLE } else { MOST_FAILURES };
        let pause = asked.unwrap_or_else(|| backoff(self.failures - 1, random_fraction()));
        if self.failures > most || pause >= self.left() {
            return false;
        }
        self.spend(pause);
        tokio::time::sleep(pause).await;
        true
    }
}

/// How long to wait before doing again what somebody else came in between of, the next time longer.
pub fn pause_after(failures: u32) -> Duration {
    backoff(failures, random_fraction())
}

/// The pause after `failures` earlier ones: doubling, between half and all of it.
fn backoff(failures: u32, fraction: f64) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + fraction / 2.0)
}

/// Between 0 and 1; so that many clients that failed together do not come back together.
fn random_fraction() -> f64 {
    let mut byte = [0];
    // Without chance they come back together, no more.
    let _ = rustix::rand::getrandom(&mut byte, rustix::rand::GetRandomFlags::empty());
    f64::from(byte[0]) / 255.0
}

/// What the host asks to wait: seconds, or a date, read against the host's own clock (RFC 9110,
/// 10.2.3). `None` when it says nothing that can be understood.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        let check = |after: &str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            headers.insert(DATE, "Sat, 21 Nov 2026 12:00:00 GMT".parse().unwrap());
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{after}");
        };
        check("3", Some(3));
        check("Sat, 21 Nov 2026 12:00:05 GMT", Some(5));
        check("Sat, 21 Nov 2026 11:00:00 GMT", Some(0));
        check("soon", None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn backs_off_with_a_bound() {
        assert_eq!(backoff(0, 1.0), FIRST_PAUSE);
        assert_eq!(backoff(0, 0.0), FIRST_PAUSE / 2);
        assert_eq!(backoff(2, 1.0), FIRST_PAUSE * 4);
        assert_eq!(backoff(u32::MAX, 1.0), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn gives_up_when_nothing_gets_through() {
        let whole = Duration::from_millis(600);
        let mut patience = Patience::new(whole);
        assert!(!patience.pause(Some(Duration::from_hours(24)), false).await);
        let begun = std::time::Instant::now();
        while patience.pause(None, false).await {}
        assert!(begun.elapsed() < whole + Duration::from_millis(300));
        patience.renew();
        assert!(patience.pause(Some(Duration::from_millis(1)), false).await);
        patience.spend(whole);
        assert!(!patience.pause(Some(Duration::from_millis(1)), false).await);
    }
}
