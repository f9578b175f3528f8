//! Which hierarchies of control groups are mounted, and where in each this process is.

use std::path::{Path, PathBuf};

/// A mounted hierarchy of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) root: PathBuf,
    /// The group of this process in it.
    pub(super) own: PathBuf,
    /// What it controls.
    pub(super) version: Version,
}

/// The two designs (cgroups(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A hierarchy for a few controllers, named here.
    One(Vec<String>),
    /// One hierarchy, whose groups say what they control.
    Two,
}

/// The hierarchies that this process sees.
pub(super) fn mounted() -> std::io::Result<Vec<Hierarchy>> {
    let mounts = fs_err::read_to_string("/proc/self/mountinfo")?;
    let groups = fs_err::read_to_string("/proc/self/cgroup")?;
    Ok(hierarchies(&mounts, &groups))
}

/// The hierarchies in `mounts` (`proc_pid_mountinfo(5)`) of which `groups` (`proc_pid_cgroup(5)`)
/// says where this process is.
fn hierarchies(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    let path = |matches: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            matches(controllers).then(|| (controllers.to_owned(), path.to_owned()))
        })
    };
    let hierarchy = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (shown, root) = (place.next()?, Path::new(place.next()?));
        let mut kind = kind.split(' ');
        let (file_system, options) = (kind.next()?, kind.nth(1)?);
        let (version, path) = match file_system {
            "cgroup2" => (Version::Two, path(&str::is_empty)?.1),
            "cgroup" => {
                let named = |name: &str| options.split(',').any(|option| option == name);
                let all = |controllers: &str| {
                    !controllers.is_empty() && controllers.split(',').all(named)
                };
                let (controllers, path) = path(&all)?;
                (Version::One(controllers.split(',').map(ToOwned::to_owned).collect()), path)
            }
            _ => return None,
        };
        // A container sees its own group at the mount's root, and may be told the host's path.
        let own = Path::new(&path).strip_prefix(shown).unwrap_or(Path::new(""));
        Some(Hierarchy { root: root.to_owned(), own: root.join(own), version })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mounts: &str, groups: &str, expected: &[(&str, &str, &[&str])]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(root, own, controllers)| Hierarchy {
                root: root.into(),
                own: own.into(),
                version: match controllers {
                    [] => Version::Two,
                    names => Version::One(names.iter().map(ToString::to_string).collect()),
                },
            })
            .collect();
        assert_eq!(hierarchies(mounts, groups), expected);
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
        check(
            mounts,
            groups,
            &[
                (
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/a/b",
                    &["cpu", "cpuacct"],
                ),
                ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd", &["name=systemd"]),
                ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/u", &[]),
            ],
        );
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let mounts = "31 30 0:26 /docker/id /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        check(
            mounts,
            "4:memory:/docker/id/x\n",
            &[("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/x", &["memory"])],
        );
        let mounts = "31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        check(mounts, "0::/\n", &[("/sys/fs/cgroup", "/sys/fs/cgroup", &[])]);
    }
}
