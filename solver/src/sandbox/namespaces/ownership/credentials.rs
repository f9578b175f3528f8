//! Who a process of a step believes to be, where all of them are the same user.
//!
//! The rules are those of the kernel for root and everybody else (credentials(7), `kernel/sys.c`);
//! capabilities are not looked at.

use rustix::io::Errno;

use crate::sandbox::Credentials;

/// "As it is", where an id is expected.
const UNCHANGED: u32 = u32::MAX;

/// The ids of a process as one kind, user or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
    pub(super) saved: u32,
    /// What files are made with.
    pub(super) files: u32,
}

impl Ids {
    fn all(id: u32) -> Self {
        Self { real: id, effective: id, saved: id, files: id }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// `setuid`
    fn set(self, id: u32, privileged: bool) -> Result<Self, Errno> {
        if id == UNCHANGED {
            Err(Errno::INVAL)
        } else if privileged {
            Ok(Self::all(id))
        } else if id == self.real || id == self.saved {
            Ok(Self { effective: id, files: id, ..self })
        } else {
            Err(Errno::PERM)
        }
    }

    /// `setreuid`
    fn set_two(self, real: u32, effective: u32, privileged: bool) -> Result<Self, Errno> {
        let mut new = self;
        if real != UNCHANGED {
            if !privileged && real != self.real && real != self.effective {
                return Err(Errno::PERM);
            }
            new.real = real;
        }
        if effective != UNCHANGED {
            if !privileged && !self.has(effective) {
                return Err(Errno::PERM);
            }
            new.effective = effective;
        }
        if real != UNCHANGED || (effective != UNCHANGED && effective != self.real) {
            new.saved = new.effective;
        }
        Ok(Self { files: new.effective, ..new })
    }

    /// `setresuid`
    fn set_three(self, ids: [u32; 3], privileged: bool) -> Result<Self, Errno> {
        if !privileged && ids.iter().any(|id| *id != UNCHANGED && !self.has(*id)) {
            return Err(Errno::PERM);
        }
        let new = |id, old| if id == UNCHANGED { old } else { id };
        let effective = new(ids[1], self.effective);
        let (real, saved) = (new(ids[0], self.real), new(ids[2], self.saved));
        Ok(Self { real, effective, saved, files: effective })
    }

    /// `setfsuid`, which never fails.
    fn set_files(self, id: u32, privileged: bool) -> Self {
        let allowed = privileged || self.has(id) || id == self.files;
        if id != UNCHANGED && allowed { Self { files: id, ..self } } else { self }
    }

    /// Executing a program; `effective` when it is setuid.
    fn execute(self, effective: Option<u32>) -> Self {
        let effective = effective.unwrap_or(self.effective);
        Self { real: self.real, effective, saved: effective, files: effective }
    }
}

/// A change that a process asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set(Kind, u32),
    SetTwo(Kind, u32, u32),
    SetThree(Kind, [u32; 3]),
    SetFiles(Kind, u32),
    Groups(Vec<u32>),
    /// With the ids that a setuid and setgid program brings.
    Execute(Option<u32>, Option<u32>),
}

/// Of which ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Group,
}

/// All that a process believes to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) users: Ids,
    pub(super) groups: Ids,
    /// Supplementary groups.
    pub(super) others: Vec<u32>,
}

impl Identity {
    /// A process that starts as `user`.
    pub(super) fn of(user: &Credentials) -> Self {
        let (users, groups) = (Ids::all(user.uid), Ids::all(user.gid));
        Self { users, groups, others: user.groups.clone() }
    }

    pub(super) fn ids(&self, kind: Kind) -> &Ids {
        match kind {
            Kind::User => &self.users,
            Kind::Group => &self.groups,
        }
    }

    /// Whether files are made, and owners set, as root.
    pub(super) fn is_root_to_files(&self) -> bool {
        self.users.files == 0
    }

    /// Whether it is in this group, to files.
    pub(super) fn is_in_group(&self, gid: u32) -> bool {
        self.groups.files == gid || self.others.contains(&gid)
    }

    /// What it is after `change`.
    ///
    /// # Errors
    /// What the kernel would answer.
    pub(super) fn changed(&self, change: &Change) -> Result<Self, Errno> {
        let root = self.users.effective == 0;
        let with = |kind, ids| match kind {
            Kind::User => Self { users: ids, ..self.clone() },
            Kind::Group => Self { groups: ids, ..self.clone() },
        };
        Ok(match change {
            Change::Set(kind, id) => with(*kind, self.ids(*kind).set(*id, root)?),
            Change::SetTwo(kind, real, effective) => {
                with(*kind, self.ids(*kind).set_two(*real, *effective, root)?)
            }
            Change::SetThree(kind, ids) => with(*kind, self.ids(*kind).set_three(*ids, root)?),
            Change::SetFiles(kind, id) => with(*kind, self.ids(*kind).set_files(*id, root)),
            Change::Groups(others) if root => Self { others: others.clone(), ..self.clone() },
            Change::Groups(_) => return Err(Errno::PERM),
            Change::Execute(user, group) => Self {
                users: self.users.execute(*user),
                groups: self.groups.execute(*group),
                others: self.others.clone(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Group, User};
    use super::*;

    fn check(start: u32, changes: &[Change], expected: Result<[u32; 4], Errno>) {
        let start = Identity::of(&Credentials { uid: start, gid: start, groups: vec![start] });
        let end = changes.iter().try_fold(start, |identity, change| identity.changed(change));
        let ids =
            end.map(|Identity { users: ids, .. }| [ids.real, ids.effective, ids.saved, ids.files]);
        assert_eq!(ids, expected, "{changes:?}");
    }

    #[test]
    fn root_becomes_anybody_and_cannot_return() {
        use Change::{Groups, Set, SetFiles, SetThree, SetTwo};
        let no = UNCHANGED;
        check(0, &[Set(User, 7)], Ok([7; 4]));
        check(0, &[Set(User, 7), Set(User, 0)], Err(Errno::PERM));
        check(0, &[Set(User, no)], Err(Errno::INVAL));
        check(0, &[SetThree(User, [no, 7, no])], Ok([0, 7, 0, 7]));
        check(0, &[SetThree(User, [no, 7, no]), Set(User, 0)], Ok([0; 4]));
        check(0, &[SetThree(User, [7, 8, 9]), SetThree(User, [9, 7, 8])], Ok([9, 7, 8, 7]));
        check(0, &[SetThree(User, [7, 8, 9]), SetThree(User, [9, 7, 1])], Err(Errno::PERM));
        check(0, &[SetTwo(User, 7, 7), SetTwo(User, 7, 0)], Err(Errno::PERM));
        check(0, &[SetTwo(User, no, 7)], Ok([0, 7, 7, 7]));
        check(0, &[SetTwo(User, no, 0)], Ok([0; 4]));
        check(0, &[SetFiles(User, 7)], Ok([0, 0, 0, 7]));
        check(7, &[SetFiles(User, 0)], Ok([7; 4]));
        check(7, &[Groups(vec![])], Err(Errno::PERM));
        check(7, &[Set(Group, 0)], Err(Errno::PERM));
        check(0, &[Set(Group, 7), Set(Group, 0)], Ok([0; 4]));
    }

    #[test]
    fn setuid_programs_bring_their_owner() {
        check(7, &[Change::Execute(Some(0), None)], Ok([7, 0, 0, 0]));
        check(7, &[Change::Execute(Some(0), None), Change::Set(User, 0)], Ok([0; 4]));
        let dropped = Change::SetThree(User, [UNCHANGED, 7, UNCHANGED]);
        check(0, &[dropped, Change::Execute(None, None)], Ok([0, 7, 7, 7]));
    }

    #[test]
    fn groups_count_for_files() {
        let identity = Identity::of(&Credentials { uid: 1, gid: 2, groups: vec![3] });
        assert!(identity.is_in_group(2) && identity.is_in_group(3) && !identity.is_in_group(1));
        assert!(!identity.is_root_to_files());
    }
}
