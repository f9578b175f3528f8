//! `config.toml`: what a user wants of every run. Read from `$XDG_CONFIG_HOME/rbuild/config.toml`
//! (`~/.config/rbuild/config.toml`), or where there is none from `/etc/rbuild/config.toml`.
//!
//! ```toml
//! [cache]
//! max-size = "20GB"   # the state folder takes at most so much (20 × 1024³ bytes)
//! min-free = "10%"    # so much of its disk stays free
//! age = "30d"         # what nobody used for so long goes
//!
//! [cdi]
//! spec-dirs = ["/etc/cdi"]   # where devices for `RUN --device` are described
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::amount::{self, Room};
use crate::request::Environment;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How much the state folder may hold.
    pub cache: Budget,
    /// The folders in which devices are described, where they are not the usual ones.
    pub device_folders: Option<Vec<PathBuf>>,
}

/// How much the state folder may hold. Kept at the end of each build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// It takes at most so much.
    pub max_size: Option<Room>,
    /// So much of its disk stays free.
    pub min_free: Option<Room>,
    /// What nobody used for so long goes.
    pub age: Option<Duration>,
}

/// Says what is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {reason}")]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    cache: CacheTable,
    #[serde(default)]
    cdi: CdiTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CdiTable {
    spec_dirs: Option<Vec<PathBuf>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CacheTable {
    max_size: Option<Amount>,
    min_free: Option<Amount>,
    age: Option<String>,
}

/// A number of bytes, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Bytes(u64),
    Text(String),
}

impl Config {
    /// Reads the user's file, otherwise the machine's; nothing is said where there is none.
    pub fn read(environment: &Environment) -> Result<Self, ConfigError> {
        let home = environment.path("HOME").map(|home| home.join(".config"));
        let own = environment.path("XDG_CONFIG_HOME").or(home);
        let own = own.map(|folder| folder.join("rbuild/config.toml"));
        for path in own.into_iter().chain(["/etc/rbuild/config.toml".into()]) {
            match fs_err::read_to_string(&path) {
                Ok(text) => return Self::parse(&path, &text),
                // A home that cannot be entered holds no wishes that could be known.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound
                            | io::ErrorKind::NotADirectory
                            | io::ErrorKind::PermissionDenied
                    ) => {}
                Err(e) => return Err(ConfigError { path, reason: e.to_string() }),
            }
        }
        Ok(Self::default())
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError { path: path.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let room = |name: &str, amount: Option<Amount>| match amount {
            None => Ok(None),
            Some(Amount::Bytes(bytes)) => Ok(Some(Room::Bytes(bytes))),
            Some(Amount::Text(text)) => Room::parse(&text).map(Some).ok_or_else(|| {
                wrong(format!("cache.{name}: `{text}` is no size like `20GB` or `10%`"))
            }),
        };
        let age = |text: String| {
            let no_time = || wrong(format!("cache.age: `{text}` is no time like `30d` or `12h`"));
            amount::duration(&text).ok_or_else(no_time)
        };
        Ok(Self {
            cache: Budget {
                max_size: room("max-size", file.cache.max_size)?,
                min_free: room("min-free", file.cache.min_free)?,
                age: file.cache.age.map(age).transpose()?,
            },
            device_folders: file.cdi.spec_dirs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_says() {
        let text = "[cache]\nmax-size = \"20GB\"\nmin-free = \"10%\"\nage = \"30d\"\n";
        let budget = Config::parse(Path::new("c"), text).unwrap().cache;
        assert_eq!(budget.max_size, Some(Room::Bytes(20 << 30)));
        assert_eq!(budget.min_free, Some(Room::Percent(10)));
        assert_eq!(budget.age, Some(Duration::from_hours(720)));
        assert_eq!(Config::parse(Path::new("c"), "").unwrap(), Config::default());
        let cdi = Config::parse(Path::new("c"), "[cdi]\nspec-dirs = [\"/a\"]\n").unwrap();
        assert_eq!(cdi.device_folders, Some(vec![PathBuf::from("/a")]));
        let check = |text: &str, expected: &str| {
            let error = Config::parse(Path::new("c"), text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("[cache]\nmaxsize = 1\n", "unknown field `maxsize`");
        check("[cache]\nmax-size = \"much\"\n", "`c`: cache.max-size: `much` is no size");
        check("[cache]\nage = \"30\"\n", "cache.age: `30` is no time");
        check("[images]\n", "unknown field `images`");
    }

    #[test]
    fn the_users_file_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".config/rbuild");
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(folder.join("config.toml"), "[cache]\nmax-size = 7\n").unwrap();
        let environment = Environment::with_variables(&[("HOME", home.path().to_str().unwrap())]);
        let config = Config::read(&environment).unwrap();
        assert_eq!(config.cache.max_size, Some(Room::Bytes(7)));
    }
}
