//! Control groups: a step in one of its own, where one was asked for (`--cgroup-parent`) or a limit
//! needs one (`--memory`, `--cpus`, …).
//!
//! The server finds out once a build where groups can be made ([`Places`]); each supervisor makes
//! its step's below that, goes in, starts the step, which is born there, and comes out again: so
//! nothing of rbuild itself counts against the limits, or is killed for them. When the step has
//! ended, the supervisor removes the group. Both versions are treated (cgroups(7)). Where nothing
//! asks for a group none is made: steps stay in rbuild's own, and its limits hold for them.

mod delegate;
mod hierarchy;
mod setting;

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::delegate::Moved;
use self::hierarchy::{Hierarchy, Version};
use self::setting::Controller;
use super::message::{Failure, OrFail};
use crate::sandbox::resources::Resources;

/// What the groups of a build are called begins so; the rest no two share.
const PREFIX: &str = "rbuild-";

/// How often a group is made anew that another rbuild took for one left behind.
const ATTEMPTS: usize = 8;

/// What control groups are wanted for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// `--cgroup-parent`
    pub(super) parent: Option<String>,
    /// The limits.
    pub(super) resources: Resources,
}

impl Wanted {
    /// Whether there is anything to do.
    pub(super) fn is_nothing(&self) -> bool {
        self.parent.is_none() && self.resources.is_unlimited()
    }
}

/// Where the groups of steps are made. Ended with [`Places::leave`].
#[derive(Debug)]
pub(super) struct Places {
    wanted: Wanted,
    list: Vec<Place>,
    /// Folders that were made above the groups of steps, highest first.
    made: Vec<PathBuf>,
    moved: Option<Moved>,
}

/// The place in one hierarchy.
#[derive(Debug)]
struct Place {
    version: Version,
    /// The group below which those of steps are made.
    parent: PathBuf,
    /// The group that this process is in.
    own: PathBuf,
    controllers: Vec<Controller>,
}

impl Places {
    /// Finds, or makes, the places for what is `wanted`, and removes what a killed rbuild left there.
    pub(super) fn find(wanted: Wanted) -> Result<Self, Failure> {
        let what = || "cannot look at the control groups";
        let hierarchies = hierarchy::mounted().or_fail(what)?;
        let relative = wanted
            .parent
            .as_deref()
            .map(|parent| {
                relative(parent).ok_or_else(|| {
                    Failure::refusal(format!("`{parent}` is not the path of a control group"))
                })
            })
            .transpose()?;
        let mut places = Self { wanted, list: Vec::new(), made: Vec::new(), moved: None };
        let mut missing: Vec<Controller> = Controller::ALL
            .into_iter()
            .filter(|controller| controller.flag(&places.wanted.resources).is_some())
            .collect();
        // A controller is in one hierarchy; the ones of version 1 say which they have.
        let (one, two): (Vec<_>, Vec<_>) =
            hierarchies.into_iter().partition(|one| one.version != Version::Two);
        for hierarchy in one.into_iter().chain(two) {
            let has = available(&hierarchy);
            let (controllers, rest) =
                missing.into_iter().partition(|one| has.iter().any(|name| name == one.name()));
            missing = rest;
            if relative.is_some() || !controllers.is_empty() {
                let found = places.add(hierarchy, relative.as_deref(), controllers);
                if let Err(failure) = found {
                    places.leave();
                    return Err(failure);
                }
            }
        }
        if let Some(flag) = missing.first().and_then(|one| one.flag(&places.wanted.resources)) {
            let name = missing[0].name();
            places.leave();
            return Err(Failure::refusal(format!(
                "`{flag}` cannot be kept: no control groups for `{name}` are mounted here"
            ))
            .with_hint(HINT));
        }
        if places.list.is_empty() {
            return Err(Failure::refusal(
                "`--cgroup-parent` cannot be kept: no control groups are mounted here",
            )
            .with_hint(HINT));
        }
        Ok(places)
    }

    /// What these places were found for.
    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn add(
        &mut self,
        hierarchy: Hierarchy,
        relative: Option<&Path>,
        controllers: Vec<Controller>,
    ) -> Result<(), Failure> {
        let Hierarchy { root, mut own, version } = hierarchy;
        let flag = controllers
            .first()
            .and_then(|controller| controller.flag(&self.wanted.resources))
            .unwrap_or("--cgroup-parent");
        let what = || format!("`{flag}` cannot be kept: no control group can be made");
        let parent = match (relative, &version) {
            (Some(relative), version) => {
                let parent = self.make(&root, relative);
                let enabled = parent.and_then(|parent| {
                    if *version == Version::Two {
                        delegate::enable(&root, &parent, &controllers)?;
                    }
                    Ok(parent)
                });
                enabled.or_fail(what).map_err(hint)?
            }
            (None, Version::One(_)) => own.clone(),
            (None, Version::Two) => {
                let (parent, moved) =
                    delegate::place(&root, &own, &controllers).or_fail(what).map_err(hint)?;
                if let Some(moved) = moved {
                    moved.leaf().clone_into(&mut own);
                    self.moved = Some(moved);
                }
                parent
            }
        };
        sweep(&parent);
        self.list.push(Place { version, parent, own, controllers });
        Ok(())
    }

    /// Makes the group `path` below `root`, and what is missing above it.
    fn make(&mut self, root: &Path, path: &Path) -> io::Result<PathBuf> {
        let mut folder = root.to_owned();
        for component in path.components() {
            let above = folder.clone();
            folder.push(component);
            if make_group(&above, &folder)? {
                self.made.push(folder.clone());
            }
        }
        Ok(folder)
    }

    /// Removes what [`Places::find`] made, when no step runs any more.
    pub(super) fn leave(self) {
        // What is in use by somebody else stays, and what is gone is gone.
        for folder in self.made.iter().rev() {
            let _ = fs_err::remove_dir(folder);
        }
        if let Some(moved) = self.moved {
            moved.back();
        }
    }
}

/// The group of one step. Ended with [`Group::remove`].
#[derive(Debug)]
pub(super) struct Group {
    folders: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    folder: PathBuf,
    own: PathBuf,
    /// Where the kernel counts whom it killed for want of memory, if this group limits it.
    killed: Option<&'static str>,
}

impl Group {
    /// Makes a group in every place, sets its limits, and enters it.
    pub(super) fn enter(places: &Places) -> Result<Self, Failure> {
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let mut group = Self { folders: Vec::new() };
            match group.make(places) {
                Ok(()) => return Ok(group),
                Err(failure) => {
                    group.come_out();
                    group.remove();
                    let vanished = matches!(failure.errno, Some(libc::ENOENT | libc::ENODEV));
                    if !vanished || attempts.next().is_none() {
                        return Err(failure);
                    }
                }
            }
        }
    }

    fn make(&mut self, places: &Places) -> Result<(), Failure> {
        let unique = fs_err::read_to_string("/proc/sys/kernel/random/uuid")
            .or_fail(|| "cannot name a control group")?;
        for place in &places.list {
            let folder = place.parent.join(format!("{PREFIX}{}", unique.trim()));
            let flags: Vec<_> = place
                .controllers
                .iter()
                .filter_map(|controller| controller.flag(&places.wanted.resources))
                .collect();
            let flag = flags.first().copied().unwrap_or("--cgroup-parent");
            let what = || format!("`{flag}` cannot be kept: no control group can be made");
            make_group(&place.parent, &folder).or_fail(what).map_err(hint)?;
            let killed =
                place.controllers.contains(&Controller::Memory).then_some(match place.version {
                    Version::One(_) => "memory.oom_control",
                    Version::Two => "memory.events",
                });
            self.folders.push(Made { folder: folder.clone(), own: place.own.clone(), killed });
            for controller in &place.controllers {
                for setting in controller.settings(&places.wanted.resources, &place.version) {
                    let file = folder.join(setting.file);
                    match fs_err::write(&file, &setting.value) {
                        Err(_) if !setting.asked => {}
                        written => written.or_fail(|| {
                            format!(
                                "`{}` cannot be kept: the kernel does not take `{}` as `{}`",
                                setting.flag, setting.value, setting.file
                            )
                        })?,
                    }
                }
            }
            join(&folder).or_fail(|| {
                format!("`{flag}` cannot be kept: a step cannot enter its control group")
            })?;
        }
        Ok(())
    }

    /// Puts this process back to where it was; what it started stays in the group.
    pub(super) fn come_out(&self) {
        for made in &self.folders {
            // A group that cannot be left cannot be removed; it then holds nothing but this process.
            let _ = join(&made.own);
        }
    }

    /// Whether it limits memory, and so counts whom that killed.
    pub(super) fn limits_memory(&self) -> bool {
        self.folders.iter().any(|made| made.killed.is_some())
    }

    /// How many processes of the group were killed for want of memory.
    pub(super) fn killed_for_memory(&self) -> u64 {
        let count = |made: &Made| -> Option<u64> {
            let text = fs_err::read_to_string(made.folder.join(made.killed?)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        };
        self.folders.iter().filter_map(count).sum()
    }

    /// Removes the group, which nothing is in any more.
    pub(super) fn remove(self) {
        for made in self.folders {
            // If something is in it all the same, a later build removes it.
            let _ = fs_err::remove_dir(made.folder);
        }
    }
}

const HINT: &str = "limits need control groups that rbuild may write to: run it as root, as a user \
    under systemd by `systemd-run --user --scope -p Delegate=yes rbuild …`, or in a container to \
    which /sys/fs/cgroup is given writable";

fn hint(failure: Failure) -> Failure {
    match failure.errno {
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::EBUSY) => failure.with_hint(HINT),
        _ => failure,
    }
}

/// The names of the controllers that `hierarchy` has.
fn available(hierarchy: &Hierarchy) -> Vec<String> {
    match &hierarchy.version {
        Version::One(names) => names.clone(),
        Version::Two => {
            // A hierarchy that cannot be read has none that could be used.
            let names = fs_err::read_to_string(hierarchy.root.join("cgroup.controllers"));
            names.unwrap_or_default().split_whitespace().map(ToOwned::to_owned).collect()
        }
    }
}

/// Makes the group `folder` below `above` unless it is there. Says whether it was made.
fn make_group(above: &Path, folder: &Path) -> io::Result<bool> {
    let made = match fs_err::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        made => made.map(|()| true)?,
    };
    inherit_cpus(above, folder)?;
    Ok(made)
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

/// Removes the groups below `parent` that an rbuild made which was killed together with all that
/// would have tidied up. One with something in it cannot be removed, so none that is in use is; who
/// loses one before it goes in makes another.
fn sweep(parent: &Path) {
    let Ok(entries) = fs_err::read_dir(parent) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs_err::remove_dir(entry.path());
        }
    }
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
}
