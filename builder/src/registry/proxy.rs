//! Which proxy a request goes through, as Go's `httpproxy` decides it, since that is what people
//! who set the variables for docker have tried: `NO_PROXY` lists hosts, domains, addresses and
//! networks, and loopback addresses are never proxied.

use std::ffi::OsString;
use std::net::IpAddr;

use url::Url;

/// The proxies of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://` addresses.
    pub http: Option<String>,
    /// For `https://` addresses.
    pub https: Option<String>,
    /// Hosts that are reached directly, divided by commas.
    pub direct: String,
}

impl Proxies {
    /// The proxies named by `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either
    /// case.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let get = |name: &str| {
            [name.to_ascii_uppercase(), name.to_ascii_lowercase()]
                .iter()
                .find_map(|name| variable(name)?.into_string().ok().filter(|v| !v.is_empty()))
        };
        let all = get("all_proxy");
        Self {
            http: get("http_proxy").or_else(|| all.clone()),
            https: get("https_proxy").or(all),
            direct: get("no_proxy").unwrap_or_default(),
        }
    }

    /// The proxy for `url`; `None` when it is reached directly.
    pub fn proxy_for(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref()?,
            "https" => self.https.as_ref()?,
            _ => return None,
        };
        let host = url.host_str()?.trim_matches(['[', ']']).to_ascii_lowercase();
        if is_loopback(&host) || self.is_direct(&host, url.port_or_known_default()) {
            return None;
        }
        let with_scheme =
            if proxy.contains("://") { proxy.clone() } else { format!("http://{proxy}") };
        Url::parse(&with_scheme).ok()
    }

    fn is_direct(&self, host: &str, port: Option<u16>) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        self.direct.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
            if entry == "*" {
                return true;
            }
            if entry.is_empty() {
                return false;
            }
            if let (Some((network, bits)), Some(address)) = (entry.split_once('/'), address) {
                return contains(network, bits, address);
            }
            let (name, wanted_port) = match entry.rsplit_once(':') {
                Some((name, digits)) if !name.contains(':') => (name, digits.parse::<u16>().ok()),
                _ => (entry.as_str(), None),
            };
            if wanted_port.is_some() && wanted_port != port {
                return false;
            }
            let domain = name.strip_prefix('*').unwrap_or(name);
            match domain.strip_prefix('.') {
                Some(_) => host.ends_with(domain),
                None => host == domain || host.ends_with(&format!(".{domain}")),
            }
        })
    }
}

/// Whether `host` (a name or an address without port) is this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `address` is in `network/bits`.
pub fn contains(network: &str, bits: &str, address: IpAddr) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let to_number = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((network, width), (address, address_width)) = (to_number(network), to_number(address));
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits.min(width)) };
    width == address_width && network & mask == address & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_as_go_reads_it() {
        let check = |direct: &str, url: &str, proxied: bool| {
            let proxies = Proxies {
                http: Some("proxy:3128".into()),
                https: Some("http://proxy:3128".into()),
                direct: direct.into(),
            };
            let url = Url::parse(url).unwrap();
            assert_eq!(proxies.proxy_for(&url).is_some(), proxied, "{direct} {url}");
        };
        check("", "https://registry.example/v2/", true);
        check("", "http://127.0.0.1:5000/v2/", false);
        check("", "http://localhost/", false);
        check("", "http://[::1]:5000/", false);
        check("*", "https://registry.example/", false);
        check("example", "https://registry.example/", false);
        check(".example", "https://example/", true);
        check("registry.example:443", "https://registry.example/", false);
        check("registry.example:80", "https://registry.example/", true);
        check("10.0.0.0/8", "http://10.1.2.3/", false);
        check("10.0.0.0/8", "http://11.1.2.3/", true);
        check("ple", "https://registry.example/", true);
    }
}
