//! A build: the steps from a request to trees, in order.
//!
//! open what it reads → parse → list base images → resolve them side by side → lower, once per
//! platform into one graph → solve. Making images of the trees is `image.rs`'s and the exporters'.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use futures::future::try_join_all;
use rbuild_cache::digest::Digest;
use rbuild_cache::index::Journal;
use rbuild_cache::oci::Platform;
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;
use rbuild_frontend::diagnostic::{Diagnostics, did_you_mean};
use rbuild_frontend::source::Source;
use rbuild_frontend::{
    Allowed, BaseImage, BuildOptions, Dockerfile, EpochSource, ImageName, Lowered, Resolved,
};
use rbuild_solver::Gate;
use rbuild_solver::error::{Cause, SolveError};
use rbuild_solver::graph::{Graph, Op, Vertex, VertexId};
use rbuild_solver::image_source::{ImageSourceError, ResolvedImage};
use rbuild_solver::progress::{EventKind, Reporter};
use rbuild_solver::remote_cache::RemoteCache;
use rbuild_solver::sandbox::namespaces::Namespaces;
use rbuild_solver::solve::{Entitlements, RunSettings, Surroundings, solve};
use rbuild_solver::tree::{Tree, TreeLayer};

use crate::context::Contexts;
use crate::devices;
use crate::epoch;
use crate::error::{BuildError, ErrorKind, Excerpt, Problem};
use crate::foreign;
use crate::http::HttpFiles;
use crate::image::{BuiltImage, ImageOptions};
use crate::image_source::{Images, ResolveMode};
use crate::packing::Packing;
use crate::provenance::{self, Provenance};
use crate::registry::Registry;
use crate::remote_cache::RemoteCaches;
use crate::request::{BuildRequest, Call, Entitlement, NamedContextSpec};
use crate::slim::{self, SlimResult, SlimTarget};
use crate::stage_size::{self, StageSize};

/// What is built, read.
#[derive(Debug)]
pub struct Loaded {
    /// What the build reads.
    pub contexts: Contexts,
    /// What the Dockerfile says.
    pub dockerfile: Dockerfile,
}

/// What steps made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The target, for each platform.
    pub images: Vec<BuiltImage>,
    /// What is wrong with the Dockerfile, but no obstacle.
    pub warnings: Vec<Problem>,
    /// How large the stages became, and last the images.
    pub sizes: Vec<StageSize>,
    /// What was slimmed, for each platform.
    pub slim: Vec<SlimResult>,
    /// The target as it was before it was slimmed; empty when nothing was.
    pub full: Vec<BuiltImage>,
    /// Who packs layers of the images already, if anybody does.
    pub(crate) packing: Option<Arc<Packing>>,
}

/// Everything a build works with.
pub struct Session<'a> {
    /// What was asked for.
    pub request: &'a BuildRequest,
    /// Where everything is kept.
    pub state: StateFolder,
    /// Registries; nothing is asked of them before something is needed.
    pub registry: Registry,
    /// Where images come from.
    pub images: Images,
    /// The caches that are asked and filled, if any.
    pub remote: Option<Arc<RemoteCaches>>,
    /// Who is told.
    pub reporter: Reporter,
    /// When the build began.
    started: Instant,
}

impl<'a> Session<'a> {
    /// Opens the state folder that `request` names.
    pub fn open(request: &'a BuildRequest, reporter: Reporter) -> Result<Self, BuildError> {
        let folder = &request.settings.state_folder;
        let opened = StateFolder::open_with(folder, request.settings.snapshotter);
        let state = opened.map_err(|error| {
            BuildError::fault(&error).hint(format!(
                "the state folder is `{}`; `--root DIR` or RBUILD_ROOT names another one",
                folder.display()
            ))
        })?;
        let state = state.with_limits(request.limits.clone());
        if let Journal::Rollback(why) = state.index().journal() {
            let task = reporter.start("[internal] open the state folder");
            let message = format!("{why}: builds that run at the same time wait for each other");
            task.tell(EventKind::Warning { message });
            task.tell(EventKind::Finished);
        }
        let registry = Registry::new(request.settings.registry.clone());
        let images = Images::new(registry.clone(), state.clone());
        let remote = match request.call {
            Call::Build => RemoteCaches::new(request, &images, &reporter),
            Call::Check(_) | Call::Outline(_) | Call::Targets(_) => None,
        };
        Ok(Self { request, state, registry, images, remote, reporter, started: Instant::now() })
    }

    /// Opens the contexts and reads the Dockerfile; all that is wrong with it is said at once.
    pub async fn load(&self) -> Result<Loaded, BuildError> {
        let contexts = self.contexts().await?;
        let (dockerfile, diagnostics) = {
            let syntax = self.request.build_args.get("BUILDKIT_SYNTAX").map(String::as_str);
            rbuild_frontend::parse_as(contexts.dockerfile.clone(), syntax)
        };
        if diagnostics.has_errors() {
            return Err(BuildError::dockerfile(&diagnostics.0, &dockerfile.source));
        }
        Ok(Loaded { contexts, dockerfile })
    }

    /// Builds the target for every platform. Layers are packed meanwhile as an image with the
    /// options `packed` has them.
    pub async fn build(
        &self,
        loaded: &Loaded,
        packed: Option<&ImageOptions>,
    ) -> Result<Built, BuildError> {
        let Loaded { contexts, dockerfile } = loaded;
        let mut graph = Graph::new();
        let mut lowered = Vec::new();
        let mut slims: Vec<Option<SlimTarget>> = Vec::new();
        let mut roots = BTreeMap::new();
        for platform in &self.request.platforms {
            let options = self.options(platform, contexts);
            let resolved = self.resolve(dockerfile, &options).await?;
            let one = rbuild_frontend::lower(dockerfile, &options, &resolved, &mut graph)
                .map_err(|wrong| BuildError::dockerfile(&wrong.0, &dockerfile.source))?;
            let source = &dockerfile.source;
            let slim = slim::target(&self.request.slim, source, platform, &one, &mut graph)?;
            slims.push(slim);
            lowered.push((platform.clone(), one));
            roots.extend(resolved.images().map(|image| (image.manifest, image.digest)));
        }
        let warnings = warnings(lowered.iter().map(|(_, one)| one), &dockerfile.source);
        let full: Vec<VertexId> = lowered.iter().map(|(_, one)| one.target).collect();
        let slim = |slim: &Option<SlimTarget>| slim.as_ref().map(|slim| slim.vertex);
        let mut targets: Vec<VertexId> =
            full.iter().zip(&slims).map(|(full, one)| slim(one).unwrap_or(*full)).collect();
        targets.extend(&full);
        let stages = stage_size::last_steps(&graph, &targets);
        targets.extend(stages.iter().map(|(_, id)| id));
        foreign::check(&graph, &targets, &dockerfile.source)?;
        let folders = self.request.settings.config.device_folders.as_deref();
        let leave = &self.request.allow_devices;
        let devices = devices::resolve(&mut graph, &targets, folders, leave, &self.reporter)
            .map_err(|error| BuildError::solve(&error, &dockerfile.source))?;
        let proxies = self.options(&Platform::host(), contexts).proxies();
        let mut surroundings = self.surroundings(&contexts.folders, proxies)?;
        // Whoever is not in here was not allowed; the solver looks again.
        surroundings.allow.devices = Some(devices.keys().cloned().collect());
        surroundings.run.devices = devices;
        surroundings.arguments = dockerfile.argument_names();
        surroundings.remote = self.remote.clone().map(|remote| remote as Arc<dyn RemoteCache>);
        let packing = packed.map(|options| {
            let epochs = lowered.iter().map(|(_, one)| one.epoch);
            let of_images = targets.iter().copied().zip(epochs);
            Arc::new(Packing::start(&self.images, options, &graph, of_images))
        });
        surroundings.made = packing.as_ref().map(|packing| packing.watcher());
        let graph = Arc::new(graph);
        let solved = solve_without_rejected(Arc::clone(&graph), &targets, Arc::new(surroundings));
        let mut trees = solved.await.map_err(|error| {
            let failed = BuildError::solve(&error, &dockerfile.source)
                .on_full_disk(&error, &self.request.settings.state_folder);
            if contexts.is_empty() { failed.without_context(&error) } else { failed }
        })?;
        let of_stages = trees.split_off(2 * lowered.len());
        let full = trees.split_off(lowered.len());
        let names = stages.into_iter().map(|(name, _)| name);
        let sizes = names.zip(&of_stages);
        let sizes = sizes.map(|(name, tree)| StageSize::of(name, tree, &self.state));
        let inline = self.remote.as_ref().and_then(|remote| remote.inline_keys());
        let several = lowered.len() > 1;
        let of_images = lowered.iter().zip(&trees).map(|((platform, _), tree)| {
            let name = if several { format!("image {platform}") } else { "image".to_owned() };
            StageSize::of(name, tree, &self.state)
        });
        let sizes = sizes.chain(of_images).collect();
        let image = |(platform, lowered): &(Platform, Lowered), tree: &Tree, made_by: VertexId| {
            let source = &dockerfile.source;
            let provenance = self.provenance(&graph, lowered, made_by, source, &roots)?;
            Ok::<_, BuildError>(BuiltImage {
                platform: platform.clone(),
                config: lowered.config.clone(),
                base: lowered.base.clone(),
                epoch: lowered.epoch,
                tree: tree.clone(),
                inline: inline.clone(),
                provenance,
                annotations: BTreeMap::new(),
            })
        };
        let images = lowered.iter().enumerate().map(|(position, one)| {
            // What does not work slim is what it was.
            let slim = slim(&slims[position]).filter(|_| trees[position] != full[position]);
            image(one, &trees[position], slim.unwrap_or(one.1.target))
        });
        let mut built = Built {
            images: images.collect::<Result<_, _>>()?,
            warnings,
            sizes,
            slim: Vec::new(),
            full: Vec::new(),
            packing,
        };
        for (position, target) in slims.iter().enumerate() {
            let Some(target) = target else { continue };
            let (request, of_platform) = (&self.request.slim, &mut built.images[position]);
            let result = slim::finish(request, &self.state, target, &full[position], of_platform)?;
            built.warnings.extend(slim::warnings(&result));
            built.slim.push(result);
            let (one, full) = (&lowered[position], &full[position]);
            built.full.push(image(one, full, one.1.target)?);
        }
        Ok(built)
    }

    /// How one image, which `target` made, was built, if that is asked for.
    fn provenance(
        &self,
        graph: &Graph,
        lowered: &Lowered,
        target: VertexId,
        dockerfile: &Source,
        images: &BTreeMap<Digest, Digest>,
    ) -> Result<Option<Provenance>, BuildError> {
        let Some(wanted) = &self.request.provenance else { return Ok(None) };
        let build = provenance::Subject {
            request: self.request,
            graph,
            target,
            dockerfile,
            images,
            epoch: lowered.epoch,
            elapsed: self.started.elapsed(),
        };
        let provenance = Provenance::of(&build, wanted, &self.state);
        provenance.map(Some).map_err(|error| BuildError::failed(&error))
    }

    async fn contexts(&self) -> Result<Contexts, BuildError> {
        let task = self.reporter.start("[internal] load build definition");
        let opened = Contexts::open(self).await;
        match &opened {
            Ok(_) => task.tell(EventKind::Finished),
            Err(error) => task.tell(EventKind::Failed { message: error.to_string() }),
        }
        opened
    }

    /// A look at the tree of the last vertex of `graph`, which needs no step to be run.
    ///
    /// # Panics
    /// When the graph is empty.
    pub async fn view(
        &self,
        graph: &Graph,
        folders: &BTreeMap<String, PathBuf>,
    ) -> Result<View, BuildError> {
        let target = graph.ids().last().expect("the graph has a vertex");
        let surroundings = Arc::new(self.surroundings(folders, Vec::new())?);
        let trees = solve(Arc::new(graph.clone()), &[target], surroundings)
            .await
            .map_err(|error| BuildError::solve(&error, &Source::new("", "")))?;
        let snapshots = self.state.snapshots();
        let folder = |layer: &TreeLayer| match layer {
            TreeLayer::Snapshot(snapshot) => Some(snapshots.folder(&snapshot.id)),
            TreeLayer::Image { .. } | TreeLayer::Remote(_) => None,
        };
        Ok(View::layers(trees[0].layers.iter().filter_map(folder).collect()))
    }

    /// What the request asks of the frontend, for one platform.
    pub(crate) fn options(&self, platform: &Platform, contexts: &Contexts) -> BuildOptions {
        let request = self.request;
        BuildOptions {
            context: contexts.context.clone(),
            build_args: request.build_args.clone().into_iter().collect(),
            target: request.target.clone(),
            platform: request.platforms_given.then(|| platform.clone()),
            several_platforms: request.platforms.len() > 1,
            labels: request.labels.clone(),
            contexts: contexts.named.clone(),
            network: request.network,
            extra_hosts: request.extra_hosts.clone(),
            shm_size: request.shm_size,
            ulimits: request.ulimits.clone(),
            cgroup_parent: request.cgroup_parent.clone(),
            no_cache: request.no_cache.clone(),
            allow: Allowed {
                host_network: request.allow.contains(&Entitlement::NetworkHost),
                insecure: request.allow.contains(&Entitlement::SecurityInsecure),
            },
            ..BuildOptions::new(Platform::host())
        }
    }

    /// Resolves all images that the Dockerfile needs, those that are known at once side by side.
    pub(crate) async fn resolve(
        &self,
        dockerfile: &Dockerfile,
        options: &BuildOptions,
    ) -> Result<Resolved, BuildError> {
        let source = &dockerfile.source;
        let wrong = |diagnostics: Diagnostics| BuildError::dockerfile(&diagnostics.0, source);
        let epoch = self.epoch(rbuild_frontend::epoch(dockerfile, options).map_err(wrong)?);
        let mut resolved = Resolved::default();
        resolved.epoch = epoch.await?;
        loop {
            let missing =
                rbuild_frontend::base_images(dockerfile, options, &resolved).map_err(wrong)?;
            if missing.is_empty() {
                return Ok(resolved);
            }
            let found = try_join_all(missing.iter().map(async |image| {
                let found = self.image(image).await;
                found.map_err(|error| unresolved(&error, image, dockerfile))
            }));
            for (image, found) in missing.iter().zip(found.await?) {
                resolved.insert(image.name.clone(), image.platform.clone(), found);
            }
        }
    }

    /// The epoch, where it is the time of something that must be looked at.
    async fn epoch(&self, source: EpochSource) -> Result<Option<i64>, BuildError> {
        match source {
            // The frontend knows these.
            EpochSource::None | EpochSource::At(_) => Ok(None),
            EpochSource::Http(op) => {
                let task = self.reporter.start("[internal] resolve SOURCE_DATE_EPOCH");
                let http = HttpFiles::new(self.registry.clone(), self.state.limits().clone());
                let found = epoch::of_file(&op, &http, &self.state, &task).await;
                task.tell(match &found {
                    Ok(_) => EventKind::Finished,
                    Err(error) => EventKind::Failed { message: error.to_string() },
                });
                found.map_err(|error| BuildError::failed(&error))
            }
            EpochSource::Git(op) => {
                let mut graph = Graph::new();
                let name = "[internal] resolve SOURCE_DATE_EPOCH";
                let commit = Op::Git(epoch::commit(op));
                graph.add(Vertex::internal(commit, name), &[]);
                let view = self.view(&graph, &BTreeMap::new()).await?;
                epoch::of_commit(&view).map_err(|error| BuildError::fault(&error))
            }
        }
    }

    async fn image(&self, image: &BaseImage) -> Result<ResolvedImage, ImageSourceError> {
        let task = self.reporter.start(format!("[internal] load metadata for {}", image.name));
        let mode = if self.request.pull { ResolveMode::Pull } else { ResolveMode::PreferLocal };
        let found = match &image.name {
            ImageName::Registry(name) => {
                self.images.resolve(&name.to_string(), &image.platform, mode, &task).await
            }
            ImageName::OciLayout(context) => match self.request.named_contexts.get(context) {
                Some(NamedContextSpec::OciLayout(layout)) => {
                    self.images.resolve_layout(layout, context, &image.platform).await
                }
                _ => unreachable!("the frontend names layouts of the request only"),
            },
        };
        match &found {
            Ok(_) => task.tell(EventKind::Finished),
            Err(error) => task.tell(EventKind::Failed { message: error.to_string() }),
        }
        found
    }

    /// The solver's surroundings, as the request has them.
    fn surroundings(
        &self,
        folders: &BTreeMap<String, PathBuf>,
        proxies: Vec<String>,
    ) -> Result<Surroundings, BuildError> {
        let request = self.request;
        let stubs = self.state.folder("stubs").map_err(|error| BuildError::fault(&error))?;
        Ok(Surroundings {
            state: self.state.clone(),
            sources: vec![self.state.index().clone()],
            remote: None,
            sandbox: Arc::new(Namespaces::new(stubs)),
            images: Arc::new(self.images.clone()),
            http: Arc::new(HttpFiles::new(self.registry.clone(), request.limits.clone())),
            folders: folders.clone(),
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            allow: Entitlements {
                network_host: request.allow.contains(&Entitlement::NetworkHost),
                security_insecure: request.allow.contains(&Entitlement::SecurityInsecure),
                devices: Some(Vec::new()),
            },
            run: RunSettings {
                resolv_conf: resolv_conf(),
                proxies,
                timeout: request.timeout,
                resources: request.resources.clone(),
                devices: BTreeMap::new(),
            },
            gate: Gate::new(request.jobs),
            reporter: self.reporter.clone(),
            arguments: BTreeSet::new(),
            now: seconds(request.settings.now),
            made: None,
        })
    }
}

/// Solves; begins again when a result of elsewhere turns out to be none, which it then is not found
/// any more. What was done in between is known by then.
async fn solve_without_rejected(
    graph: Arc<Graph>,
    targets: &[VertexId],
    surroundings: Arc<Surroundings>,
) -> Result<Vec<Tree>, SolveError> {
    loop {
        match solve(Arc::clone(&graph), targets, Arc::clone(&surroundings)).await {
            Err(error) if matches!(*error.cause, Cause::Rejected { .. }) => {}
            ended => return ended,
        }
    }
}

/// The warnings of all platforms, each once.
fn warnings<'a>(lowered: impl Iterator<Item = &'a Lowered>, source: &Source) -> Vec<Problem> {
    let mut seen = Vec::new();
    for warning in lowered.flat_map(|one| &one.warnings) {
        if !seen.contains(warning) {
            seen.push(warning.clone());
        }
    }
    seen.iter().map(|warning| Problem::diagnostic(&warning.diagnostic(), source)).collect()
}

fn unresolved(error: &ImageSourceError, image: &BaseImage, dockerfile: &Dockerfile) -> BuildError {
    let source = &dockerfile.source;
    let mut problem = Problem::of(error);
    problem.excerpt = Some(Excerpt::of(source, image.span));
    let stages = dockerfile.stages.iter().filter_map(|stage| stage.from.name.as_ref());
    let stages = stages.map(|name| name.written.as_str());
    if let Some(stage) = did_you_mean(source.slice(image.span), stages) {
        problem.hints.push(format!("did you mean the stage `{stage}`?"));
    }
    problem.hints.extend(error.hint.clone());
    BuildError::new(ErrorKind::Failed, problem)
}

/// The host's resolvers. A machine without the file has no names to resolve.
fn resolv_conf() -> Vec<u8> {
    fs_err::read(Path::new("/etc/resolv.conf")).unwrap_or_default()
}

/// Seconds since the epoch; 0 before it.
pub(crate) fn seconds(time: std::time::SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rbuild_frontend::source::Span;

    use super::*;

    #[test]
    fn an_image_that_is_called_almost_like_a_stage_may_be_one() {
        let check = |name: &str, expected: &[&str]| {
            let text = format!("FROM a AS build\nFROM b\nCOPY --from={name} /x /\n");
            let span = text.find(name).map(|at| Span::new(at, at + name.len())).unwrap();
            let (dockerfile, _) = rbuild_frontend::parse(Source::new("Dockerfile", text));
            let (image, platform) = (ImageName::Registry(name.parse().unwrap()), Platform::host());
            let image = BaseImage { name: image, platform, span };
            let error = ImageSourceError { message: "no".into(), hint: None, source: None };
            assert_eq!(unresolved(&error, &image, &dockerfile).problems[0].hints, expected);
        };
        check("biuld", &["did you mean the stage `build`?"]);
        check("golang", &[]);
    }
}
