//! The flags of `rbuild login` and `rbuild logout`.

use clap::Args;

/// `rbuild login`
#[derive(Clone, Debug, Args)]
pub struct LoginArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    pub registry: Option<String>,
    /// Who logs in; asked for when it is not given
    #[arg(short, long)]
    pub username: Option<String>,
    /// The password; others can see it while rbuild runs
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from stdin
    #[arg(long)]
    pub password_stdin: bool,
}

/// `rbuild logout`
#[derive(Clone, Debug, Args)]
pub struct LogoutArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    pub registry: Option<String>,
}
