//! Version 2: a group hands controllers on to those below it only when told to, and, but for the
//! root, only while no process is in it ("no internal processes", cgroups(7)).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::PREFIX;
use super::setting::Controller;

/// Finds a group below which groups with `controllers` can be made: rbuild's own, where that hands
/// them on; one above it; or its own once its processes have moved into one below.
///
/// The last is what `systemd-run --scope -p Delegate=yes` and containers are for. It is done only if
/// all that would move is rbuild.
pub(super) fn place(
    root: &Path,
    own: &Path,
    controllers: &[Controller],
) -> io::Result<(PathBuf, Option<Moved>)> {
    let above = own.parent().filter(|above| above.starts_with(root));
    for group in [Some(own), above, Some(root)].into_iter().flatten() {
        if enable(root, group, controllers).is_ok() && is_writable(group) {
            return Ok((group.to_owned(), None));
        }
    }
    let moved = Moved::below(own)?;
    match enable(root, own, controllers) {
        Ok(()) => Ok((own.to_owned(), Some(moved))),
        Err(error) => {
            moved.back();
            Err(error)
        }
    }
}

/// Makes every group from `root` down to `group` hand `controllers` on.
pub(super) fn enable(root: &Path, group: &Path, controllers: &[Controller]) -> io::Result<()> {
    let mut folder = root.to_owned();
    let below = group.strip_prefix(root).unwrap_or(Path::new(""));
    hand_on(&folder, controllers)?;
    for component in below.components() {
        folder.push(component);
        hand_on(&folder, controllers)?;
    }
    Ok(())
}

fn hand_on(folder: &Path, controllers: &[Controller]) -> io::Result<()> {
    let file = folder.join("cgroup.subtree_control");
    let has = fs_err::read_to_string(&file)?;
    let wanting = |one: &&Controller| !has.split_whitespace().any(|name| name == one.name());
    let missing: Vec<_> =
        controllers.iter().filter(wanting).map(|one| format!("+{}", one.name())).collect();
    if missing.is_empty() { Ok(()) } else { fs_err::write(&file, missing.join(" ")) }
}

fn is_writable(group: &Path) -> bool {
    rustix::fs::access(group, rustix::fs::Access::WRITE_OK).is_ok()
        && rustix::fs::access(group.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
}

/// rbuild's processes, moved from their group into one below it.
#[derive(Debug)]
pub(super) struct Moved {
    from: PathBuf,
    leaf: PathBuf,
}

impl Moved {
    fn below(own: &Path) -> io::Result<Self> {
        let processes = processes(own)?;
        let parents = parents();
        let rbuild = parent_of_this();
        if !processes.iter().all(|process| descends(*process, rbuild, &parents)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let leaf = own.join(format!("{PREFIX}itself-{rbuild}"));
        fs_err::create_dir(&leaf)?;
        let moved = Self { from: own.to_owned(), leaf };
        for process in processes {
            let entered = fs_err::write(moved.leaf.join("cgroup.procs"), process.to_string());
            // A process may have ended meanwhile.
            if let Err(error) = entered
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                moved.back();
                return Err(error);
            }
        }
        Ok(moved)
    }

    /// Where they are now.
    pub(super) fn leaf(&self) -> &Path {
        &self.leaf
    }

    /// Undoes it, as far as that is possible.
    pub(super) fn back(self) {
        let file = self.from.join("cgroup.subtree_control");
        let has = fs_err::read_to_string(&file).unwrap_or_default();
        let none: Vec<_> = has.split_whitespace().map(|name| format!("-{name}")).collect();
        let _ = fs_err::write(&file, none.join(" "));
        for process in processes(&self.leaf).unwrap_or_default() {
            let _ = fs_err::write(self.from.join("cgroup.procs"), process.to_string());
        }
        let _ = fs_err::remove_dir(&self.leaf);
    }
}

fn processes(group: &Path) -> io::Result<Vec<i32>> {
    let text = fs_err::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The server's parent is rbuild; where that has ended already, nothing is moved.
fn parent_of_this() -> i32 {
    rustix::process::getppid().map_or(0, |process| process.as_raw_nonzero().get())
}

/// The parent of every process.
fn parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = fs_err::read_dir("/proc") else { return BTreeMap::new() };
    let parent = |entry: fs_err::DirEntry| -> Option<(i32, i32)> {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs_err::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in parentheses, can hold anything.
        let rest = &stat[stat.rfind(')')? + 1..];
        Some((process, rest.split_whitespace().nth(1)?.parse().ok()?))
    };
    entries.filter_map(Result::ok).filter_map(parent).collect()
}

fn descends(process: i32, from: i32, parents: &BTreeMap<i32, i32>) -> bool {
    let mut process = process;
    // 0 is a process that this namespace does not show.
    while process > 0 {
        if process == from {
            return true;
        }
        process = parents.get(&process).copied().unwrap_or(0);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_followed() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 1), (5, 9)]);
        let check = |process, expected| {
            assert_eq!(descends(process, 2, &parents), expected, "{process}");
        };
        check(2, true);
        check(3, true);
        check(4, false);
        check(5, false);
        check(0, false);
    }

    #[test]
    fn controllers_are_handed_on_from_the_root_down() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("a/b");
        fs_err::create_dir_all(&group).unwrap();
        let control = |path: &Path| path.join("cgroup.subtree_control");
        fs_err::write(control(folder.path()), "cpu memory\n").unwrap();
        fs_err::write(control(&folder.path().join("a")), "memory\n").unwrap();
        fs_err::write(control(&group), "").unwrap();
        enable(folder.path(), &group, &[Controller::Memory, Controller::Cpu]).unwrap();
        let read = |path: &Path| fs_err::read_to_string(control(path)).unwrap();
        assert_eq!(read(folder.path()), "cpu memory\n");
        assert_eq!(read(&folder.path().join("a")), "+cpu");
        assert_eq!(read(&group), "+memory +cpu");
    }
}
