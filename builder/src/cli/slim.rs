//! The flags of `rbuild slim`.

use clap::{Args, Subcommand};

/// `rbuild slim`
#[derive(Clone, Debug, Args)]
pub struct SlimArgs {
    /// What to say
    #[command(subcommand)]
    pub command: SlimCommand,
}

/// What `rbuild slim` can say.
#[derive(Clone, Debug, Subcommand)]
pub enum SlimCommand {
    /// Say why a path is in the image, or is not
    Why {
        /// The path in the image
        #[arg(value_name = "PATH")]
        path: String,
        /// Name or ID of the image [default: the one that was slimmed last]
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Show what was kept and what was not
    Report {
        /// Name or ID of the image [default: the one that was slimmed last]
        #[arg(value_name = "IMAGE")]
        image: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}
