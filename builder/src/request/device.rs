//! `--allow device[=NAME[,alias=NAME]]`: which devices steps may have. Follows `ParseDevicesConfig`
//! in BuildKit's `util/entitlements/entitlements.go`.

use std::collections::{BTreeMap, BTreeSet};

use super::UsageError;

/// Which devices steps may have beyond those that allow it themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceLeave {
    /// All of them (`--allow device`).
    pub all: bool,
    /// Names of devices, kinds or classes.
    pub names: BTreeSet<String>,
    /// What a Dockerfile calls them: alias and name.
    pub aliases: BTreeMap<String, String>,
}

/// Reads the devices of all `--allow`, and gives back the rest. The command line is split at its
/// commas by then, so that `alias=…` belongs to the device before it.
pub(super) fn devices(given: &[String]) -> Result<(DeviceLeave, Vec<String>), UsageError> {
    let wrong = |text: &str, reason: &str| UsageError::value("--allow", text, reason);
    let mut leave = DeviceLeave::default();
    let mut rest = Vec::new();
    let mut last: Option<&str> = None;
    for text in given {
        let before = last.take();
        if text == "device" {
            leave.all = true;
        } else if let Some(name) = text.strip_prefix("device=") {
            if name.is_empty() {
                return Err(wrong(text, "its name is empty"));
            }
            leave.names.insert(name.to_owned());
            last = Some(name);
        } else if let Some(alias) = text.strip_prefix("alias=") {
            let name = before.ok_or_else(|| wrong(text, "it follows no `device=NAME`"))?;
            if alias.is_empty() {
                return Err(wrong(text, "its name is empty"));
            }
            // As in BuildKit, only the alias stands for the device then.
            leave.names.remove(name);
            leave.aliases.insert(alias.to_owned(), name.to_owned());
        } else {
            rest.push(text.clone());
        }
    }
    Ok((leave, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_or_all() {
        let check = |given: &[&str], all: bool, names: &[&str], aliases: &[(&str, &str)]| {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            let (leave, rest) = devices(&given).unwrap();
            assert_eq!(leave.all, all, "{given:?}");
            assert!(leave.names.iter().eq(names), "{given:?}: {leave:?}");
            let found = leave.aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str()));
            assert!(found.eq(aliases.iter().copied()), "{given:?}: {leave:?}");
            assert!(rest.iter().eq(given.iter().filter(|text| *text == "network.host")));
        };
        check(&[], false, &[], &[]);
        check(&["device"], true, &[], &[]);
        check(&["device=a.b/c=d", "network.host"], false, &["a.b/c=d"], &[]);
        check(&["device=a.b/c", "device=e"], false, &["a.b/c", "e"], &[]);
        check(&["device=a.b/c=d", "alias=gpu"], false, &[], &[("gpu", "a.b/c=d")]);
        for wrong in
            [&["device="][..], &["alias=x"], &["device", "alias=x"], &["device=a", "alias="]]
        {
            let given: Vec<String> = wrong.iter().map(|text| (*text).to_owned()).collect();
            assert!(devices(&given).is_err(), "{wrong:?}");
        }
    }
}
