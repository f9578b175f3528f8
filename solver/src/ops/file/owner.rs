//! Who users and groups are, from the `/etc/passwd` and `/etc/group` of a tree.
//!
//! For files: `--chown`, as BuildKit reads it (`solver/llbsolver/ops/user_linux.go`): an unknown name
//! is silently root. For processes: `USER`, as BuildKit and runc read it (executor/oci/user.go,
//! moby/sys/user): an unknown name is an error. The files belong to the image: they are read
//! through a [`View`], must be regular files and of a bounded size.

use std::io::Read;
use std::path::Path;

use rbuild_cache::view::View;

use super::FileError;
use crate::graph::{Name, Owner};
use crate::sandbox::Credentials;

/// The largest `/etc/passwd` and `/etc/group` that are read, in bytes; BuildKit's.
const USER_FILE_MAX: u64 = 10 << 20;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User, group and supplementary groups.
    pub credentials: Credentials,
    /// The home folder; `/` for users that `/etc/passwd` does not know, root's is `/root`.
    pub home: String,
}

/// The account called `user[:group]`, by names or numbers, in the tree `view`.
///
/// With both as numbers no file is read, and there are no supplementary groups, as in BuildKit.
/// The empty text is root.
///
/// # Errors
/// When a name is unknown, or the files cannot be read.
pub fn account(view: &View, user: &str) -> Result<Account, FileError> {
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let users = user_lines(view, "/etc/passwd", 7)?;
    let number = |text: &str| if text == "root" { Some(0) } else { text.parse::<u32>().ok() };
    // A number is never a name.
    let known = users.iter().find(|line| match user.parse::<u32>() {
        Ok(uid) => line[2].parse() == Ok(uid),
        Err(_) => line[0] == user,
    });
    let root = number(user) == Some(0);
    let (uid, user_gid, home) = match (known, number(user)) {
        (Some(line), _) => (id(&line[2])?, id(&line[3])?, line[5].clone()),
        (None, Some(uid)) => (uid, 0, String::new()),
        (None, None) => return Err(FileError::UnknownUser(user.to_owned())),
    };
    let home = match home.as_str() {
        "" if root => "/root".to_owned(),
        "" => "/".to_owned(),
        home => home.to_owned(),
    };
    if let (Some(group), Some(uid)) = (group, number(user))
        && let Some(gid) = number(group)
    {
        let credentials = Credentials { uid, gid, groups: vec![gid] };
        return Ok(Account { credentials, home });
    }
    let groups = user_lines(view, "/etc/group", 4)?;
    let group = group.filter(|group| !group.is_empty());
    let gid = match group {
        None => user_gid,
        Some(group) => {
            let line = groups.iter().find(|line| line[0] == group);
            match (number(group), line) {
                (Some(gid), _) => gid,
                (None, Some(line)) => id(&line[2])?,
                (None, None) => return Err(FileError::UnknownGroup(group.to_owned())),
            }
        }
    };
    let mut all = vec![gid];
    // A group that was asked for comes alone (moby/sys/user, `GetExecUser`).
    if let (None, Some(line)) = (group, known) {
        for other in &groups {
            let other_gid = id(&other[2])?;
            let member = other[3].split(',').any(|member| member == line[0]);
            if member && !all.contains(&other_gid) {
                all.push(other_gid);
            }
        }
    }
    Ok(Account { credentials: Credentials { uid, gid, groups: all }, home })
}

/// User and group of files that are to belong to `owner`.
///
/// # Errors
/// When a name is to be looked up in a tree without any layer: there are no files to know it from
/// (`COPY --link` and `FROM scratch`).
pub(super) fn file_owner(view: &View, owner: &Owner) -> Result<(u32, u32), FileError> {
    let (uid, mut gid) = match &owner.user {
        Name::Id(uid) => (*uid, *uid),
        Name::Name(name) => {
            let line = named(view, "/etc/passwd", 7, name)?;
            line.map_or(Ok((0, 0)), |line| Ok::<_, FileError>((id(&line[2])?, id(&line[3])?)))?
        }
    };
    match &owner.group {
        None => {}
        Some(Name::Id(id)) => gid = *id,
        Some(Name::Name(name)) => {
            // An unknown group leaves the user's.
            if let Some(line) = named(view, "/etc/group", 4, name)? {
                gid = id(&line[2])?;
            }
        }
    }
    Ok((uid, gid))
}

fn named(
    view: &View,
    file: &str,
    fields: usize,
    name: &str,
) -> Result<Option<Vec<String>>, FileError> {
    if view.is_empty() {
        return Err(FileError::NoUserFile(name.to_owned()));
    }
    Ok(user_lines(view, file, fields)?.into_iter().find(|line| line[0] == name))
}

fn id(text: &str) -> Result<u32, FileError> {
    // An empty number counts as zero there.
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| FileError::BadId(text.to_owned()))
}

/// The lines of `file`, split at colons, each filled up to `fields`. A missing file has none.
fn user_lines(view: &View, file: &str, fields: usize) -> Result<Vec<Vec<String>>, FileError> {
    let Some(entry) = view.resolve(Path::new(file))?.entry else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    let reader = view.open(&entry)?;
    let read = reader.take(USER_FILE_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|source| FileError::io(entry.path(), source))?;
    if bytes.len() as u64 > USER_FILE_MAX {
        return Err(FileError::TooLarge { path: file.to_owned(), limit: USER_FILE_MAX });
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines
        .map(|line| {
            let mut line: Vec<String> = line.split(':').map(str::to_owned).collect();
            line.resize(line.len().max(fields), String::new());
            line
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        daemon:x:1:2::/usr/sbin:/bin/false\n\
        app:x:1000:1001::/home/app:/bin/sh\n\
        short:x:7\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nstaff:x:50:app,daemon\n";

    fn view() -> (tempfile::TempDir, View) {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("etc")).unwrap();
        fs_err::write(folder.path().join("etc/passwd"), PASSWD).unwrap();
        fs_err::write(folder.path().join("etc/group"), GROUP).unwrap();
        let view = View::layers(vec![folder.path().to_owned()]);
        (folder, view)
    }

    #[test]
    fn processes_run_as_whom_the_image_says() {
        let (_folder, view) = view();
        let check = |user: &str, expected: &str| {
            let found = match account(&view, user) {
                Ok(Account { credentials: Credentials { uid, gid, groups }, home }) => {
                    format!("{uid}:{gid} {groups:?} {home}")
                }
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{user}");
        };
        check("", "0:0 [0, 10] /root");
        check("root", "0:0 [0, 10] /root");
        check("0", "0:0 [0, 10] /root");
        check("app", "1000:1001 [1001, 10, 50] /home/app");
        check("1000", "1000:1001 [1001, 10, 50] /home/app");
        check("app:staff", "1000:50 [50] /home/app");
        check("1000:50", "1000:50 [50] /home/app");
        check("daemon:77", "1:77 [77] /usr/sbin");
        check("4242", "4242:0 [0] /");
        check("4242:4343", "4242:4343 [4343] /");
        check("nobody", "unable to find user nobody: no matching entries in passwd file");
        check("app:nogroup", "unable to find group nogroup: no matching entries in group file");
        check("short", "7:0 [0] /");
    }

    #[test]
    fn files_belong_to_root_when_the_name_is_unknown() {
        let (_folder, view) = view();
        let name = |text: &str| match text.parse() {
            Ok(id) => Name::Id(id),
            Err(_) => Name::Name(text.into()),
        };
        let check = |text: &str, expected| {
            let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
            let owner = Owner { user: name(user), group: group.map(name) };
            assert_eq!(file_owner(&view, &owner).unwrap(), expected, "{text}");
        };
        check("app", (1000, 1001));
        check("app:staff", (1000, 50));
        check("app:9", (1000, 9));
        check("7", (7, 7));
        check("7:8", (7, 8));
        check("unknown", (0, 0));
        check("app:unknown", (1000, 1001));
    }

    #[test]
    fn without_a_file_names_mean_nothing() {
        let empty = View::layers(Vec::new());
        let owner = Owner { user: Name::Name("app".into()), group: None };
        assert!(matches!(file_owner(&empty, &owner), Err(FileError::NoUserFile(_))));
        assert_eq!(account(&empty, "root").unwrap().home, "/root");
        assert!(account(&empty, "app").is_err());
    }

    #[test]
    fn user_files_are_read_inside_the_image_and_only_if_they_are_files() {
        let (folder, view) = view();
        let passwd = folder.path().join("etc/passwd");
        fs_err::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &passwd).unwrap();
        // The link leads to the image's own `/etc/hostname`, which there is not.
        assert!(matches!(account(&view, "app"), Err(FileError::UnknownUser(_))));
        fs_err::remove_file(&passwd).unwrap();
        fs_err::create_dir(&passwd).unwrap();
        assert!(account(&view, "app").is_err());
        fs_err::remove_dir(&passwd).unwrap();
        let file = fs_err::File::create(&passwd).unwrap();
        file.set_len(USER_FILE_MAX + 1).unwrap();
        assert!(matches!(account(&view, "app"), Err(FileError::TooLarge { .. })));
    }
}
