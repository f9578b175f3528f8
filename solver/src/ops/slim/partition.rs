//! Whose each file is: the distribution's, which can be pruned, or the user's, which never is.
//!
//! The distribution's is what a package owns and nobody changed since. Beside that there is what
//! nobody needs in an image (caches, logs, documentation, the package manager's own database), and
//! what the packages' scripts left behind, which belongs to the distribution although no package
//! owns it. All else is the user's: what COPY, pip, npm and make brought, and settings that were
//! changed.

use std::io::{self, Read as _};

use md5::{Digest as _, Md5};
use rayon::prelude::*;
use rbuild_cache::pattern::glob_match;
use rbuild_cache::view::ViewError;

use super::files::{FileId, Files};
use super::package::{PackageId, Packages, Sum};
use super::python;

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A package of the distribution brought it, and nobody changed it.
    Distribution(PackageId),
    /// Scripts of packages left it.
    Leftover,
    /// Nobody needs it in an image.
    Junk,
    /// The user brought it, or changed it.
    User,
}

/// Whose each file of a tree is.
#[derive(Debug)]
pub(super) struct Partition {
    origins: Vec<Origin>,
}

/// The most bytes of a file of a package that is compared with its digest.
const PACKAGED_MOST: u64 = 4 << 30;
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

// Paths and patterns below are relative to the root and sorted.

/// Folders whose content nobody needs in an image.
const JUNK_FOLDERS: &[&str] = &[
    "boot",
    "dev",
    "etc/apk",
    "etc/apt",
    "etc/dpkg",
    "lib/apk",
    "proc",
    "root/.cache",
    "root/.config/pip",
    "root/.npm",
    "run",
    "sys",
    "tmp",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/gdb",
    "usr/share/info",
    "usr/share/linda",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/zsh",
    "var/backups",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/lib/pam",
    "var/lib/systemd",
    "var/lib/ucf",
    "var/log",
    "var/tmp",
];

/// What else nobody needs in an image.
const JUNK: &[&str] = &[
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow*",
    "etc/hostname",
    "etc/ld.so.cache",
    "etc/machine-id",
    "etc/mtab",
    "etc/passwd-",
    "etc/resolv.conf",
    "etc/shadow*",
    "etc/subgid*",
    "etc/subuid*",
    "root/.wget-hsts",
    "var/lib/shells.state",
];

/// Folders whose content scripts of packages leave.
const LEFTOVER_FOLDERS: &[&str] = &[
    "etc/alternatives",
    "etc/ca-certificates",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "etc/rcS.d",
    "etc/ssl/certs",
    "etc/systemd",
    "etc/udev",
    "usr/lib/locale",
    "usr/local/share/ca-certificates",
    "usr/share/mime",
    "usr/share/perl5",
    "usr/share/python3",
    "var/lib/ca-certificates-java",
    "var/lib/dbus",
    "var/lib/ispell",
    "var/lib/misc",
    "var/lib/python",
    "var/lib/sgml-base",
    "var/lib/xml-core",
];

/// What else scripts of packages leave.
const LEFTOVERS: &[&str] = &[
    "bin",
    "etc/bash.bashrc",
    "etc/ca-certificates.conf*",
    "etc/environment",
    "etc/group",
    "etc/hosts",
    "etc/inputrc",
    "etc/issue*",
    "etc/localtime",
    "etc/motd",
    "etc/nsswitch.conf",
    "etc/pam.d/common-*",
    "etc/passwd",
    "etc/profile",
    "etc/protocols",
    "etc/securetty",
    "etc/services",
    "etc/shells",
    "etc/timezone",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "root/.bashrc",
    "root/.profile",
    "sbin",
    "usr/bin/*.distrib",
    "usr/lib/*/gconv/gconv-modules.cache",
    "usr/sbin/initctl",
    "usr/sbin/policy-rc.d",
    "usr/share/applications/mimeinfo.cache",
    "usr/share/glib-2.0/schemas/gschemas.compiled",
    "usr/share/icons/*/icon-theme.cache",
];

impl Partition {
    /// Says whose each file is. Reads the files of which the database has digests.
    pub(super) fn of(files: &Files, packages: &Packages) -> Result<Self, ViewError> {
        let mut origins = vec![Origin::User; files.len()];
        // What a folder says of its content; a folder comes before what is in it.
        let mut inside: Vec<Option<Origin>> = vec![None; files.len()];
        for id in files.ids() {
            let path = files.text(id);
            let path = path.trim_start_matches('/');
            let inherited = inside[files.get(id).parent.index()];
            origins[id.index()] = if inherited == Some(Origin::Junk) || is_in(path, JUNK) {
                Origin::Junk
            } else if let Some(package) = packages.owners.get(&id) {
                Origin::Distribution(*package)
            } else if inherited.is_some()
                || packages.folders.contains(&id)
                || is_system_folder(files, id, path)
                || is_in(path, LEFTOVERS)
                || leads_to_alternative(files, id)
            {
                Origin::Leftover
            } else {
                Origin::User
            };
            inside[id.index()] = if JUNK_FOLDERS.binary_search(&path).is_ok() {
                Some(Origin::Junk)
            } else if LEFTOVER_FOLDERS.binary_search(&path).is_ok() {
                Some(Origin::Leftover)
            } else {
                inherited
            };
        }
        let mut partition = Self { origins };
        partition.find_changed(files, packages)?;
        partition.take_compiled(files);
        let unused = python::unused_installers(files, |id| partition.is_users(id))?;
        for id in unused {
            partition.origins[id.index()] = Origin::Junk;
        }
        Ok(partition)
    }

    /// Whose `id` is.
    pub(super) fn origin(&self, id: FileId) -> Origin {
        self.origins[id.index()]
    }

    /// Whose all files are, in the order of the table.
    pub(super) fn all(&self) -> impl Iterator<Item = Origin> + '_ {
        self.origins.iter().copied()
    }

    /// Whether the user brought `id`, or changed it.
    pub(super) fn is_users(&self, id: FileId) -> bool {
        self.origin(id) == Origin::User
    }

    /// What a package brought and somebody changed since is the user's.
    fn find_changed(&mut self, files: &Files, packages: &Packages) -> Result<(), ViewError> {
        let is_asked =
            |id: &FileId| matches!(self.origin(*id), Origin::Distribution(_)) && files.is_file(*id);
        let sums: Vec<(FileId, Sum)> = packages
            .sums
            .iter()
            .map(|(id, sum)| (*id, *sum))
            .filter(|(id, _)| is_asked(id))
            .collect();
        let changed: Vec<Option<FileId>> = sums
            .par_iter()
            .map(|(id, Sum::Md5(sum))| Ok((md5(files, *id)? != Some(*sum)).then_some(*id)))
            .collect::<Result<_, ViewError>>()?;
        for id in changed.into_iter().flatten() {
            self.origins[id.index()] = Origin::User;
        }
        Ok(())
    }

    /// What Python compiled of the distribution's modules belongs to them.
    fn take_compiled(&mut self, files: &Files) {
        for id in files.ids() {
            if !self.is_users(id) || files.name(files.get(id).parent) != "__pycache__" {
                continue;
            }
            let folder = files.get(files.get(id).parent).parent;
            let module = files.name(id).split('.').next().unwrap_or_default();
            let source = files.child(folder, format!("{module}.py").as_ref());
            let is_distribution = |source| matches!(self.origin(source), Origin::Distribution(_));
            if source.is_some_and(is_distribution) {
                self.origins[id.index()] = Origin::Junk;
                let cache = files.get(id).parent;
                if self.is_users(cache) {
                    self.origins[cache.index()] = Origin::Junk;
                }
            }
        }
    }
}

/// The digest of a file; `None` of one that no package brings: it counts as changed.
fn md5(files: &Files, id: FileId) -> Result<Option<[u8; 16]>, ViewError> {
    let Some(mut file) = files.open(id)?.filter(|_| files.size(id) <= PACKAGED_MOST) else {
        return Ok(None);
    };
    let mut hasher = Md5::new();
    let mut buffer = vec![0; usize::try_from(files.size(id)).unwrap_or(0).clamp(1, BUFFER)];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(hasher.finalize().into())),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(files.unreadable(id, error)),
        }
    }
}

/// Whether one of `patterns` is meant.
fn is_in(path: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| {
        // Most differ in their first letters.
        let known = pattern.find(['*', '?']).unwrap_or(pattern.len());
        path.starts_with(&pattern[..known])
            && (path == *pattern || glob_match(pattern, path).is_ok_and(|is_so| is_so))
    })
}

/// Folders of the system that packages' scripts or other tools make, empty as far as packages know.
fn is_system_folder(files: &Files, id: FileId, path: &str) -> bool {
    const FOLDERS: &[&str] = &[
        "",
        "boot",
        "dev",
        "etc",
        "home",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
        "var/cache",
        "var/lib",
        "var/log",
        "var/run",
        "var/lock",
        "var/tmp",
        "var/local",
        "var/mail",
        "var/opt",
        "usr/local",
        "usr/local/bin",
        "usr/local/etc",
        "usr/local/games",
        "usr/local/include",
        "usr/local/lib",
        "usr/local/man",
        "usr/local/sbin",
        "usr/local/share",
        "usr/local/share/ca-certificates",
        "usr/local/share/fonts",
        "usr/local/share/man",
        "usr/local/src",
        "var/spool",
    ];
    FOLDERS.contains(&path) && (files.is_directory(id) || files.get(id).target.is_some())
}

/// Whether it is a link that update-alternatives made.
fn leads_to_alternative(files: &Files, id: FileId) -> bool {
    let target = files.get(id).target.as_ref();
    target.is_some_and(|target| target.starts_with("/etc/alternatives"))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::TestTree;
    use super::*;

    fn md5(text: &str) -> String {
        let bytes: Vec<String> =
            Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.concat()
    }

    #[test]
    fn the_folders_are_sorted() {
        assert!(JUNK_FOLDERS.is_sorted() && LEFTOVER_FOLDERS.is_sorted());
    }

    #[test]
    fn each_file_is_somebodys() {
        let sums = format!("{}  usr/bin/tool\n{}  usr/bin/changed\n", md5("tool"), md5("before"));
        let tree = TestTree::new(&[
            ("x:usr/bin/tool", "tool"),
            ("x:usr/bin/changed", "after"),
            ("usr/bin/awk -> /etc/alternatives/awk", ""),
            ("etc/alternatives/awk -> /usr/bin/mawk", ""),
            ("etc/own.conf", "own"),
            ("usr/share/doc/tool/README", ""),
            ("usr/lib/python3/mod.py", "m"),
            ("usr/lib/python3/__pycache__/mod.cpython-311.pyc", ""),
            ("app/main", ""),
            ("app/__pycache__/main.cpython-311.pyc", ""),
            ("var/lib/apt/lists/x", ""),
            ("var/lib/app/data", ""),
            ("var/lib/dpkg/status", "Package: tool\nStatus: install ok installed\n"),
            (
                "var/lib/dpkg/info/tool.list",
                "/usr/bin/tool\n/usr/bin/changed\n/usr/share/doc/tool/README\n/usr/lib/python3/mod.py\n",
            ),
            ("var/lib/dpkg/info/tool.md5sums", &sums),
        ]);
        let files = tree.files();
        let packages = Packages::read(&files).unwrap();
        let partition = Partition::of(&files, &packages).unwrap();
        let check = |path: &str, expected: Origin| {
            let id = files.lookup(std::path::Path::new(path)).file.unwrap();
            assert_eq!(partition.origin(id), expected, "{path}");
        };
        check("/usr/bin/tool", Origin::Distribution(0));
        check("/usr/bin/changed", Origin::User);
        check("/usr/bin/awk", Origin::Leftover);
        check("/etc/alternatives/awk", Origin::Leftover);
        check("/etc/own.conf", Origin::User);
        check("/usr/share/doc/tool/README", Origin::Junk);
        check("/usr/lib/python3/__pycache__/mod.cpython-311.pyc", Origin::Junk);
        check("/app/main", Origin::User);
        check("/app/__pycache__/main.cpython-311.pyc", Origin::User);
        check("/var/lib/apt/lists/x", Origin::Junk);
        check("/var/lib/app/data", Origin::User);
        check("/var/lib/dpkg/status", Origin::Junk);
    }
}
