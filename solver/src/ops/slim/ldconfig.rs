//! Where the loader looks for libraries: `LD_LIBRARY_PATH`, its cache, its default folders.
//!
//! glibc's loader reads no `ld.so.conf`, only the cache that ldconfig made of it. So a cache that
//! names a library which is kept is written anew, with just the kept ones in it; musl's loader
//! reads `/etc/ld-musl-*.path`.

use std::path::Path;

use rbuild_cache::view::ViewError;

use super::files::{FileId, Files};

/// Where the cache is.
pub(super) const CACHE: &str = "/etc/ld.so.cache";
/// What the current form of the cache begins with (glibc, `dl-cache.h`).
const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// The bit of `hwcap` that makes it an index into a list of names.
const HWCAP_BY_NAME: u64 = 1 << 62;

/// Folders that loaders look in by themselves, besides those of the architecture.
const FOLDERS: &[&str] = &["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];

/// An entry of the loader's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheEntry {
    flags: u32,
    os_version: u32,
    hwcap: u64,
    /// What the library is called.
    pub(super) name: String,
    /// Where it is.
    pub(super) path: String,
}

/// Where libraries are looked for when the program itself does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct LibraryFolders {
    /// The loader's cache.
    pub(super) cache: Vec<CacheEntry>,
    /// Folders, in order.
    pub(super) folders: Vec<String>,
}

impl LibraryFolders {
    /// Those of a tree whose programs run with `env`.
    pub(super) fn of(files: &Files, env: &[String]) -> Result<Self, ViewError> {
        let cache = match files.resolve(Path::new(CACHE)).file {
            Some(id) => files.read_file(id)?.map(|bytes| decode(&bytes)).unwrap_or_default(),
            None => Vec::new(),
        };
        let mut folders = Vec::new();
        for variable in env {
            if let Some(value) = variable.strip_prefix("LD_LIBRARY_PATH=") {
                folders.extend(value.split([':', ';']).filter(|one| !one.is_empty()));
            }
        }
        let mut folders: Vec<String> = folders.into_iter().map(str::to_owned).collect();
        let mut of_architecture = Vec::new();
        if let Some(lib) = files.resolve(Path::new("/usr/lib")).file {
            for child in &files.get(lib).children {
                let name = files.name(*child);
                if files.is_directory(*child) && name.contains("-linux-") {
                    of_architecture.push(name.to_owned());
                }
            }
        }
        for name in of_architecture {
            folders.push(format!("/lib/{name}"));
            folders.push(format!("/usr/lib/{name}"));
        }
        if let Some(etc) = files.resolve(Path::new("/etc")).file {
            for child in &files.get(etc).children {
                let name = files.name(*child);
                if name.starts_with("ld-musl-")
                    && let Some(text) = files.read_text(&format!("/etc/{name}"))?
                {
                    let listed = text.split([':', '\n']).map(str::trim);
                    folders.extend(listed.filter(|one| !one.is_empty()).map(str::to_owned));
                }
            }
        }
        folders.extend(FOLDERS.iter().map(|folder| (*folder).to_owned()));
        Ok(Self { cache, folders })
    }

    /// Where a library called `name` may be, in the order in which the loader looks.
    pub(super) fn places(&self, name: &str) -> Vec<String> {
        let cached = self.cache.iter().filter(|entry| entry.name == name);
        let mut places: Vec<String> = cached.map(|entry| entry.path.clone()).collect();
        places.extend(self.folders.iter().map(|folder| format!("{folder}/{name}")));
        places
    }

    /// Whether a library in the folder of `path` is found without the cache.
    fn is_default(path: &str, architectures: &[String]) -> bool {
        let Some((folder, _)) = path.rsplit_once('/') else { return false };
        ["/lib", "/usr/lib", "/lib64", "/usr/lib64"].contains(&folder)
            || architectures.iter().any(|name| {
                folder == format!("/lib/{name}") || folder == format!("/usr/lib/{name}")
            })
    }

    /// The bytes of a cache with just the libraries that are kept; `None` when all of them are
    /// found without one.
    pub(super) fn pruned_cache(
        &self,
        files: &Files,
        is_kept: impl Fn(FileId) -> bool,
    ) -> Option<Vec<u8>> {
        let architectures: Vec<String> = self
            .folders
            .iter()
            .filter_map(|folder| folder.strip_prefix("/usr/lib/"))
            .filter(|name| name.contains("-linux-"))
            .map(str::to_owned)
            .collect();
        let kept = |entry: &&CacheEntry| {
            entry.hwcap & HWCAP_BY_NAME == 0
                && files.resolve(Path::new(&entry.path)).file.is_some_and(&is_kept)
        };
        let kept: Vec<&CacheEntry> = self.cache.iter().filter(kept).collect();
        let needed = kept.iter().any(|entry| !Self::is_default(&entry.path, &architectures));
        needed.then(|| encode(&kept))
    }
}

/// Reads a cache; what is not of the current form is no cache.
fn decode(bytes: &[u8]) -> Vec<CacheEntry> {
    // Older systems put the old form first, padded to eight bytes.
    let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC);
    let Some(bytes) = start.map(|start| &bytes[start..]) else { return Vec::new() };
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let string = |at: u32| -> Option<String> {
        let rest = bytes.get(usize::try_from(at).ok()?..)?;
        let text = rest.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let count = number(20).unwrap_or(0) as usize;
    let mut entries = Vec::new();
    for index in 0..count.min(bytes.len() / ENTRY) {
        let at = HEADER + index * ENTRY;
        let entry = || {
            let low = u64::from(number(at + 16)?);
            Some(CacheEntry {
                flags: number(at)?,
                name: string(number(at + 4)?)?,
                path: string(number(at + 8)?)?,
                os_version: number(at + 12)?,
                hwcap: low | u64::from(number(at + 20)?) << 32,
            })
        };
        entries.extend(entry());
    }
    entries
}

/// Writes a cache with `entries`, whose order is that of the one they are from.
fn encode(entries: &[&CacheEntry]) -> Vec<u8> {
    let mut strings = Vec::new();
    let mut table = Vec::new();
    let base = HEADER + entries.len() * ENTRY;
    let number = |value: usize| u32::try_from(value).expect("smaller than 4 GiB").to_le_bytes();
    for entry in entries {
        table.extend(entry.flags.to_le_bytes());
        for text in [&entry.name, &entry.path] {
            table.extend(number(base + strings.len()));
            strings.extend(text.as_bytes());
            strings.push(0);
        }
        table.extend(entry.os_version.to_le_bytes());
        table.extend(entry.hwcap.to_le_bytes());
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(number(entries.len()));
    bytes.extend(number(strings.len()));
    // Little endian, padding, no extensions, unused.
    bytes.extend([2, 0, 0, 0]);
    bytes.extend([0; 16]);
    debug_assert_eq!(bytes.len(), HEADER, "as long as the loader expects");
    bytes.extend(table);
    bytes.extend(strings);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::TestTree;
    use super::*;

    fn entry(name: &str, path: &str) -> CacheEntry {
        let (name, path) = (name.to_owned(), path.to_owned());
        CacheEntry { flags: 0x303, os_version: 0, hwcap: 0, name, path }
    }

    #[test]
    fn the_cache_of_this_machine_is_read() {
        // Machines without one have nothing to compare with.
        let Ok(bytes) = fs_err::read(CACHE) else { return };
        let entries = decode(&bytes);
        assert!(entries.iter().any(|entry| entry.name == "libc.so.6"), "{entries:?}");
        let all: Vec<&CacheEntry> = entries.iter().collect();
        assert_eq!(decode(&encode(&all)), entries);
    }

    #[test]
    fn a_stale_cache_is_dropped_and_a_needed_one_holds_what_is_kept() {
        let tree = TestTree::new(&[
            ("usr/lib/x86_64-linux-gnu/libc.so.6", ""),
            ("opt/own/libown.so.1", ""),
            ("opt/own/libgone.so.1", ""),
        ]);
        let libc = entry("libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        let own = entry("libown.so.1", "/opt/own/libown.so.1");
        let gone = entry("libgone.so.1", "/opt/own/libgone.so.1");
        tree.add("etc/ld.so.cache", &encode(&[&libc, &own, &gone]));
        let files = tree.files();
        let folders = LibraryFolders::of(&files, &[]).unwrap();
        assert_eq!(folders.places("libown.so.1")[0], "/opt/own/libown.so.1");
        let kept = |names: &'static [&'static str]| {
            let files = &files;
            folders.pruned_cache(files, move |id| names.contains(&files.name(id)))
        };
        assert_eq!(kept(&["libc.so.6"]), None);
        assert_eq!(decode(&kept(&["libc.so.6", "libown.so.1"]).unwrap()), [libc, own]);
    }

    #[test]
    fn a_damaged_cache_is_none() {
        let bytes = encode(&[&entry("liba.so.1", "/opt/liba.so.1")]);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length]);
        }
        assert_eq!(decode(b"nothing"), []);
    }
}
