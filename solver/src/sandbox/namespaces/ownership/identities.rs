//! The identities of a step's processes, each by its place in a list.
//!
//! None is ever forgotten: who of the step has which is known to the kernel alone. So the list is
//! bounded, in its length and in the groups that its identities have together; a step that asked
//! for 65,536 groups again and again would otherwise take gigabytes outside of its own limits.

use rustix::io::Errno;

use super::credentials::Identity;

/// The most identities of a step.
const MOST: usize = 10_000;
/// The most supplementary groups of all of them together.
const MOST_GROUPS: usize = 1 << 20;

/// What processes of a step believe to be.
#[derive(Debug)]
pub(super) struct Identities {
    list: Vec<Identity>,
    groups: usize,
}

impl Identities {
    pub(super) fn new(first: Identity) -> Self {
        Self { groups: first.others.len(), list: vec![first] }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, place: usize) -> &Identity {
        &self.list[place]
    }

    /// The place that an identity has or, when it is added next, will have.
    ///
    /// # Errors
    /// `EAGAIN`, which changes of users may end with, when there is no room.
    pub(super) fn place_for(&self, identity: &Identity) -> Result<usize, Errno> {
        if let Some(place) = self.list.iter().position(|known| known == identity) {
            return Ok(place);
        }
        if self.list.len() >= MOST || self.groups + identity.others.len() > MOST_GROUPS {
            return Err(Errno::AGAIN);
        }
        Ok(self.list.len())
    }

    /// Takes an identity in, at the place that it was given.
    pub(super) fn keep(&mut self, place: usize, identity: Identity) {
        if place == self.list.len() {
            self.groups += identity.others.len();
            self.list.push(identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `identities` a step can have after its first.
    fn taken(identities: impl Iterator<Item = Identity>) -> (usize, usize) {
        let mut known = Identities::new(Identity::default());
        for identity in identities {
            let Ok(place) = known.place_for(&identity) else { break };
            known.keep(place, identity);
        }
        (known.len() - 1, known.groups)
    }

    #[test]
    fn endless_lists_of_groups_are_refused() {
        let lists = (0..).map(|last| {
            let others = (1..65_536).chain([65_536 + last]).collect();
            Identity { others, ..Identity::default() }
        });
        assert_eq!(taken(lists), (MOST_GROUPS / 65_536, MOST_GROUPS));
    }

    #[test]
    fn endless_users_are_refused() {
        let groups = (1..).map(|group| Identity { others: vec![group], ..Identity::default() });
        assert_eq!(taken(groups), (MOST - 1, MOST - 1));
    }

    #[test]
    fn who_is_known_keeps_its_place_when_there_is_no_room() {
        let mut known = Identities::new(Identity::default());
        let large = Identity { others: vec![7; MOST_GROUPS], ..Identity::default() };
        let place = known.place_for(&large).unwrap();
        known.keep(place, large.clone());
        known.keep(place, large.clone());
        assert_eq!((known.len(), known.place_for(&large)), (2, Ok(1)));
        let other = Identity { others: vec![8], ..Identity::default() };
        assert_eq!(known.place_for(&other), Err(Errno::AGAIN));
        assert_eq!(known.place_for(&Identity::default()), Ok(0));
    }
}
