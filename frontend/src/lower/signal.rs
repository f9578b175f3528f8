//! The signals that STOPSIGNAL knows (moby/sys `signal`).

const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether `text` is a signal: a number other than 0, or a name with or without `SIG`.
pub(crate) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix, last: u32| {
        let offset = name.strip_prefix(prefix).filter(|offset| !offset.starts_with(['0', '+']));
        offset
            .and_then(|offset| offset.parse().ok())
            .is_some_and(|offset| (1..=last).contains(&offset))
    };
    NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        for good in ["9", "SIGTERM", "term", "RTMIN+3", "SIGRTMAX-14", "-1"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "SIGNOPE", "", "RTMIN+16", "RTMAX-0", "RTMIN+03"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
