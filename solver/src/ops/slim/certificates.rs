//! TLS: certificates of authorities, OpenSSL's settings and its loadable parts.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// The one file with all authorities, by distribution.
pub(super) const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl1.1/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// Where OpenSSL and those like it look, besides the bundles.
const FOLDERS: &[&str] = &["/etc/ssl/certs", "/usr/lib/ssl", "/etc/pki/tls/certs"];

/// Keeps what `program` checks certificates with.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId) {
    if !closure.is_first("certificates") {
        return;
    }
    let from = Some(program);
    for path in BUNDLES {
        closure.keep_path(Path::new(path), Why::Certificates, from);
    }
    for folder in FOLDERS {
        closure.keep_folder(Path::new(folder), &Why::Certificates, from);
    }
    for settings in ["/etc/ssl/openssl.cnf", "/etc/ssl1.1/openssl.cnf", "/etc/pki/tls/openssl.cnf"]
    {
        closure.keep_path(Path::new(settings), Why::Certificates, from);
    }
    let folders = closure.libraries().folders().folders.clone();
    for folder in folders {
        let modules = format!("{folder}/ossl-modules");
        closure.keep_folder(Path::new(&modules), &Why::Certificates, from);
    }
}
