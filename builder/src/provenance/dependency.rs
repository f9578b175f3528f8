//! What a build read from elsewhere, each with the digest it had: `resolvedDependencies`.

use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_frontend::git_address::GitAddress;
use rbuild_solver::graph::{GitOp, ImageOp, Op};
use rbuild_solver::source_digest;
use serde_json::{Value, json};
use url::Url;

use super::Subject;
use crate::image_source::Images;
use crate::request::{ContextSpec, DockerfileSpec};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The entries: images, git repositories, files, each sorted by address.
    pub(super) resolved: Vec<Value>,
    /// The caller's folders, by name.
    pub(super) locals: Vec<String>,
    /// What nobody else can get again, in words.
    pub(super) incomplete: Vec<String>,
}

/// What `ops` read.
pub(super) fn of<'a>(
    ops: impl Iterator<Item = &'a Op>,
    build: &Subject<'_>,
    state: &StateFolder,
) -> Found {
    let mut found = Found::default();
    let (mut images, mut git, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for op in ops {
        match op {
            Op::Image(image) => images.push(of_image(image, build)),
            Op::Git(op) => {
                let url = git_url(&op.remote, op.reference.as_deref());
                match source_digest::of_git(state, op) {
                    Some(commit) => git.push((url.clone(), commit_digest(&commit))),
                    None => found.incomplete.push(format!("`{url}`")),
                }
            }
            Op::Http(op) => {
                let url = without_password(&op.url);
                match source_digest::of_http(state, op) {
                    Some(digest) => files.push((url, json!({ "sha256": digest.hex() }))),
                    None => found.incomplete.push(format!("`{url}`")),
                }
            }
            Op::Context(context) => found.locals.push(context.name.clone()),
            Op::Scratch | Op::Run(_) | Op::File(_) | Op::Merge | Op::Slim(_) => {}
        }
    }
    let request = build.request;
    let remote = matches!(request.context, ContextSpec::Git(_) | ContextSpec::Http(_));
    match request.dockerfile {
        DockerfileSpec::Local(_) | DockerfileSpec::Stdin => found.locals.push("dockerfile".into()),
        DockerfileSpec::Default if !remote => found.locals.push("dockerfile".into()),
        DockerfileSpec::Default | DockerfileSpec::InContext(_) | DockerfileSpec::Http(_) => {}
    }
    found.locals.sort();
    found.locals.dedup();
    let local = |name: &String| format!("the local source `{name}`");
    found.incomplete.extend(found.locals.iter().map(local));
    for mut kind in [images, git, files] {
        kind.sort_by(|(one, _), (other, _)| one.cmp(other));
        kind.dedup();
        let entry = |(uri, digest)| json!({ "uri": uri, "digest": digest });
        found.resolved.extend(kind.into_iter().map(entry));
    }
    found
}

fn of_image(image: &ImageOp, build: &Subject<'_>) -> (String, Value) {
    let digest = build.images.get(&image.manifest).copied().unwrap_or(image.manifest);
    let name: Option<ImageRef> = image.name.parse().ok();
    let uri = match name {
        Some(name) if Images::is_layout(&image.location) => {
            purl("oci", &name.with_digest(digest), Some(&image.platform))
        }
        Some(name) => purl("docker", &name, Some(&image.platform)),
        // The name of an OCI layout can be anything.
        None => format!("pkg:oci/{}?digest={digest}", image.name),
    };
    (uri, json!({ "sha256": digest.hex() }))
}

/// The package URL of an image (BuildKit, util/purl/image.go).
pub fn purl(kind: &str, name: &ImageRef, platform: Option<&Platform>) -> String {
    let (repository, tag) = crate::local_image::repository_and_tag(&name.familiar());
    let mut purl = format!("pkg:{kind}/{}", escaped(&repository, "/"));
    if let Some(tag) = tag {
        purl.push('@');
        purl.push_str(&escaped(&tag, ""));
    }
    let mut qualifiers = Vec::new();
    if let Some(digest) = name.digest() {
        qualifiers.push(format!("digest={digest}"));
    }
    if let Some(platform) = platform {
        qualifiers.push(format!("platform={}", escaped(&platform.to_string(), "")));
    }
    if !qualifiers.is_empty() {
        purl.push('?');
        purl.push_str(&qualifiers.join("&"));
    }
    purl
}

/// Percent-encoded but for letters, digits, `-._~:` and what is in `kept`.
fn escaped(text: &str, kept: &str) -> String {
    let escape = |c: char| {
        let plain = c.is_ascii_alphanumeric() || "-._~:".contains(c) || kept.contains(c);
        if plain { c.to_string() } else { percent(c) }
    };
    text.chars().map(escape).collect()
}

fn percent(c: char) -> String {
    let mut buffer = [0; 4];
    c.encode_utf8(&mut buffer)
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect::<Vec<_>>()
        .concat()
}

/// A repository's address with the reference behind `#`.
pub(super) fn git_url(remote: &str, reference: Option<&str>) -> String {
    let remote = without_password(remote);
    reference.map_or_else(|| remote.clone(), |reference| format!("{remote}#{reference}"))
}

/// The address with `xxxxx` for its password (BuildKit, util/urlutil/redact.go).
pub(super) fn without_password(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else { return address.to_owned() };
    if url.password().is_none() {
        return address.to_owned();
    }
    // An address with a password has a host, which is all that this asks for.
    let _ = url.set_password(Some("xxxxx"));
    url.to_string()
}

/// The digest of the commit that a git context was.
pub(super) fn digest_of_git(
    build: &Subject<'_>,
    state: &StateFolder,
    address: &GitAddress,
) -> Option<Value> {
    let is_it = |op: &GitOp| op.remote == address.remote && op.reference == address.reference;
    build.graph.ids().find_map(|id| match &build.graph.vertex(id).op {
        Op::Git(op) if is_it(op) => source_digest::of_git(state, op).as_deref().map(commit_digest),
        _ => None,
    })
}

fn commit_digest(commit: &str) -> Value {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    json!({ algorithm: commit })
}

#[cfg(test)]
mod tests {
    use rbuild_cache::digest::Digest;

    use super::*;

    #[test]
    fn images_have_package_urls() {
        let check = |name: &str, platform: Option<&str>, expected: &str| {
            let platform = platform.map(|platform| platform.parse().unwrap());
            assert_eq!(purl("docker", &name.parse().unwrap(), platform.as_ref()), expected);
        };
        check("me/app:1", Some("linux/amd64"), "pkg:docker/me/app@1?platform=linux%2Famd64");
        check("debian", None, "pkg:docker/debian@latest");
        check("localhost:5000/a/b:v1", None, "pkg:docker/localhost:5000/a/b@v1");
        let digest = Digest::of("x");
        check(&format!("app@{digest}"), None, &format!("pkg:docker/app?digest={digest}"));
    }

    #[test]
    fn passwords_are_left_out() {
        let check = |address: &str, expected: &str| {
            assert_eq!(without_password(address), expected);
        };
        check("https://me:pass@example.org/a.git", "https://me:xxxxx@example.org/a.git");
        check("https://example.org/a.git", "https://example.org/a.git");
        check("git@example.org:a.git", "git@example.org:a.git");
    }
}
