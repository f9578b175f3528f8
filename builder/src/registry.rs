//! The registry client: pulls and pushes images over the distribution protocol.
//!
//! Nothing is read or connected before a registry is really needed, so that a build that needs
//! none pays for none. Types and error codes are `oci-client`'s and `oci-spec`'s; the transport is
//! our own, since what a slow or failing network asks for (ranges, resuming, `Retry-After`, mounts,
//! renewed tokens, several mirrors) cannot be had through `oci-client`'s interface.

pub mod auth;
pub mod clients;
pub mod credentials;
pub mod current;
pub mod error;
mod growing;
pub mod hosts;
pub mod login;
pub mod proxy;
pub mod pull;
pub mod push;
pub mod retry;
pub mod settings;
pub mod sink;
pub mod tls;
pub mod transport;
pub mod upload;

use std::sync::Arc;

pub use error::RegistryError;
pub use settings::RegistrySettings;

use pull::Puller;
use push::Pusher;
use transport::Transport;

/// Speaks to registries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    transport: Arc<Transport>,
    puller: Arc<Puller>,
    pusher: Arc<Pusher>,
}

impl Registry {
    /// A client with these settings. It does nothing yet.
    pub fn new(settings: RegistrySettings) -> Self {
        let transport = Arc::new(Transport::new(Arc::new(settings)));
        Self {
            puller: Arc::new(Puller::new(transport.clone())),
            pusher: Arc::new(Pusher::new(transport.clone())),
            transport,
        }
    }

    /// What reads.
    pub fn puller(&self) -> &Puller {
        &self.puller
    }

    /// What writes.
    pub fn pusher(&self) -> &Pusher {
        &self.pusher
    }

    /// What carries requests.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }
}
