//! Commits of git repositories: a tree that holds what is checked out, owned by root, with git's two
//! kinds of modes, as BuildKit has it (source/git/source.go).
//!
//! The remote is asked first which commit the reference is; a commit whose tree is known is not
//! fetched. A reference that is a commit's digest asks nobody.
//!
//! The `git` program does it (`git/command.rs`): it brings credential helpers, ssh, submodules and
//! every transport of the user's, which are worth more than a dependency less.
//!
//! What is left behind of a checkout depends on nothing but the commit: modes are set whatever the
//! umask, and without `--keep-git-dir` the `.git` files of submodules go as well, which hold the
//! path of a temporary folder.

mod command;

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rbuild_cache::checksum::descendants;
use rbuild_cache::digest::Digest;
use rbuild_cache::metadata::{self, FileType, Timestamp};
use rbuild_cache::pattern::{self, PatternMatcher};
use rbuild_cache::snapshot::SnapshotId;
use rbuild_cache::view::{View, ViewError};

use self::command::{Authorization, Git};
use crate::error::Cause;
use crate::graph::{GitOp, Op};
use crate::key::{self, InputDigest};
use crate::ops::{Work, Worker, blocking};
use crate::single_flight;
use crate::source_digest;
use crate::tree::{Tree, TreeLayer};

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is not there, or cannot be run.
    #[error("cannot run `git`, which git sources need")]
    Run(#[source] std::io::Error),
    /// It ran, and failed.
    #[error("git {action} of {remote} failed: {message}")]
    Failed {
        /// What it was to do: `ls-remote`, `fetch`.
        action: &'static str,
        /// The repository, without credentials.
        remote: String,
        /// The end of what it wrote to standard error.
        message: String,
    },
    /// The address, the reference or another part of it could be taken for something else.
    #[error("`{0}` cannot be used with git")]
    Unsafe(String),
    /// The repository has no such branch or tag.
    #[error("repository does not contain ref {0}")]
    NoReference(String),
    /// The repository has no default branch.
    #[error("could not find default branch for repository: {0}")]
    NoDefaultBranch(String),
    /// `--checksum` is no hexadecimal number.
    #[error("invalid checksum {0} for Git URL, expected hex commit hash")]
    BadChecksum(String),
    /// The commit is not the one of `--checksum`.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// What it should begin with.
        expected: String,
        /// The commit, and that of the annotated tag.
        found: String,
    },
    /// The reference moved to another commit in between, and the first one is gone.
    #[error("{0} does not have the commit {1} any more")]
    Moved(String, String),
    /// The folder that was asked for is not one.
    #[error("git subpath {0:?} is not a directory of the repository")]
    Subdir(String),
    /// What was checked out could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The state folder failed.
    #[error("cannot write what git checked out")]
    Io(#[from] std::io::Error),
}

/// A reference as the remote knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Commit {
    /// `refs/heads/main`; the commit's digest if that was asked for.
    reference: String,
    /// What the reference names: a commit, or an annotated tag.
    object: String,
    /// The commit that the tag names, if the object is a tag.
    peeled: Option<String>,
}

impl Commit {
    fn commit(&self) -> &str {
        self.peeled.as_ref().unwrap_or(&self.object)
    }
}

impl Worker {
    /// The tree of `op`.
    pub(crate) async fn git(&self, work: &Work<'_>, op: &GitOp) -> Result<Tree, Cause> {
        check_op(op)?;
        let temporary = self.surroundings.state.temporary().map_err(Cause::state)?;
        let authorization = self.git_authorization(&op.remote)?;
        let git = Git::new(&op.remote, temporary.path(), authorization).await?;
        let commit = resolve(&git, op).await?;
        check_commit(op, &commit)?;
        source_digest::note_git(&self.surroundings.state, op, commit.commit())
            .map_err(Cause::state)?;
        // Without `.git` it does not matter how the commit was called.
        let reference = op.keep_git_dir.then(|| commit.reference.clone());
        let pinned = Op::Git(GitOp { reference, checksum: None, ..op.clone() });
        let object = if op.keep_git_dir { &commit.object } else { commit.commit() };
        let inputs = [InputDigest::Content(Digest::of(object))];
        let key = key::content(&pinned, &inputs);
        if let Some(layer) = self.known(work, &key).await? {
            Self::hit(work);
            return Ok(self.came_to(vec![key], Tree::default(), layer));
        }
        let _flight = single_flight::lock(self.surroundings.state.locks(), &key).await?;
        if let Some(layer) = self.known(work, &key).await? {
            Self::hit(work);
            return Ok(self.came_to(vec![key], Tree::default(), layer));
        }
        let _ = work.revision.set(object.to_owned());
        self.miss(work, &[key], &inputs, None);
        let checkout = checkout(&git, op, &commit, temporary.path()).await?;
        let state = self.surroundings.state.clone();
        let (op, sharing) = (op.clone(), work.sharing);
        let snapshot = blocking(move || {
            let draft = state.snapshots().draft().map_err(Cause::state)?;
            if sharing {
                draft.set_sharing();
            }
            take_over(&checkout, &op, &draft.folder())?;
            drop(temporary);
            state.snapshots().commit(&SnapshotId::random(), draft).map_err(Cause::state)
        })
        .await?;
        let layer = TreeLayer::Snapshot(snapshot);
        self.record(work, vec![key], &layer, &inputs).await?;
        Ok(self.came_to(vec![key], Tree::default(), layer))
    }

    /// The secret that BuildKit's frontends give for a host: `GIT_AUTH_HEADER.HOST`,
    /// `GIT_AUTH_TOKEN.HOST`, and both for all hosts.
    fn git_authorization(&self, remote: &str) -> Result<Option<Authorization>, Cause> {
        let Some(host) = http_host(remote) else { return Ok(None) };
        for name in [format!(".{host}"), String::new()] {
            if let Some(header) = self.secret(&format!("GIT_AUTH_HEADER{name}"), false)? {
                return Ok(Some(Authorization::Header(header)));
            }
            if let Some(token) = self.secret(&format!("GIT_AUTH_TOKEN{name}"), false)? {
                return Ok(Some(Authorization::Token(token)));
            }
        }
        Ok(None)
    }
}

/// The host of an http(s) address, without credentials; the port belongs to it.
fn http_host(remote: &str) -> Option<&str> {
    let rest = remote.strip_prefix("https://").or_else(|| remote.strip_prefix("http://"))?;
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

/// Nothing of an op may be taken for an option, another command or another path.
fn check_op(op: &GitOp) -> Result<(), GitError> {
    let texts = [Some(&op.remote), op.reference.as_ref()];
    for text in texts.into_iter().flatten() {
        let wrong = text.is_empty()
            || text.starts_with('-')
            || text.chars().any(char::is_control)
            || text.starts_with("ext::");
        if wrong {
            return Err(GitError::Unsafe(text.clone()));
        }
    }
    if let Some(reference) = &op.reference {
        // git-check-ref-format, as far as something could be expressed with it.
        let wrong = reference.contains([':', '^', '~', '?', '*', '[', '\\', ' '])
            || ["..", "@{", "//"].iter().any(|part| reference.contains(part));
        if wrong {
            return Err(GitError::Unsafe(reference.clone()));
        }
    }
    if let Some(checksum) = &op.checksum
        && (checksum.is_empty() || !checksum.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(GitError::BadChecksum(checksum.clone()));
    }
    Ok(())
}

fn is_digest(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_commit(op: &GitOp, commit: &Commit) -> Result<(), GitError> {
    let Some(expected) = &op.checksum else { return Ok(()) };
    let objects = [Some(&commit.object), commit.peeled.as_ref()];
    if objects.iter().flatten().any(|object| object.starts_with(&expected.to_lowercase())) {
        return Ok(());
    }
    let found: Vec<&str> = objects.into_iter().flatten().map(String::as_str).collect();
    Err(GitError::Checksum { expected: expected.clone(), found: found.join(" or ") })
}

/// Asks the remote which commit the reference of `op` is.
async fn resolve(git: &Git, op: &GitOp) -> Result<Commit, GitError> {
    if let Some(reference) = op.reference.as_ref().filter(|reference| is_digest(reference)) {
        let (reference, object) = (reference.clone(), reference.clone());
        return Ok(Commit { reference, object, peeled: None });
    }
    let reference = if let Some(reference) = &op.reference {
        reference.clone()
    } else {
        let ask = ["ls-remote", "--symref", "--", &op.remote, "HEAD"];
        default_branch(&git.run("ls-remote", &ask).await?)
            .ok_or_else(|| GitError::NoDefaultBranch(git.shown_remote()))?
    };
    let peeled = format!("{reference}^{{}}");
    let ask = ["ls-remote", "--", &op.remote, &reference, &peeled];
    let listed = git.run("ls-remote", &ask).await?;
    find_reference(&listed, &reference).ok_or(GitError::NoReference(reference))
}

/// The branch that `ls-remote --symref` says HEAD is.
fn default_branch(listed: &str) -> Option<String> {
    let line = listed.lines().find_map(|line| line.strip_prefix("ref: "))?;
    let branch = line.split('\t').next()?;
    branch.starts_with("refs/heads/").then(|| branch.to_owned())
}

/// Finds `reference` in the output of `ls-remote`: itself, else a branch, else a tag.
fn find_reference(listed: &str, reference: &str) -> Option<Commit> {
    let find = |name: &str| {
        listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .find(|(object, found)| *found == name && is_digest(object))
            .map(|(object, _)| object.to_owned())
    };
    let whole = format!("refs/{}", reference.trim_start_matches("refs/"));
    let branch = format!("refs/heads/{}", reference.trim_start_matches("refs/heads/"));
    let tag = format!("refs/tags/{}", reference.trim_start_matches("refs/tags/"));
    for name in [&whole, &branch, &tag] {
        if let Some(object) = find(name) {
            let peeled =
                if name.starts_with("refs/tags/") { find(&format!("{name}^{{}}")) } else { None };
            return Some(Commit { reference: name.clone(), object, peeled });
        }
    }
    None
}

/// A commit that was checked out.
struct Checkout {
    folder: PathBuf,
    /// The commit's time, if files are to have it.
    time: Option<Timestamp>,
}

/// Fetches `commit` and checks it out below `temporary`.
async fn checkout(
    git: &Git,
    op: &GitOp,
    commit: &Commit,
    temporary: &Path,
) -> Result<Checkout, GitError> {
    let folder = temporary.join("checkout");
    fs_err::create_dir(&folder)?;
    let repository =
        if op.keep_git_dir { folder.join(".git") } else { temporary.join("repository") };
    let git = git.with_repository(&repository, &folder);
    let format = if commit.object.len() == 64 { "sha256" } else { "sha1" };
    let format = format!("--object-format={format}");
    git.run("init", &["init", "--quiet", "--template=", &format]).await?;
    git.run("config", &["config", "remote.origin.url", &op.remote]).await?;
    fetch(&git, op, commit).await?;
    git.run("checkout", &["checkout", "--quiet", "--force", "--detach", &commit.object, "--"])
        .await?;
    if op.submodules {
        let update =
            ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", "--force"];
        git.run_or_deep("submodule update", &update).await?;
    }
    let time = if op.commit_times {
        let revision = format!("{}^{{commit}}", commit.object);
        let time = git.run("log", &["log", "-1", "--format=%ct", &revision, "--"]).await?;
        Some(Timestamp::from_seconds(time.trim().parse().unwrap_or_default()))
    } else {
        None
    };
    if op.keep_git_dir {
        // Nothing of this build's way here, and no password.
        let shown = git.shown_remote();
        git.run("config", &["config", "remote.origin.url", &shown]).await?;
        for leftover in ["FETCH_HEAD", "logs", "ORIG_HEAD"] {
            let leftover = repository.join(leftover);
            match fs_err::symlink_metadata(&leftover) {
                Ok(found) if found.is_dir() => fs_err::remove_dir_all(leftover)?,
                Ok(_) => fs_err::remove_file(leftover)?,
                Err(_) => {}
            }
        }
    }
    Ok(Checkout { folder, time })
}

async fn fetch(git: &Git, op: &GitOp, commit: &Commit) -> Result<(), GitError> {
    let shallow = ["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--", "origin"];
    let by_name = format!("{0}:{0}", commit.reference);
    let wanted = if is_digest(&commit.reference) { &commit.object } else { &by_name };
    let fetched = git.run_or_deep("fetch", &[&shallow[..], &[wanted]].concat()).await;
    let revision = format!("{}^{{commit}}", commit.object);
    let exists = ["cat-file", "-e", "--end-of-options", &revision];
    if fetched.is_ok() && git.run("cat-file", &exists).await.is_ok() {
        return Ok(());
    }
    // The reference has moved, or the server gives no commits that no reference names.
    let by_object = [&shallow[..], &[&commit.object]].concat();
    if git.run_or_deep("fetch", &by_object).await.is_ok() {
        return Ok(());
    }
    let all = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
    let whole = ["fetch", "--quiet", "--update-shallow", "--force", "--", "origin"];
    git.run("fetch", &[&whole[..], &all].concat()).await?;
    match git.run("cat-file", &exists).await {
        Ok(_) => Ok(()),
        Err(_) if is_digest(&commit.reference) => {
            Err(GitError::NoReference(op.reference.clone().unwrap_or_default()))
        }
        Err(_) => Err(GitError::Moved(git.shown_remote(), commit.object.clone())),
    }
}

/// Moves what was checked out into the layer folder `layer`, for root and with git's modes.
fn take_over(checkout: &Checkout, op: &GitOp, layer: &Path) -> Result<(), GitError> {
    let source = subdir(&checkout.folder, op.subdir.as_deref())?;
    for entry in fs_err::read_dir(source)? {
        let entry = entry?;
        fs_err::rename(entry.path(), layer.join(entry.file_name()))?;
    }
    let view = View::layers(vec![layer.to_owned()]);
    let folder = fs_err::File::open(layer)?;
    let folder = folder.file().as_fd();
    let mut entries = descendants(&view, &view.root()?)?;
    if !op.keep_git_dir {
        let is_link_to_git = |entry: &rbuild_cache::view::Entry| {
            entry.metadata().is_file() && entry.name() == ".git"
        };
        for entry in entries.iter().filter(|entry| is_link_to_git(entry)) {
            fs_err::remove_file(layer.join(entry.path()))?;
        }
        entries.retain(|entry| !is_link_to_git(entry));
    }
    // Innermost first: setting what a file has changes no folder's time, but removing one did.
    for entry in entries.iter().rev() {
        let root = entry.path().as_os_str().is_empty();
        let name = if root { OsStr::new(".") } else { entry.path().as_os_str() };
        metadata::set_owner_at(folder, name, 0, 0)?;
        let executable = entry.metadata().mode & 0o100 != 0;
        match entry.metadata().file_type {
            FileType::Directory => metadata::set_mode_at(folder, name, 0o755)?,
            FileType::File if executable => metadata::set_mode_at(folder, name, 0o755)?,
            FileType::File => metadata::set_mode_at(folder, name, 0o644)?,
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharDevice
            | FileType::BlockDevice => {}
        }
        if let Some(time) = checkout.time {
            metadata::set_modified_at(folder, name, time)?;
        }
    }
    Ok(())
}

/// The folder `subdir` of a checkout; no component may be a link.
fn subdir(checkout: &Path, subdir: Option<&str>) -> Result<PathBuf, GitError> {
    let Some(subdir) = subdir else { return Ok(checkout.to_owned()) };
    let clean = pattern::clean(&format!("/{subdir}"));
    let view = View::folder(checkout.to_owned(), PatternMatcher::default());
    let mut here = view.root()?;
    for component in clean.split('/').filter(|component| !component.is_empty()) {
        let next = view.child(&here, OsStr::new(component))?;
        here = next
            .filter(|entry| entry.metadata().is_directory() && entry.name() != ".git")
            .ok_or_else(|| GitError::Subdir(subdir.to_owned()))?;
    }
    Ok(checkout.join(here.path()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn op(remote: &str, reference: Option<&str>) -> GitOp {
        GitOp {
            remote: remote.into(),
            reference: reference.map(str::to_owned),
            subdir: None,
            keep_git_dir: false,
            checksum: None,
            submodules: true,
            commit_times: false,
        }
    }

    #[test]
    fn nothing_is_an_option_a_command_or_a_revision() {
        let check = |remote: &str, reference: Option<&str>, good: bool| {
            assert_eq!(check_op(&op(remote, reference)).is_ok(), good, "{remote} {reference:?}");
        };
        check("https://host/repo.git", None, true);
        check("git@host:repo.git", Some("feature/x"), true);
        check("https://host/repo.git", Some("refs/tags/v1.0"), true);
        check("--upload-pack=touch /tmp/x", None, false);
        check("-oProxyCommand=x", None, false);
        check("ext::sh -c x", None, false);
        check("https://host/\nx", None, false);
        check("", None, false);
        for wrong in ["", "--exec=x", "-u", "a..b", "main:refs/heads/x", "HEAD~1", "a b", "@{u}"] {
            check("https://host/repo.git", Some(wrong), false);
        }
        let checksum = |text: &str| {
            check_op(&GitOp { checksum: Some(text.into()), ..op("https://h/r", None) }).is_ok()
        };
        assert!(checksum("0a1b"));
        assert!(!checksum("0a1b^{tree}"));
        assert!(!checksum(""));
    }

    #[test]
    fn references_are_found_as_git_finds_them() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let listed = format!(
            "{a}\trefs/heads/main\n{b}\trefs/tags/v1\n{c}\trefs/tags/v1^{{}}\n\
             {a}\trefs/heads/both\n{b}\trefs/tags/both\nx\trefs/heads/bad\n"
        );
        let check = |reference: &str, expected: Option<(&str, &str, &str)>| {
            let found = find_reference(&listed, reference);
            let found = found.map(|found| {
                let commit = found.commit().to_owned();
                (found.reference, found.object, commit)
            });
            let expected = expected.map(|(x, y, z)| (x.to_owned(), y.to_owned(), z.to_owned()));
            assert_eq!(found, expected, "{reference}");
        };
        check("main", Some(("refs/heads/main", &a, &a)));
        check("refs/heads/main", Some(("refs/heads/main", &a, &a)));
        check("v1", Some(("refs/tags/v1", &b, &c)));
        check("tags/v1", Some(("refs/tags/v1", &b, &c)));
        check("both", Some(("refs/heads/both", &a, &a)));
        check("bad", None);
        check("nothing", None);
        assert_eq!(
            default_branch(&format!("ref: refs/heads/dev\tHEAD\n{a}\tHEAD\n")).as_deref(),
            Some("refs/heads/dev")
        );
        assert_eq!(default_branch(&format!("{a}\tHEAD\n")), None);
        assert_eq!(default_branch("ref: --option\tHEAD\n"), None);
    }

    #[test]
    fn a_checksum_may_name_the_commit_or_its_tag() {
        let commit = Commit {
            reference: "refs/tags/v".into(),
            object: "ab".into(),
            peeled: Some("cd".into()),
        };
        let check = |checksum: &str, expected: &str| {
            let op = GitOp { checksum: Some(checksum.into()), ..op("https://h/r", None) };
            let found = check_commit(&op, &commit).map_or_else(|e| e.to_string(), |()| "ok".into());
            assert_eq!(found, expected);
        };
        check("a", "ok");
        check("CD", "ok");
        check("ef", "expected checksum to match ef, got ab or cd");
    }

    #[test]
    fn secrets_are_for_the_host_of_the_remote() {
        assert_eq!(http_host("https://user:x@host:8080/r.git"), Some("host:8080"));
        assert_eq!(http_host("https://host"), Some("host"));
        assert_eq!(http_host("https://evil.com?@host/"), Some("evil.com"));
        assert_eq!(http_host("git@host:r"), None);
    }

    /// A repository with branches, tags, a link and a program; its address.
    fn repository(folder: &Path) -> String {
        let script = r"
            set -e; umask 077
            export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
            export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
            export GIT_AUTHOR_DATE='1500000000 +0000' GIT_COMMITTER_DATE='1500000000 +0000'
            git init -q -b main repo; cd repo
            mkdir -p sub/deep; echo one >README; echo run >sub/run.sh; chmod +x sub/run.sh
            echo x >sub/deep/x; ln -s README lnk; ln -s /etc out
            git add .; git commit -qm first; git tag v1
            echo two >README; git commit -qam second; git tag -am annotated v2
            git checkout -qb dev; echo dev >dev; git add .; git commit -qm dev; git checkout -q main
        ";
        let status = Command::new("sh").arg("-c").arg(script).current_dir(folder).status();
        assert!(status.unwrap().success());
        format!("file://{}/repo", folder.display())
    }

    /// What is checked out, as text; or the error.
    fn outcome(op: &GitOp) -> Result<String, GitError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let layer = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            check_op(op)?;
            let git = Git::new(&op.remote, temporary.path(), None).await?.allowing_files();
            let commit = resolve(&git, op).await?;
            check_commit(op, &commit)?;
            let checkout = checkout(&git, op, &commit, temporary.path()).await?;
            take_over(&checkout, op, layer.path())
        })?;
        let view = View::layers(vec![layer.path().to_owned()]);
        let entries = descendants(&view, &view.root()?)?;
        let shown = entries.iter().skip(1).filter(|entry| !entry.path().starts_with(".git"));
        let shown = shown.map(|entry| {
            let path = entry.path().display();
            if op.commit_times {
                assert_eq!(entry.metadata().modified.seconds, 1_500_000_000, "{path}");
            }
            match entry.metadata().file_type {
                FileType::Directory => format!("{path}/@{:o}", entry.metadata().mode),
                FileType::Symlink => {
                    format!("{path}->{}", view.read_link(entry).unwrap().display())
                }
                _ => format!("{path}@{:o}", entry.metadata().mode),
            }
        });
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn commits_are_checked_out() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let remote = repository(folder.path());
        let all =
            "README@644 lnk->README out->/etc sub/@755 sub/deep/@755 sub/deep/x@644 sub/run.sh@755";
        let check = |op: GitOp, expected: &str| {
            let found = outcome(&op).unwrap_or_else(|error| error.to_string());
            assert_eq!(found, expected, "{op:?}");
        };
        let subdir = |name: &str| GitOp { subdir: Some(name.into()), ..op(&remote, Some("dev")) };
        check(op(&remote, None), all);
        check(op(&remote, Some("v1")), all);
        check(op(&remote, Some("v2")), all);
        check(op(&remote, Some("dev")), &all.replace(" lnk", " dev@644 lnk"));
        check(GitOp { commit_times: true, ..op(&remote, Some("v2")) }, all);
        check(GitOp { keep_git_dir: true, ..op(&remote, Some("v2")) }, all);
        check(op(&remote, Some("nope")), "repository does not contain ref nope");
        check(subdir("sub"), "deep/@755 deep/x@644 run.sh@755");
        check(subdir("../sub//deep/."), "x@644");
        for wrong in ["out", "out/ssl", "README", "nothing", ".git"] {
            check(
                subdir(wrong),
                &format!("git subpath {wrong:?} is not a directory of the repository"),
            );
        }
        let digest = |revision: &str| {
            let mut command = Command::new("git");
            command.args(["rev-parse", revision]).current_dir(folder.path().join("repo"));
            String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
        };
        let first = digest("v1^{commit}");
        check(op(&remote, Some(&first)), all);
        let gone = "1".repeat(40);
        check(op(&remote, Some(&gone)), &format!("repository does not contain ref {gone}"));
    }

    #[test]
    fn only_transports_over_a_network_are_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let remote = repository(folder.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async {
            let git = Git::new(&remote, folder.path(), None).await.unwrap();
            resolve(&git, &op(&remote, None)).await.unwrap_err()
        });
        assert!(error.to_string().contains("transport 'file' not allowed"), "{error}");
    }
}
