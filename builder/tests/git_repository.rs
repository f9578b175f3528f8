//! A git repository that is served as files over http, which git can fetch from too.

use std::path::PathBuf;
use std::process::Command;

use crate::faulty_registry::{FaultyRegistry, Reply, status};
use crate::rbuild::scratch;

/// A repository with a file `f`; each commit was made at 2020-01-02T03:04:05Z.
pub(crate) struct GitRepository {
    folder: tempfile::TempDir,
    server: FaultyRegistry,
}

impl GitRepository {
    /// One with a commit in which `f` holds `1`.
    pub(crate) fn serve() -> Self {
        let folder = scratch();
        let bare = folder.path().join("app.git");
        let server = FaultyRegistry::start(move |asked| {
            let path = asked.path.split('?').next().unwrap_or_default();
            let file: PathBuf = bare.join(path.strip_prefix("/app.git/")?);
            let Ok(body) = fs_err::read(file) else { return Some(status(404)) };
            Some(Reply::Answer { status: 200, headers: Vec::new(), body })
        });
        let repository = Self { folder, server };
        repository.sh("git init -q work && git clone -q --bare work app.git");
        repository.commit("1");
        repository
    }

    /// Makes `f` hold `text` in a new commit.
    pub(crate) fn commit(&self, text: &str) {
        self.sh(&format!(
            "cd work && echo {text} > f && git add f \
             && git -c user.name=n -c user.email=e@x commit -qm {text} \
             && git push -q ../app.git HEAD && cd .. && git -C app.git update-server-info"
        ));
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/app.git", self.server.host)
    }

    fn sh(&self, script: &str) {
        let done = Command::new("sh")
            .args(["-ec", script])
            .current_dir(&self.folder)
            .env("GIT_AUTHOR_DATE", "2019-01-01T00:00:00Z")
            .env("GIT_COMMITTER_DATE", "2020-01-02T03:04:05Z")
            .status();
        assert!(done.unwrap().success(), "{script}");
    }
}
