//! Who the users of trees are, looked up once: most layers say nothing of them.
//!
//! A step that follows another has one layer more below it. Where that has no `/etc`, its users are
//! those of the step before, and no layer need be opened to know them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rbuild_cache::metadata::FileType;
use rbuild_cache::view::{Entry, View};

use crate::ops::file::FileError;
use crate::ops::file::owner::{self, Account};

/// The accounts that were looked up, by the topmost layer of their tree.
#[derive(Debug, Default)]
pub(crate) struct Accounts(Mutex<HashMap<PathBuf, Known>>);

#[derive(Debug)]
struct Known {
    /// The layers below the topmost one.
    below: Vec<PathBuf>,
    /// By what `USER` says.
    accounts: HashMap<String, Account>,
}

impl Accounts {
    /// The account called `user` in the tree of these layers, lowest first: [`owner::account`].
    pub(crate) fn of(&self, layers: &[PathBuf], user: &str) -> Result<Account, FileError> {
        if let Some(account) = self.known(layers, user) {
            return Ok(account);
        }
        if let Some((top, below)) = layers.split_last()
            && let Some(account) = self.known(below, user)
            && !has_etc(top)
        {
            self.keep(layers, user, &account);
            return Ok(account);
        }
        let view = View::layers(layers.to_vec());
        let account = owner::account(&view, user)?;
        if is_plain(&view)? {
            self.keep(layers, user, &account);
        }
        Ok(account)
    }

    fn known(&self, layers: &[PathBuf], user: &str) -> Option<Account> {
        let (top, below) = layers.split_last()?;
        let all = self.all();
        all.get(top).filter(|known| known.below == below)?.accounts.get(user).cloned()
    }

    fn keep(&self, layers: &[PathBuf], user: &str, account: &Account) {
        let Some((top, below)) = layers.split_last() else { return };
        let mut all = self.all();
        let known = all.entry(top.clone()).or_insert_with(|| Known::over(below));
        if known.below != below {
            *known = Known::over(below);
        }
        known.accounts.insert(user.to_owned(), account.clone());
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn over(below: &[PathBuf]) -> Self {
        Self { below: below.to_vec(), accounts: HashMap::new() }
    }
}

/// Whether a layer has anything at `/etc`, also something that hides what is below it.
fn has_etc(layer: &Path) -> bool {
    let found = fs_err::symlink_metadata(layer.join("etc"));
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether only what is in `/etc` says who users are: where links lead elsewhere, a layer without an
/// `/etc` can say it too.
fn is_plain(view: &View) -> Result<bool, FileError> {
    let is = |entry: &Entry, kind| entry.metadata().file_type == kind;
    let Some(etc) = view.child(&view.root()?, OsStr::new("etc"))? else { return Ok(true) };
    if !is(&etc, FileType::Directory) {
        return Ok(false);
    }
    for name in ["passwd", "group"] {
        let file = view.child(&etc, OsStr::new(name))?;
        if file.is_some_and(|file| !is(&file, FileType::File)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers, each with these files; the home of `root` after each of them.
    fn homes(layers: &[&[(&str, &str)]]) -> Vec<String> {
        let top = tempfile::tempdir().unwrap();
        let accounts = Accounts::default();
        let mut folders = Vec::new();
        let mut homes = Vec::new();
        for (number, files) in layers.iter().enumerate() {
            let folder = top.path().join(number.to_string());
            fs_err::create_dir(&folder).unwrap();
            for (path, text) in *files {
                let path = folder.join(path);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                match text.strip_prefix("-> ") {
                    Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                    None => fs_err::write(path, text).unwrap(),
                }
            }
            folders.push(folder);
            homes.push(accounts.of(&folders, "root").unwrap().home);
            // What is asked again is known, and the same.
            assert_eq!(accounts.of(&folders, "root").unwrap().home, homes[number]);
        }
        homes
    }

    fn line(home: &str) -> String {
        format!("root:x:0:0::/{home}:/bin/sh\n")
    }

    #[test]
    fn layers_without_users_change_nothing() {
        let (a, b) = (line("a"), line("b"));
        assert_eq!(
            homes(&[&[("etc/passwd", &a)], &[("x", "")], &[("etc/x", "")], &[("etc/passwd", &b)]]),
            ["/a", "/a", "/a", "/b"]
        );
    }

    #[test]
    fn where_links_lead_may_change_in_any_layer() {
        let (a, b) = (line("a"), line("b"));
        assert_eq!(
            homes(&[&[("etc", "-> usr"), ("usr/passwd", &a)], &[("usr/passwd", &b)]]),
            ["/a", "/b"]
        );
        assert_eq!(homes(&[&[("etc/passwd", "-> /p"), ("p", &a)], &[("p", &b)]]), ["/a", "/b"]);
    }

    #[test]
    fn a_layer_over_another_tree_has_other_users() {
        let top = tempfile::tempdir().unwrap();
        let folder = |name: &str, text: Option<&str>| {
            let folder = top.path().join(name);
            fs_err::create_dir_all(folder.join(if text.is_some() { "etc" } else { "x" })).unwrap();
            if let Some(text) = text {
                fs_err::write(folder.join("etc/passwd"), text).unwrap();
            }
            folder
        };
        let (a, b) = (folder("a", Some(&line("a"))), folder("b", Some(&line("b"))));
        let shared = folder("shared", None);
        let accounts = Accounts::default();
        let home = |layers: &[&PathBuf]| {
            let layers: Vec<PathBuf> = layers.iter().map(|layer| (*layer).clone()).collect();
            accounts.of(&layers, "root").unwrap().home
        };
        assert_eq!([home(&[&a]), home(&[&a, &shared])], ["/a", "/a"]);
        assert_eq!([home(&[&b]), home(&[&b, &shared])], ["/b", "/b"]);
        assert_eq!(home(&[&a, &shared]), "/a");
    }
}
