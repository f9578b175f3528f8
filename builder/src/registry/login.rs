//! `rbuild login` and `rbuild logout`: credentials are tried at the registry before they are kept,
//! where docker keeps them.

use rbuild_cache::oci::ImageRef;
use reqwest::Method;

use super::Registry;
use super::auth::Scope;
use super::credentials::{Credential, Credentials, CredentialsError};
use super::error::{Cause, RegistryError};
use super::hosts::Endpoint;
use super::transport::Call;

/// The host that is meant by what people log in at: an address has one too, as in docker's own
/// `https://index.docker.io/v1/` (docker/cli, `ConvertToHostname`).
pub fn host_meant(text: &str) -> &str {
    let address = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = match address {
        Some(address) => address.split('/').next().unwrap_or(address),
        None => text.trim_end_matches('/'),
    };
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

impl Registry {
    /// Logs in at `host` (`docker.io` for Docker Hub) and keeps the credential. Returns where.
    ///
    /// # Errors
    /// When the registry does not take it; nothing is kept then.
    pub async fn login(
        &self,
        host: &str,
        username: &str,
        password: &str,
    ) -> Result<String, RegistryError> {
        let action = format!("logging in as `{username}`");
        let failed = |cause| RegistryError::new(action.clone(), host, cause);
        let endpoint = self.endpoint_of(host).map_err(failed)?;
        let given =
            Credential::Password { username: username.to_owned(), password: password.to_owned() };
        let authenticator = self.transport().authenticator();
        authenticator.preset(&endpoint.host, given.clone());
        self.try_credential(&endpoint).await.map_err(failed)?;
        let hosts = self.transport().hosts().map_err(|e| failed(e.into()))?;
        let clients = self.transport().clients();
        let token = authenticator.identity_token(clients, hosts, &endpoint.host, &given).await;
        let kept = match token.map_err(failed)? {
            Some(token) if !token.is_empty() => Credential::IdentityToken(token),
            Some(_) | None => given,
        };
        self.credentials().store(host, &kept).await.map_err(|e| failed(e.into()))
    }

    /// Forgets the credentials for `host`. `false` when there were none.
    pub async fn logout(&self, host: &str) -> Result<bool, CredentialsError> {
        self.credentials().erase(host).await
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(self.transport().settings())
    }

    fn endpoint_of(&self, host: &str) -> Result<Endpoint, Cause> {
        let not_a_host = || Cause::Protocol(format!("`{host}` is not the host of a registry"));
        // A host is whatever stands before the first slash of an image's name.
        let image: ImageRef = format!("{host}/x").parse().map_err(|_| not_a_host())?;
        if image.registry() != host {
            return Err(not_a_host());
        }
        Ok(self.transport().hosts()?.push_endpoint(&image)?)
    }

    /// Asks for `/v2/`, which is what registries ask credentials for.
    async fn try_credential(&self, endpoint: &Endpoint) -> Result<(), Cause> {
        let mut call = Call::new(Method::GET, endpoint, "/v2/");
        call.scopes = Vec::<Scope>::new();
        let transport = self.transport();
        let response = transport.send(&call, &mut transport.patience()).await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(transport.failure(&call, response, "a registry").await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host() {
        let check = |text: &str, expected: &str| assert_eq!(host_meant(text), expected);
        check("ghcr.io", "ghcr.io");
        check("localhost:5000/", "localhost:5000");
        check("https://ghcr.io", "ghcr.io");
        check("http://localhost:5000/v2/", "localhost:5000");
        check("https://index.docker.io/v1/", "docker.io");
        check("registry-1.docker.io", "docker.io");
        check("ghcr.io/me", "ghcr.io/me");
    }
}
