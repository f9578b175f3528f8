//! Why a registry did not do what it was asked: which image, which host, what was tried.

use std::time::Duration;

use rbuild_cache::digest::Digest;
use rbuild_cache::limits::Exceeded;
use rbuild_cache::store::StoreError;
use rbuild_solver::image_source::ImageSourceError;

use super::credentials::CredentialsError;
use super::hosts::HostsError;
use super::tls::TlsError;

/// An operation on an image that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {failure}{}", also(.mirrors))]
pub struct RegistryError {
    /// What was being done, with the image's name: ``pulling `debian:bookworm` ``.
    pub action: String,
    /// What went wrong at the registry itself.
    #[source]
    pub failure: Failure,
    /// What went wrong at the mirrors that were asked before.
    pub mirrors: Vec<Failure>,
}

/// What went wrong in one exchange with one host.
#[derive(Debug, thiserror::Error)]
#[error("`{host}`: {cause}")]
pub struct Failure {
    /// With whom.
    pub host: String,
    /// What went wrong.
    #[source]
    pub cause: Box<Cause>,
}

/// What can go wrong with a host.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// No connection came about.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Connection(String),
    /// The host's certificate was not accepted, or ours not by the host.
    #[error("TLS: {0}")]
    Handshake(String),
    /// Nothing came for a while.
    #[error("no answer within {} s", .0.as_secs().max(1))]
    Stalled(Duration),
    /// It has no such thing.
    #[error("{0} was not found")]
    NotFound(String),
    /// It wants credentials, or others.
    #[error("access denied ({detail}); {offered}")]
    Denied {
        /// What the host said.
        detail: String,
        /// What rbuild showed.
        offered: String,
    },
    /// Its token service did not give a token.
    #[error("no token from `{realm}`: {detail}")]
    Token {
        /// The token service.
        realm: String,
        /// What it said.
        detail: String,
    },
    /// It asks to come back later than rbuild waits.
    #[error("too many requests; it asks to wait {} s", .0.as_secs())]
    Later(Duration),
    /// It answered with a status that says no.
    #[error("{status}{}", if .detail.is_empty() { String::new() } else { format!(": {}", .detail) })]
    Status {
        /// The status with its name.
        status: String,
        /// What the body said.
        detail: String,
    },
    /// It does not see something that a manifest names and that was brought there before. Some lose
    /// sight of what two clients bring at the same time, until both are done.
    #[error("{status}: {detail}")]
    BlobUnknown {
        /// The status with its name.
        status: String,
        /// What the body said.
        detail: String,
    },
    /// Its answer breaks the protocol.
    #[error("{0}")]
    Protocol(String),
    /// What it sent is not what was asked for.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Which blob.
        what: Digest,
        /// How that was noticed.
        detail: String,
    },
    /// There is more of it than the user lets there be.
    #[error("there is {0}")]
    Limit(Exceeded),
    /// What it wants to send is larger than such a thing may be.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What.
        what: String,
        /// What is allowed.
        limit: u64,
    },
    /// The TLS files of this host cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The user's credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The registry configuration cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// The content store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something on this machine: the disk, a file to send.
    #[error(transparent)]
    Local(#[from] std::io::Error),
}

impl Cause {
    /// Names the host behind it.
    pub fn at(self, host: &str) -> Failure {
        Failure { host: host.to_owned(), cause: Box::new(self) }
    }

    /// Whether doing the same again may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Connection(_) | Self::Stalled(_) | Self::Damaged { .. }
        )
    }

    /// Whether a blob of the store is not what it was; it may have been found out on the way.
    fn is_damage_here(&self) -> bool {
        let error = match self {
            Self::Store(error) => Some(error),
            Self::Local(error) => error.get_ref().and_then(|error| error.downcast_ref()),
            _ => None,
        };
        error.is_some_and(StoreError::is_damage)
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable(_) | Self::Connection(_) | Self::Stalled(_) => {
                "check the name, the network and the proxy variables; mirrors and plain-HTTP hosts \
                 are set in `registries.toml`"
            }
            Self::Handshake(_) => {
                "put the host's authority into `/etc/docker/certs.d/HOST/ca.crt`, or set `ca`, \
                 `http` or `insecure` for it in `registries.toml`"
            }
            Self::Denied { .. } | Self::Token { .. } => {
                "`rbuild login HOST` stores credentials; check the repository's name and your rights"
            }
            Self::NotFound(_) => "check the name and the tag",
            Self::Credentials(CredentialsError::Helper { .. }) => {
                "`credHelpers` and `credsStore` in docker's `config.json` or podman's `auth.json` name \
                 it: install the program, or take its entry out"
            }
            Self::Later(_) => "log in for a higher limit, use a mirror, or try again later",
            Self::Damaged { .. } => "a proxy or the registry's disk may be at fault; try again",
            Self::BlobUnknown { .. } => {
                "it says so of something that was just sent to it: `rbuild push` sends what is missing"
            }
            Self::Store(_) | Self::Local(_) if self.is_damage_here() => {
                "`rbuild cache verify --repair` mends the store; then build or pull the image again"
            }
            Self::Status { .. }
            | Self::Protocol(_)
            | Self::TooLarge { .. }
            | Self::Limit(_)
            | Self::Tls(_)
            | Self::Credentials(_)
            | Self::Hosts(_)
            | Self::Store(_)
            | Self::Local(_) => return None,
        };
        Some(hint.to_owned())
    }
}

impl RegistryError {
    /// The failure of `action` at `host`.
    pub fn new(action: impl Into<String>, host: &str, cause: Cause) -> Self {
        Self { action: action.into(), failure: cause.at(host), mirrors: Vec::new() }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        self.failure.cause.hint()
    }

    /// Whether the registry could not be reached at all, so that what is known from earlier may
    /// stand in.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            *self.failure.cause,
            Cause::Unreachable(_) | Cause::Connection(_) | Cause::Stalled(_)
        )
    }
}

impl From<RegistryError> for ImageSourceError {
    fn from(error: RegistryError) -> Self {
        Self { message: error.to_string(), hint: error.hint(), source: None }
    }
}

fn also(mirrors: &[Failure]) -> String {
    let mut text = String::new();
    for failure in mirrors {
        text.push_str("; before, mirror ");
        text.push_str(&failure.to_string());
    }
    text
}
