//! `--cache-from` and `--cache-to`: results that machines share.
//!
//! A cache is only asked when this machine does not know a result itself, and then its records are
//! fetched, all at once and nothing else; its layers follow when a step reads them
//! ([`rbuild_solver::remote_cache`]). A cache that is missing, broken or wrong costs a warning, and
//! the steps run. How records are written is said in [`record`].
//!
//! Which trust it takes is said in `docs/security.md`: whoever can write the cache decides what its
//! steps came to, as whoever can write a base image decides what is in it.

pub mod export;
pub mod import;
pub mod inline;
mod local;
pub mod record;
mod registry;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::future::join_all;
use rbuild_cache::digest::{CacheKey, Digest};
use rbuild_solver::progress::{EventKind, Reporter};
use rbuild_solver::remote_cache::{RemoteCache, RemoteLayer, RemoteResult, StepResult, realize};
use rbuild_solver::tree::TreeLayer;
use tokio::sync::OnceCell;

use self::export::{Export, ExportError};
use self::import::ImportError;
use self::inline::{InlineKeys, identity};
use crate::image::BuiltImage;
use crate::image_source::Images;
use crate::request::{BuildRequest, CacheFrom, CachePlace};

/// A cache of which so many results were no good is not asked again.
const MOST_REJECTED: usize = 3;

/// The caches that a build asks, and those that it fills.
pub struct RemoteCaches {
    images: Images,
    reporter: Reporter,
    sources: Vec<Source>,
    /// The records of all sources have been asked for.
    loaded: OnceCell<()>,
    exports: Mutex<Vec<Export>>,
    /// One key for each result, if the image is to hold records.
    inline: Option<Mutex<InlineKeys>>,
    rejected: Mutex<HashSet<Digest>>,
}

/// A cache that is asked.
struct Source {
    from: CacheFrom,
    found: Mutex<Found>,
}

/// What a cache says.
#[derive(Default)]
struct Found {
    results: HashMap<CacheKey, Arc<RemoteResult>>,
    rejected: usize,
}

impl RemoteCaches {
    /// The caches that `request` names; none if it names none. Nothing is asked or sent yet.
    pub fn new(request: &BuildRequest, images: &Images, reporter: &Reporter) -> Option<Arc<Self>> {
        if request.cache_from.is_empty() && request.cache_to.is_empty() {
            return None;
        }
        let source = |from: &CacheFrom| Source { from: from.clone(), found: Mutex::default() };
        let is_inline = |place: &CachePlace| *place == CachePlace::Inline;
        let exports = request.cache_to.iter().filter(|target| !is_inline(&target.place));
        let exports =
            exports.map(|target| Export::start(target.clone(), images.clone(), reporter.clone()));
        let inline = request.cache_to.iter().any(|target| is_inline(&target.place));
        Some(Arc::new(Self {
            images: images.clone(),
            reporter: reporter.clone(),
            sources: request.cache_from.iter().map(source).collect(),
            loaded: OnceCell::new(),
            exports: Mutex::new(exports.collect()),
            inline: inline.then(Mutex::default),
            rejected: Mutex::default(),
        }))
    }

    /// The keys of the results so far, for the configs of images; none if nobody asked for that.
    pub fn inline_keys(&self) -> Option<Arc<InlineKeys>> {
        Some(Arc::new(lock(self.inline.as_ref()?).clone()))
    }

    /// Looks whether the results of elsewhere that `built` consists of are what was said of them,
    /// and rejects those that are not. Returns whether there were any: then it has to be built again.
    pub async fn reject_unusable(&self, built: &[BuiltImage]) -> bool {
        let layers = built.iter().flat_map(|image| &image.tree.layers);
        let doubted: Vec<&RemoteLayer> = layers
            .filter_map(|layer| match layer {
                TreeLayer::Remote(remote) => Some(&**remote),
                TreeLayer::Image { .. } | TreeLayer::Snapshot(_) => None,
            })
            .filter(|remote| self.images.is_doubted(&remote.result.layer.descriptor.digest))
            .collect();
        if doubted.is_empty() {
            return false;
        }
        let task = self.reporter.start("checking results of other machines");
        let mut found = false;
        for remote in doubted {
            let realized = realize(self.images.state(), &self.images, remote, &task).await;
            if let Err(error) = realized {
                self.reject(remote, &error.to_string());
                found = true;
            }
        }
        task.tell(EventKind::Finished);
        found
    }

    /// Ends the exports: what was built is what they hold.
    ///
    /// # Errors
    /// When one fails, and its `ignore-error` is false.
    pub async fn finish(&self, built: &[BuiltImage]) -> Result<(), ExportError> {
        let layers = built.iter().flat_map(|image| &image.tree.layers);
        let wanted: HashSet<String> = layers.filter_map(identity).collect();
        let rejected = lock(&self.rejected).clone();
        let exports = std::mem::take(&mut *lock(&self.exports));
        let ended =
            join_all(exports.into_iter().map(|export| export.finish(&wanted, &rejected))).await;
        ended.into_iter().collect()
    }

    async fn load(&self) {
        self.loaded
            .get_or_init(|| async {
                join_all(self.sources.iter().map(|source| self.load_source(source))).await;
            })
            .await;
    }

    /// Fetches the records of one cache. One that cannot be used is as if it were empty.
    async fn load_source(&self, source: &Source) {
        let task = self.reporter.start(format!("importing cache from {}", source.from));
        let results = match &source.from {
            CacheFrom::Registry(image) => registry::results(&self.images, image).await,
            CacheFrom::Local { folder, digest, tag } => local::results(folder, *digest, tag).await,
        };
        match results {
            Ok(results) => {
                let mut found = lock(&source.found);
                for result in results.into_iter().map(Arc::new) {
                    for key in &result.keys {
                        found.results.insert(*key, Arc::clone(&result));
                    }
                }
            }
            Err(error) => {
                let message = match error {
                    // The first run of a CI has none.
                    ImportError::Missing => error.to_string(),
                    error => format!("the cache cannot be used: {error}"),
                };
                task.tell(EventKind::Warning { message });
            }
        }
        task.tell(EventKind::Finished);
    }
}

#[async_trait]
impl RemoteCache for RemoteCaches {
    async fn find(&self, key: &CacheKey) -> Option<Arc<RemoteResult>> {
        if self.sources.is_empty() {
            return None;
        }
        self.load().await;
        self.sources.iter().find_map(|source| lock(&source.found).results.get(key).cloned())
    }

    fn reject(&self, remote: &RemoteLayer, reason: &str) {
        let result = &remote.result;
        let blob = result.layer.descriptor.digest;
        lock(&self.rejected).insert(blob);
        for source in &self.sources {
            let mut found = lock(&source.found);
            let before = found.results.len();
            found.results.retain(|_, known| {
                known.layer.descriptor.digest != blob || known.location != result.location
            });
            if found.results.len() == before {
                continue;
            }
            found.rejected += 1;
            let given_up = found.rejected >= MOST_REJECTED;
            if given_up {
                found.results.clear();
            }
            let task = self.reporter.start(format!("using cache from {}", source.from));
            let step = &remote.name;
            let message = format!("the result of `{step}` cannot be used: {reason}");
            task.tell(EventKind::Warning { message });
            if given_up {
                let message = format!("after {MOST_REJECTED} such results it is not asked again");
                task.tell(EventKind::Warning { message });
            }
            task.tell(EventKind::Finished);
        }
    }

    fn came_to(&self, result: StepResult) {
        if let (Some(inline), Some(identity)) = (&self.inline, identity(&result.layer))
            && let Some(key) = result.keys.first()
        {
            let mut keys = lock(inline);
            let known = keys.entry(identity).or_default();
            if !known.contains(key) {
                known.push(*key);
            }
        }
        for export in lock(&self.exports).iter() {
            export.came_to(result.clone());
        }
    }
}

impl std::fmt::Debug for RemoteCaches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteCaches").finish_non_exhaustive()
    }
}

/// A panic while it was held leaves sets and maps that are as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
