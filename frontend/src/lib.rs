//! The Dockerfile language, compiled to rbuild's build graph: a pure function, no IO.

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

pub use dockerfile::{Dockerfile, ParseError, Stage, parse, parse_trigger};
pub use lower::{
    CheckReport, EpochSource, Lowered, Outline, OutlineArgument, OutlineInput, TargetDescription,
    base_images, check, context_vertex, epoch, lower, outline, targets,
};
pub use options::{
    Allowed, BaseImage, BuildContext, BuildOptions, ImageName, NamedContext, NoCache, Resolved,
    context_name,
};
