//! Addresses of git repositories, as `ADD`, build contexts and named contexts write them.
//!
//! `https://host/app.git#reference:subdir`, the query form `?ref=…&subdir=…&checksum=…`, and the
//! scp form `git@host:app.git`. Follows BuildKit's `frontend/dockerfile/dfgitutil/git_ref.go` and
//! `util/gitutil/git_url.go`.

/// A git repository, and what of it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitAddress {
    /// The repository as git takes it, without fragment and query.
    pub remote: String,
    /// Branch, tag, full reference or commit; the remote's HEAD when absent.
    pub reference: Option<String>,
    /// The folder in the repository; never absolute, never with `..`.
    pub subdir: Option<String>,
    /// What the commit's digest must begin with.
    pub checksum: Option<String>,
    /// `.git` is kept; left to the place of use when absent.
    pub keep_git_dir: Option<bool>,
    /// Submodules are checked out; they are when absent.
    pub submodules: Option<bool>,
    /// Files get the time of the commit (`mtime=commit`), not that of the checkout.
    pub commit_times: bool,
}

/// Says what is wrong with an address that is certainly one of a git repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitAddressError {
    /// A part of the query that nobody knows.
    #[error("unexpected query {0:?}")]
    UnknownQuery(String),
    /// `?ref=`
    #[error("query {0:?} has no value")]
    NoValue(String),
    /// `?ref=a&ref=b`
    #[error("query {0:?} has multiple values")]
    ManyValues(String),
    /// `?submodules=perhaps`
    #[error("invalid {key} value: {value:?}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The fragment and the query say different things.
    #[error("{key} conflicts: {one:?} vs {other:?}")]
    Conflict {
        /// What they say it about.
        key: &'static str,
        /// What the one says.
        one: String,
        /// What the other says.
        other: String,
    },
    /// `?branch=a&tag=b`
    #[error("branch conflicts with tag")]
    BranchAndTag,
}

impl GitAddress {
    /// Reads `text`; `None` when it is no address of a git repository: http(s) without `.git` at
    /// the end of its path, a path, another protocol.
    pub fn parse(text: &str) -> Option<Result<Self, GitAddressError>> {
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        let (before_fragment, fragment) = cut(text, '#');
        let (remote, query) = cut(before_fragment, '?');
        match remote.split_once("://") {
            Some((protocol, rest)) => match protocol.to_ascii_lowercase().as_str() {
                "http" | "https" if is_repository(rest) => {}
                "ssh" | "git" => {}
                _ => return None,
            },
            None if is_scp_form(remote) => {}
            None => return None,
        }
        Some(Self::with_parts(remote, query, fragment))
    }

    /// Reads `text` as a build context, where `github.com/…` may stand without protocol.
    pub fn parse_context(text: &str) -> Option<Result<Self, GitAddressError>> {
        if text.starts_with("github.com/") {
            let (before_fragment, fragment) = cut(text, '#');
            let (remote, query) = cut(before_fragment, '?');
            return Some(Self::with_parts(&format!("https://{remote}"), query, fragment));
        }
        Self::parse(text)
    }

    /// The repository's name: `app` of `https://host/app.git`.
    pub fn short_name(&self) -> &str {
        let last = self.remote.rsplit(['/', ':']).next().unwrap_or(&self.remote);
        last.strip_suffix(".git").unwrap_or(last)
    }

    fn with_parts(
        remote: &str,
        query: Option<&str>,
        fragment: Option<&str>,
    ) -> Result<Self, GitAddressError> {
        let mut address = Self { remote: remote.to_owned(), ..Self::default() };
        if let Some(fragment) = fragment {
            let (reference, subdir) = cut(fragment, ':');
            address.reference = filled(percent_decoded(reference));
            address.subdir = subdir.and_then(|subdir| inside(&percent_decoded(subdir)));
        }
        if let Some(query) = query {
            address.read_query(query)?;
        }
        Ok(address)
    }

    fn read_query(&mut self, query: &str) -> Result<(), GitAddressError> {
        let mut seen: Vec<String> = Vec::new();
        let (mut tag, mut branch) = (None, None);
        for field in query.split('&').filter(|field| !field.is_empty()) {
            let (key, value) = cut(field, '=');
            let key = percent_decoded(&key.replace('+', " "));
            let value = value.map(|value| percent_decoded(&value.replace('+', " ")));
            if seen.contains(&key) {
                return Err(GitAddressError::ManyValues(key));
            }
            seen.push(key.clone());
            let value = value.filter(|value| !value.is_empty());
            let needed = || value.clone().ok_or_else(|| GitAddressError::NoValue(key.clone()));
            match key.as_str() {
                "ref" => agree("ref", &mut self.reference, needed()?)?,
                "subdir" => {
                    let subdir = inside(&needed()?).unwrap_or_default();
                    agree("subdir", &mut self.subdir, subdir)?;
                }
                "tag" => tag = Some(prefixed("refs/tags/", &needed()?)),
                "branch" => branch = Some(prefixed("refs/heads/", &needed()?)),
                "checksum" | "commit" => self.checksum = Some(needed()?),
                "keep-git-dir" => self.keep_git_dir = Some(switch(&key, value.as_deref())?),
                "submodules" => self.submodules = Some(switch(&key, value.as_deref())?),
                // Fetching the commit by its digest is how rbuild fetches when it knows one.
                "fetch-by-commit" => drop(switch(&key, value.as_deref())?),
                "mtime" => match needed()?.as_str() {
                    "checkout" => self.commit_times = false,
                    "commit" => self.commit_times = true,
                    other => {
                        return Err(GitAddressError::Value { key, value: other.to_owned() });
                    }
                },
                _ => return Err(GitAddressError::UnknownQuery(key)),
            }
        }
        match (tag, branch) {
            (Some(_), Some(_)) => Err(GitAddressError::BranchAndTag),
            (Some(name), None) | (None, Some(name)) => agree("ref", &mut self.reference, name),
            (None, None) => Ok(()),
        }
    }
}

/// Whether the path of `host/path` ends in `.git`, which is never written in capitals.
fn is_repository(rest: &str) -> bool {
    rest.strip_suffix(".git").is_some_and(|rest| rest.contains('/'))
}

/// `text` before the first `separator`, and what stands behind it.
fn cut(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, behind)) => (before, Some(behind)),
        None => (text, None),
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `user@host:path`
fn is_scp_form(text: &str) -> bool {
    let word = |text: &str, more: &[char]| {
        // A leading dash would be an option to git or ssh.
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
    };
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, _path)) = rest.split_once(':') else { return false };
    word(user, &['-', '_']) && word(host, &['-', '.'])
}

/// `path` below the repository's root: `..` goes no higher than that.
fn inside(path: &str) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    filled(kept.join("/"))
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn agree(
    key: &'static str,
    place: &mut Option<String>,
    value: String,
) -> Result<(), GitAddressError> {
    match place {
        Some(one) if *one != value => {
            Err(GitAddressError::Conflict { key, one: one.clone(), other: value })
        }
        _ => {
            *place = filled(value);
            Ok(())
        }
    }
}

/// A truth value as Go's `strconv.ParseBool` reads it; a key alone is true.
fn switch(key: &str, value: Option<&str>) -> Result<bool, GitAddressError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(GitAddressError::Value { key: key.to_owned(), value: other.to_owned() }),
    }
}

/// `%2F` is `/`; what is no such escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match (first, behind) {
            (b'%', [high, low, behind @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                let value = digit(*high).unwrap_or(0) * 16 + digit(*low).unwrap_or(0);
                bytes.push(u8::try_from(value).unwrap_or(b'%'));
                rest = behind;
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(address: &GitAddress) -> String {
        let option = |name: &str, value: &Option<String>| {
            value.as_ref().map_or(String::new(), |value| format!(" {name}={value}"))
        };
        let switch = |name: &str, value: Option<bool>| {
            value.map_or(String::new(), |value| format!(" {name}={value}"))
        };
        [
            address.remote.clone(),
            option("ref", &address.reference),
            option("subdir", &address.subdir),
            option("checksum", &address.checksum),
            switch("keep", address.keep_git_dir),
            switch("submodules", address.submodules),
            if address.commit_times { " commit times".into() } else { String::new() },
        ]
        .concat()
    }

    #[test]
    fn reads_addresses() {
        let check = |text: &str, expected: &str| {
            assert_eq!(shown(&GitAddress::parse(text).unwrap().unwrap()), expected, "{text}");
        };
        check("https://h/a.git", "https://h/a.git");
        check("https://h/a.git#v1", "https://h/a.git ref=v1");
        check("https://h/a.git#v1:sub/dir", "https://h/a.git ref=v1 subdir=sub/dir");
        check("https://h/a.git#:sub", "https://h/a.git subdir=sub");
        check("https://h/a.git#:../../etc", "https://h/a.git subdir=etc");
        check("git@h:a/b.git#main", "git@h:a/b.git ref=main");
        check("ssh://git@h/a", "ssh://git@h/a");
        check("git://h/a#b", "git://h/a ref=b");
        check("https://h/a.git?ref=v1&subdir=/s/", "https://h/a.git ref=v1 subdir=s");
        check("https://h/a.git?tag=v1", "https://h/a.git ref=refs/tags/v1");
        check("https://h/a.git?branch=refs/heads/b", "https://h/a.git ref=refs/heads/b");
        check("https://h/a.git?ref=a%2Fb&checksum=12ab", "https://h/a.git ref=a/b checksum=12ab");
        check(
            "https://h/a.git?keep-git-dir&submodules=0",
            "https://h/a.git keep=true submodules=false",
        );
        check("https://h/a.git?mtime=commit", "https://h/a.git commit times");
        check("https://h/a.git?ref=v1#v1", "https://h/a.git ref=v1");
    }

    #[test]
    fn leaves_other_addresses_alone() {
        for other in [
            "https://h/a.tar.gz",
            "./a.git",
            "a.git",
            "ftp://h/a.git",
            "https://h/a",
            "",
            "@:",
            "-x@h:a",
        ] {
            assert_eq!(GitAddress::parse(other), None, "{other}");
        }
        assert_eq!(GitAddress::parse("github.com/me/app"), None);
        let context = GitAddress::parse_context("github.com/me/app#v1").unwrap().unwrap();
        assert_eq!(shown(&context), "https://github.com/me/app ref=v1");
        assert_eq!(context.short_name(), "app");
    }

    #[test]
    fn refuses_queries_that_mean_nothing() {
        let check = |query: &str, expected: &str| {
            let error = GitAddress::parse(&format!("https://h/a.git?{query}")).unwrap();
            assert_eq!(error.unwrap_err().to_string(), expected, "{query}");
        };
        check("rev=1", r#"unexpected query "rev""#);
        check("ref=", r#"query "ref" has no value"#);
        check("ref=a&ref=b", r#"query "ref" has multiple values"#);
        check("submodules=perhaps", r#"invalid submodules value: "perhaps""#);
        check("mtime=now", r#"invalid mtime value: "now""#);
        check("tag=a&branch=b", "branch conflicts with tag");
        check("ref=a#b", r#"ref conflicts: "b" vs "a""#);
    }
}
