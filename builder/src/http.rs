//! Files fetched over http(s).

use std::path::Path;

use async_trait::async_trait;
use rbuild_solver::http_source::{Fetched, HttpSource, HttpSourceError, Validators};
use rbuild_solver::progress::Task;

use crate::registry::Registry;

/// Fetches files.
#[derive(Clone, Debug)]
pub struct HttpFiles;

impl HttpFiles {
    /// Fetches as `registry` does.
    pub fn new(_registry: Registry) -> Self {
        Self
    }
}

#[async_trait]
impl HttpSource for HttpFiles {
    async fn fetch(
        &self,
        _url: &str,
        _known: Option<&Validators>,
        _destination: &Path,
        _task: &Task,
    ) -> Result<Fetched, HttpSourceError> {
        let message = "fetching files is not there yet".to_owned();
        Err(HttpSourceError { message, hint: None, source: None })
    }
}
