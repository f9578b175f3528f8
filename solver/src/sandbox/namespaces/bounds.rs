//! What keeps a step from exhausting the machine where no limit was asked for, without control
//! groups: those are rarely writable.

use std::io;

/// The most processes and threads of a step at once.
pub(super) const TASKS: u64 = 16 * 1024;

/// Bounds the number of processes in the calling process's pid namespace, and in those below it.
///
/// Where it has none of its own, a control group does it if it can.
pub(super) fn limit_tasks() -> io::Result<()> {
    if !has_own_limit() {
        return Ok(());
    }
    match fs_err::write("/proc/sys/kernel/pid_max", TASKS.to_string()) {
        // In a container `/proc/sys` may be read-only; its own limits hold then.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Whether a pid namespace has a limit of its own, as since Linux 6.14; before, the file sets that
/// of the whole machine and must not be touched.
pub(super) fn has_own_limit() -> bool {
    version(&rustix::system::uname().release().to_string_lossy()) >= (6, 14)
}

/// Returns how many processes the kernel has killed for want of memory since the machine started.
pub(super) fn killed_for_memory() -> u64 {
    let counters = fs_err::read_to_string("/proc/vmstat").unwrap_or_default();
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(release: &str, expected: (u32, u32)) {
        assert_eq!(version(release), expected);
    }

    #[test]
    fn releases_begin_with_two_numbers() {
        check("6.18.44-fc-v657", (6, 18));
        check("5.10", (5, 10));
        check("7-rc1", (7, 0));
        check("", (0, 0));
    }

    #[test]
    fn the_kernel_counts() {
        assert!(fs_err::read_to_string("/proc/vmstat").unwrap().contains("\noom_kill "));
        let _ = killed_for_memory();
    }
}
