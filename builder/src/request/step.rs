//! What RUN steps get from the caller: secrets, agents, network, hosts, limits. Values are read as
//! buildx and Docker read them; secrets and sockets are looked at here, so that a typing error is
//! found before anything is built.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rbuild_frontend::amount;
use rbuild_solver::graph::{NetworkMode, Ulimit};
use rbuild_solver::mount::{Secret, SshAgent};

use super::{Environment, UsageError, csv};

/// What steps get only after the caller allowed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
}

/// The most bytes of a secret (BuildKit, `session/secrets/secretsprovider`).
const MAX_SECRET: u64 = 500 * 1024;

/// Reads all `--secret`: `id=ID[,type=file|env][,src=FILE|,env=VARIABLE]`.
pub(super) fn secrets(
    given: &[String],
    environment: &Environment,
) -> Result<BTreeMap<String, Secret>, UsageError> {
    given.iter().map(|text| secret(text, environment)).collect()
}

fn secret(text: &str, environment: &Environment) -> Result<(String, Secret), UsageError> {
    const FLAG: &str = "--secret";
    let wrong = |reason: String| UsageError::value(FLAG, text, reason);
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for (key, value) in csv::pairs(FLAG, text)? {
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if value == "file" || value == "env" => kind = Some(value),
            "type" => return Err(wrong(format!("type `{value}` is neither file nor env"))),
            _ => return Err(wrong(format!("`{key}` is none of id, type, src, env"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong("`id=` is missing".into()))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    let secret = match (variable, file) {
        (Some(variable), _) => variable_secret(&variable, environment),
        (None, Some(file)) => file_secret(&id, &file)?,
        (None, None) if environment.variables.contains_key(std::ffi::OsStr::new(&id)) => {
            variable_secret(&id, environment)
        }
        (None, None) => file_secret(&id, &id)?,
    };
    Ok((id, secret))
}

/// A variable that is not set is an empty secret, as BuildKit has it.
fn variable_secret(variable: &str, environment: &Environment) -> Secret {
    let value = environment.variables.get(std::ffi::OsStr::new(variable));
    Secret::Value(value.map(|value| value.as_encoded_bytes().to_vec()).unwrap_or_default())
}

fn file_secret(id: &str, file: &str) -> Result<Secret, UsageError> {
    let wrong = |reason: String| UsageError::File { what: format!("secret `{id}`"), reason };
    let metadata = Path::new(file).metadata();
    let metadata = metadata.map_err(|error| wrong(format!("`{file}`: {error}")))?;
    if metadata.is_dir() {
        return Err(wrong(format!("`{file}` is a folder")));
    }
    if metadata.len() > MAX_SECRET {
        return Err(wrong(format!("`{file}` is larger than {MAX_SECRET} bytes")));
    }
    Ok(Secret::File(file.into()))
}

/// Reads all `--ssh`: `default`, `ID`, `ID=SOCKET`.
pub(super) fn ssh(
    given: &[String],
    environment: &Environment,
) -> Result<BTreeMap<String, SshAgent>, UsageError> {
    given.iter().map(|text| agent(text, environment)).collect()
}

fn agent(text: &str, environment: &Environment) -> Result<(String, SshAgent), UsageError> {
    const FLAG: &str = "--ssh";
    let wrong = |reason: String| UsageError::value(FLAG, text, reason);
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(wrong("its id is empty".into()));
    }
    let socket = match paths.split(',').collect::<Vec<_>>()[..] {
        [""] => environment
            .path("SSH_AUTH_SOCK")
            .ok_or_else(|| wrong("no agent is running here: SSH_AUTH_SOCK is not set".into()))?,
        [path] => PathBuf::from(path),
        _ => return Err(UsageError::NotYet("`--ssh` with several paths".into())),
    };
    let file_type =
        fs_err::metadata(&socket).map_err(|error| wrong(error.to_string()))?.file_type();
    if file_type.is_socket() {
        return Ok((id.to_owned(), SshAgent { socket }));
    }
    if file_type.is_file() {
        // Only an agent's socket enters a step; rbuild reads no private keys.
        return Err(wrong(format!(
            "`{}` is a file, not the socket of an agent; add the key to an agent with ssh-add",
            socket.display()
        )));
    }
    Err(wrong(format!("`{}` is no socket", socket.display())))
}

/// Reads `--network`.
pub(super) fn network(text: Option<&str>) -> Result<NetworkMode, UsageError> {
    match text {
        None | Some("" | "default") => Ok(NetworkMode::Default),
        Some("none") => Ok(NetworkMode::None),
        Some("host") => Ok(NetworkMode::Host),
        Some(other) => Err(UsageError::value("--network", other, "expected default, none or host")),
    }
}

/// Reads all `--add-host`: `NAME:ADDRESS` or `NAME=ADDRESS`, the address in brackets or not.
pub(super) fn extra_hosts(given: &[String]) -> Result<Vec<(String, String)>, UsageError> {
    given.iter().map(|text| extra_host(text)).collect()
}

fn extra_host(text: &str) -> Result<(String, String), UsageError> {
    let wrong = |reason: &str| UsageError::value("--add-host", text, reason);
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .filter(|(name, address)| !name.is_empty() && !address.is_empty())
        .ok_or_else(|| wrong("expected HOST:IP"))?;
    if name.contains(char::is_whitespace) {
        return Err(wrong("a host's name holds no blanks"));
    }
    if address == "host-gateway" {
        // As buildx says where the builder is no daemon with a bridge of its own.
        return Err(wrong(
            "unable to derive the IP value for host-gateway: there is no bridge between steps and \
             this machine; a step with `--network=host` reaches it at 127.0.0.1",
        ));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    let parsed: Result<IpAddr, _> = address.parse();
    parsed.map_err(|_| wrong("what follows the host's name is no IP address"))?;
    Ok((name.to_owned(), address.to_owned()))
}

/// The limits that Linux has, as Docker names them (docker/go-units, `ulimit.go`).
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Reads all `--ulimit`: `NAME=SOFT[:HARD]`; the last one of a name holds.
pub(super) fn ulimits(given: &[String]) -> Result<Vec<Ulimit>, UsageError> {
    let mut ulimits = BTreeMap::new();
    for text in given {
        let ulimit = ulimit(text)?;
        ulimits.insert(ulimit.name.clone(), ulimit);
    }
    Ok(ulimits.into_values().collect())
}

fn ulimit(text: &str) -> Result<Ulimit, UsageError> {
    let wrong = |reason: String| UsageError::value("--ulimit", text, reason);
    let (name, limits) =
        text.split_once('=').ok_or_else(|| wrong("expected NAME=SOFT[:HARD]".into()))?;
    let name = name.to_ascii_lowercase();
    if !ULIMITS.contains(&name.as_str()) {
        return Err(wrong(format!("`{name}` is none of {}", ULIMITS.join(", "))));
    }
    let number = |text: &str| -> Result<i64, UsageError> {
        let number: Option<i64> = text.parse().ok().filter(|number| *number >= -1);
        number.ok_or_else(|| wrong(format!("`{text}` is no limit")))
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong("the soft limit is above the hard one".into()));
    }
    Ok(Ulimit { name, soft, hard })
}

/// Reads `--shm-size`.
pub(super) fn shm_size(text: &str) -> Result<u64, UsageError> {
    bytes("--shm-size", text)
}

/// Reads a size: a number of bytes, `64m`, `1.5GiB`.
pub(super) fn bytes(flag: &'static str, text: &str) -> Result<u64, UsageError> {
    amount::bytes(text.trim())
        .ok_or_else(|| UsageError::value(flag, text, "expected a size, such as 64m or 1g"))
}

/// Reads all `--allow` but those of devices.
pub(super) fn entitlements(given: &[String]) -> Result<BTreeSet<Entitlement>, UsageError> {
    let entitlement = |text: &String| match text.as_str() {
        "network.host" => Ok(Entitlement::NetworkHost),
        "security.insecure" => Ok(Entitlement::SecurityInsecure),
        // buildx asks for leave to read and write files outside of the context, since the builder
        // may be a stranger; rbuild is the caller's own process.
        other => {
            let reason = "expected network.host, security.insecure or device[=NAME]";
            Err(UsageError::value("--allow", other, reason))
        }
    };
    given.iter().map(entitlement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_variables() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let environment = Environment::with_variables(&[("TOKEN", "s3"), ("id2", "two")]);
        let value = |text: &str| Secret::Value(text.into());
        let check = |text: &str, id: &str, expected: Secret| {
            let secret = secret(&text.replace("FILE", &path), &environment);
            assert_eq!(secret, Ok((id.into(), expected)), "{text}");
        };
        check("id=a,src=FILE", "a", Secret::File(path.clone().into()));
        check("id=a,source=FILE,type=file", "a", Secret::File(path.clone().into()));
        check("id=a,env=TOKEN", "a", value("s3"));
        check("type=env,id=a,src=TOKEN", "a", value("s3"));
        check("id=TOKEN", "TOKEN", value("s3"));
        check("id=id2", "id2", value("two"));
        check("id=FILE", &path, Secret::File(path.clone().into()));
        check("id=a,env=UNSET", "a", value(""));
        for wrong in
            ["id=a,src=/no/such", "src=FILE", "id=a,type=x", "id=a,key=b", "a", "id=a,src=/"]
        {
            assert!(secret(&wrong.replace("FILE", &path), &environment).is_err(), "{wrong}");
        }
        assert_eq!(format!("{:?}", value("s3")), "Value(…)");
    }

    #[test]
    fn agents() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let text = socket.to_str().unwrap();
        let environment = Environment::with_variables(&[("SSH_AUTH_SOCK", text)]);
        let found = SshAgent { socket: socket.clone() };
        assert_eq!(agent("default", &environment), Ok(("default".into(), found.clone())));
        assert_eq!(agent(&format!("git={text}"), &environment), Ok(("git".into(), found)));
        let none = Environment::with_variables(&[]);
        assert_eq!(
            agent("default", &none).unwrap_err().to_string(),
            "invalid value `default` for `--ssh`: no agent is running here: SSH_AUTH_SOCK is not set"
        );
        let key = folder.path().join("id_ed25519");
        fs_err::write(&key, "").unwrap();
        let error = agent(&format!("git={}", key.display()), &none).unwrap_err();
        assert!(error.to_string().contains("ssh-add"), "{error}");
    }

    #[test]
    fn hosts() {
        let check = |text: &str, name: &str, address: &str| {
            assert_eq!(extra_host(text), Ok((name.into(), address.into())), "{text}");
        };
        check("db:10.0.0.1", "db", "10.0.0.1");
        check("db=10.0.0.1", "db", "10.0.0.1");
        check("db:::1", "db", "::1");
        check("db=[::1]", "db", "::1");
        for wrong in ["db", "db:", ":1.2.3.4", "db:example.com", "db:host-gateway", "d b:1.2.3.4"] {
            assert!(extra_host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits() {
        let check = |text: &str, soft, hard| {
            let ulimit = ulimit(text).unwrap();
            assert_eq!((ulimit.soft, ulimit.hard), (soft, hard), "{text}");
        };
        check("nofile=10", 10, 10);
        check("nofile=10:20", 10, 20);
        check("nofile=-1", -1, -1);
        check("core=0:-1", 0, -1);
        for wrong in ["nofile", "nofile=", "nofile=20:10", "files=1", "nofile=-2", "nofile=-1:5"] {
            assert!(ulimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected: u64| assert_eq!(shm_size(text), Ok(expected), "{text}");
        check("1024", 1024);
        check("64m", 64 << 20);
        check("64MB", 64 << 20);
        check("1.5GiB", 3 << 29);
        check("32 kb", 32 << 10);
        for wrong in ["", "m", "-1", "1x", "1e30g", "nan"] {
            assert!(shm_size(wrong).is_err(), "{wrong}");
        }
    }
}
