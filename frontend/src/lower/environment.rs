//! Variables in the order in which a step gets them.

use std::collections::{BTreeMap, HashMap};

use crate::expand::Env;

/// Variables and their values. Setting one again moves it to the end (BuildKit: `llb.EnvList`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// Name and value by place. Places of variables that were forgotten stay empty.
    variables: BTreeMap<usize, (String, String)>,
    /// The place of each name.
    places: HashMap<String, usize>,
    next: usize,
}

impl Environment {
    /// Sets a variable.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.places.insert(name.to_owned(), self.next);
        self.variables.insert(self.next, (name.to_owned(), value.to_owned()));
        self.next += 1;
    }

    /// Forgets a variable.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(place) = self.places.remove(name) {
            self.variables.remove(&place);
        }
    }

    /// The names of all variables.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.values().map(|(name, _)| name.as_str())
    }

    /// `NAME=value`, in order.
    pub(crate) fn pairs(&self) -> Vec<String> {
        self.variables.values().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl Env for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        self.variables.get(place).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_set_again_moves_to_the_end() {
        let mut environment = Environment::default();
        environment.set("A", "1");
        environment.set("B", "2");
        environment.set("A", "3");
        assert_eq!(environment.pairs(), ["B=2", "A=3"]);
        environment.remove("B");
        assert_eq!((environment.get("A"), environment.get("B")), (Some("3"), None));
    }
}
