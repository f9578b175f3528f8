//! The Dockerfile language, compiled to rbuild's build graph: a pure function, no IO.
//!
//! ```text
//! text ─ parse ─→ Dockerfile ─ base_images ─→ names of images ─ (the caller resolves them)
//!                     └──────── lower ────────→ Graph and ImageConfig, for one platform
//! ```
//!
//! 1. [`parse`] reads the text: [`syntax`] finds the instructions, [`instruction`] what each says.
//!    Nothing is expanded yet. All mistakes are told at once, as [`diagnostic`]s with their places.
//! 2. [`base_images`] says which images the target is made from. Whoever calls resolves them.
//! 3. [`lower`] walks the stages, expands variables ([`expand`]), adds vertices to a graph, and
//!    writes the image config. On the way [`mod@check`] collects what had better be written otherwise.
//!
//! The language is that of BuildKit's `docker/dockerfile` 1, labs channel included, to the letter;
//! where a file follows one of BuildKit's, it names it. Two things are other than there: flags may
//! hold characters beyond ASCII, which BuildKit garbles; and what a text may expand to is bounded.
//!
//! ```
//! use rbuild_cache::oci::Platform;
//! use rbuild_frontend::source::Source;
//! use rbuild_frontend::{BuildOptions, Resolved, lower, parse};
//! use rbuild_solver::graph::Graph;
//!
//! let text = "FROM scratch\nARG TO=/etc\nCOPY motd $TO/\nUSER 1000\n";
//! let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
//! assert!(diagnostics.0.is_empty());
//!
//! let options = BuildOptions::new(Platform::new("linux", "amd64", None));
//! let mut graph = Graph::new();
//! let lowered = lower(&dockerfile, &options, &Resolved::default(), &mut graph)?;
//! assert_eq!(graph.vertex(lowered.target).name, "[1/1] COPY motd /etc/");
//! # Ok::<(), rbuild_frontend::diagnostic::Diagnostics>(())
//! ```
//!
//! What is wrong is drawn where it stands:
//!
//! ```
//! # use rbuild_frontend::{parse, source::Source};
//! let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", "FROM a\nCOPY --form=b /c /d\n"));
//! assert_eq!(diagnostics.render(&dockerfile.source), "\
//! error: unknown flag: --form
//!  --> Dockerfile:2:6
//! 2 | COPY --form=b /c /d
//!   |      ^^^^^^ did you mean `--from`?");
//! ```

pub mod amount;
pub mod check;
pub mod diagnostic;
mod dockerfile;
pub mod expand;
pub mod git_address;
pub mod ignore;
pub mod image_config;
pub mod instruction;
mod lower;
mod options;
pub mod quote;
pub mod source;
mod stage;
pub mod syntax;

pub use dockerfile::{Dockerfile, Stage, parse, parse_as, parse_trigger};
pub use lower::{
    CheckReport, EpochSource, Lowered, Outline, OutlineArgument, OutlineInput, TargetDescription,
    base_images, check, context_vertex, epoch, lower, outline, targets,
};
pub use options::{
    Allowed, BaseImage, BuildContext, BuildOptions, ImageName, NamedContext, NoCache, Resolved,
    context_name,
};
