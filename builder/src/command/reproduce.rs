//! `rbuild reproduce`: builds twice from nothing, and says whether the images are the same.

use std::num::NonZeroUsize;
use std::time::Duration;

use rbuild_cache::session::Temporary;
use rbuild_cache::state::StateFolder;
use rbuild_solver::Jobs;
use rbuild_solver::progress::{EventKind, Reporter};

use super::build::become_root;
use super::{print, run_async};
use crate::build::Session;
use crate::cli::{BuildArgs, GlobalArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::export;
use crate::image::{self, WrittenImage};
use crate::local_image;
use crate::progress::{Display, End};
use crate::reproduce::{self, Difference, Made};
use crate::request::{BuildRequest, Environment};

/// How much later the second build believes to be: a clock in the image shows.
const LATER: Duration = Duration::from_hours(1);

/// Builds twice, in state folders that last no longer than this.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &BuildArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let request = BuildRequest::new(global, arguments, environment)?;
    become_root(&request)?;
    let state = local_image::open(&request.settings)?;
    let display = Display::new(&request.settings);
    let reporter = Reporter::new(display.sink());
    let result = run_async(async {
        let first = build(&request, &state, Duration::ZERO, request.jobs, &reporter).await?;
        // One step at a time: what depends on the order of steps shows.
        let one = Jobs::Limit(NonZeroUsize::MIN.get());
        let second = build(&request, &state, LATER, one, &reporter).await?;
        Ok((first, second))
    });
    display.finish(match &result {
        Ok(_) => End::Done,
        Err(error) if matches!(error.kind, ErrorKind::Interrupted(_)) => End::Interrupted,
        Err(_) => End::Failed,
    });
    let (first, second) = result?;
    let difference = reproduce::difference(first.made(), second.made());
    match difference.map_err(|error| BuildError::fault(&error))? {
        None => print(&format!("reproducible: {}\n", first.image.root.digest)),
        Some(difference) => Err(not_reproducible(&request, difference)),
    }
}

/// What a build made, and the folder that it made it in.
struct Attempt {
    image: WrittenImage,
    state: StateFolder,
    _folder: Temporary,
}

impl Attempt {
    fn made(&self) -> Made<'_> {
        Made { image: &self.image, state: &self.state }
    }
}

async fn build(
    request: &BuildRequest,
    state: &StateFolder,
    later: Duration,
    jobs: Jobs,
    reporter: &Reporter,
) -> Result<Attempt, BuildError> {
    let folder = state.temporary().map_err(|error| BuildError::fault(&error))?;
    let mut request = request.clone();
    request.settings.state_folder = folder.path().join("state");
    request.settings.now += later;
    request.jobs = jobs;
    // From nothing.
    request.cache_from.clear();
    request.cache_to.clear();
    let options = export::image_options(&request)?;
    let session = Session::open(&request, reporter.clone())?;
    let loaded = session.load().await?;
    let built = session.build(&loaded, None).await?;
    let task = reporter.start("comparing: writing the image");
    let written = image::write(&session.images, &built.images, &options, &task).await;
    let image = written.map_err(|error| {
        task.tell(EventKind::Failed { message: error.to_string() });
        BuildError::failed(&error)
    })?;
    task.tell(EventKind::Finished);
    Ok(Attempt { image, state: session.state.clone(), _folder: folder })
}

fn not_reproducible(request: &BuildRequest, difference: Difference) -> BuildError {
    let Difference { place, path, field, first, second } = difference;
    let path = path.map_or(String::new(), |path| format!("`{path}`: "));
    let mut problem = Problem {
        message: format!("not reproducible: {place} differs"),
        causes: vec![format!("{path}{field} is `{first}`, and the second time `{second}`")],
        ..Problem::default()
    };
    let has_epoch = request.build_args.contains_key("SOURCE_DATE_EPOCH");
    if !has_epoch && (field == "time" || field.contains("created")) {
        problem.hints.push(
            "set SOURCE_DATE_EPOCH in the environment: without it, an image holds the time at \
             which it was built"
                .into(),
        );
    }
    BuildError::new(ErrorKind::Failed, problem)
}
