//! `--cgroup-parent`: a step in a control group of its own below the one that was asked for.
//!
//! The supervisor enters the group before it starts the step, which is born in it; when the step
//! has ended, the supervisor goes back to where it was and removes what it made. Version 2 and all
//! hierarchies of version 1 that are mounted are treated alike (cgroups(7)). Without the flag
//! nothing is written: steps stay in rbuild's own group, and its limits hold for them.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::message::{Failure, OrFail};

/// A group that this process is in. Left with [`Group::leave`].
pub(super) struct Group {
    places: Vec<Place>,
}

/// The group in one hierarchy.
struct Place {
    /// Where this process was before.
    before: PathBuf,
    /// The folders that were made, highest first.
    made: Vec<PathBuf>,
}

/// A mounted hierarchy of control groups.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Where it is mounted.
    root: PathBuf,
    /// The group of this process in it, relative to `root`.
    own: PathBuf,
}

impl Group {
    /// Makes a group of this process below `parent` in every hierarchy, and enters it.
    pub(super) fn enter(parent: &str) -> Result<Self, Failure> {
        let what = || format!("cannot use the control group `{parent}`");
        let relative = relative(parent).ok_or_else(|| {
            Failure::refusal(format!("`{parent}` is not the path of a control group"))
        })?;
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").or_fail(what)?;
        let groups = fs_err::read_to_string("/proc/self/cgroup").or_fail(what)?;
        let hierarchies = hierarchies(&mounts, &groups);
        if hierarchies.is_empty() {
            return Err(Failure::refusal(format!("{}: no hierarchy is mounted", what())));
        }
        // This process is the first of its namespace, so its number tells it from no other.
        let unique = fs_err::read_to_string("/proc/sys/kernel/random/uuid").or_fail(what)?;
        let name = format!("rbuild-{}", unique.trim());
        let mut group = Self { places: Vec::new() };
        for Hierarchy { root, own } in hierarchies {
            let mut place = Place { before: root.join(own), made: Vec::new() };
            let entered = place.make(&root, &relative.join(&name)).and_then(|folder| join(&folder));
            group.places.push(place);
            if let Err(error) = entered {
                group.leave();
                return Err(error).or_fail(what).map_err(|failure| {
                    failure.with_hint("`--cgroup-parent` needs control groups that are writable")
                });
            }
        }
        Ok(group)
    }

    /// Goes back to where this process was, and removes the group.
    pub(super) fn leave(self) {
        for place in self.places {
            // A group that cannot be left cannot be removed; it holds nothing but this process.
            let _ = join(&place.before);
            for folder in place.made.iter().rev() {
                let _ = fs_err::remove_dir(folder);
            }
        }
    }
}

impl Place {
    /// Makes the group `path` below `root`, and what is missing above it.
    fn make(&mut self, root: &Path, path: &Path) -> io::Result<PathBuf> {
        let mut folder = root.to_owned();
        for component in path.components() {
            let above = folder.clone();
            folder.push(component);
            match fs_err::create_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made?;
                    self.made.push(folder.clone());
                }
            }
            inherit_cpus(&above, &folder)?;
        }
        Ok(folder)
    }
}

/// A new group of version 1's `cpuset` has no processors and no memory, and takes no process.
fn inherit_cpus(above: &Path, folder: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (above.join(file), folder.join(file));
        // In version 2 an empty file means those of the group above.
        if folder.join("cgroup.controllers").exists() || !to.exists() {
            continue;
        }
        if fs_err::read_to_string(&to)?.trim().is_empty() {
            fs_err::write(&to, fs_err::read_to_string(&from)?.trim())?;
        }
    }
    Ok(())
}

/// Puts this process into the group at `folder`.
fn join(folder: &Path) -> io::Result<()> {
    fs_err::write(folder.join("cgroup.procs"), "0")
}

/// The path of a group below the root of a hierarchy; none when it leads elsewhere.
fn relative(parent: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(parent).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The hierarchies in `mounts` (`proc_pid_mountinfo(5)`) of which `groups` (`proc_pid_cgroup(5)`) says
/// where this process is.
fn hierarchies(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    let own = |controllers: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (here, path) = (fields.next()?, fields.next()?);
            (here == controllers).then(|| PathBuf::from(path.trim_start_matches('/')))
        })
    };
    let hierarchy = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let root = place.split(' ').nth(4)?;
        let mut kind = kind.split(' ');
        let (file_system, options) = (kind.next()?, kind.nth(1)?);
        let own = match file_system {
            "cgroup2" => own(""),
            "cgroup" => groups
                .lines()
                .filter_map(|line| line.split(':').nth(1))
                .find(|controllers| {
                    let named = |name: &str| options.split(',').any(|option| option == name);
                    !controllers.is_empty() && controllers.split(',').all(named)
                })
                .and_then(own),
            _ => None,
        };
        Some(Hierarchy { root: root.into(), own: own? })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_below_the_root() {
        let check = |parent: &str, expected: Option<&str>| {
            assert_eq!(relative(parent), expected.map(PathBuf::from), "{parent}");
        };
        check("/a/b", Some("a/b"));
        check("a.slice", Some("a.slice"));
        check("./a//b/", Some("a/b"));
        check("/a/../../b", None);
    }

    #[test]
    fn both_versions_are_found() {
        let mounts = "\
25 30 0:23 / /proc rw,relatime - proc proc rw
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,name=systemd
33 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 30 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
";
        let groups = "9:name=systemd:/\n3:cpu,cpuacct:/a/b\n0::/u\n";
        let expected = [
            ("/sys/fs/cgroup/cpu,cpuacct", "a/b"),
            ("/sys/fs/cgroup/systemd", ""),
            ("/sys/fs/cgroup/unified", "u"),
        ]
        .map(|(root, own)| Hierarchy { root: root.into(), own: own.into() });
        assert_eq!(hierarchies(mounts, groups), expected);
    }
}
