//! `--attest`, `--provenance` and `--sbom`: what an image says of how it was built (buildx,
//! `util/buildflags/attests.go`; BuildKit, `frontend/attestations/parse.go`).

use super::{UsageError, boolean, csv};
use crate::cli::BuildArgs;

/// `type=provenance`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenanceRequest {
    /// How much is said.
    pub mode: ProvenanceMode,
    /// Who built it: an address that the reader knows.
    pub builder_id: String,
    /// Whoever asks claims that the build is reproducible.
    pub reproducible: bool,
    /// What has no digest is an error: `complete-materials=true`.
    pub complete: bool,
    /// Outputs that are no images leave it out.
    pub inline_only: bool,
    /// The name of the file in outputs that are no images.
    pub file_name: String,
}

/// How much provenance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenanceMode {
    /// What the image was made from.
    Min,
    /// Also what was given to the build, and what every step did.
    Max,
}

const ATTEST: &str = "--attest";

/// What the flags ask for; `None` when no provenance is wanted, which is the default.
pub(super) fn provenance(arguments: &BuildArgs) -> Result<Option<ProvenanceRequest>, UsageError> {
    let mut asked: Vec<(&'static str, String)> =
        arguments.attest.iter().map(|text| (ATTEST, text.clone())).collect();
    for (flag, kind, value) in
        [("--provenance", "provenance", &arguments.provenance), ("--sbom", "sbom", &arguments.sbom)]
    {
        // An empty one, such as of an unset variable, asks for nothing.
        let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
        // As buildx spells them out.
        let text = match boolean(value) {
            Some(on) => format!("type={kind},disabled={}", !on),
            None => format!("type={kind},{value}"),
        };
        asked.push((flag, text));
    }
    let (mut provenance, mut seen) = (None, Vec::new());
    for (flag, text) in asked {
        let mut pairs = csv::pairs(flag, &text)?;
        let kind = pairs.iter().position(|(key, _)| key == "type").map(|at| pairs.remove(at).1);
        let wrong = |reason: String| UsageError::value(flag, &text, reason);
        let kind = kind.ok_or_else(|| wrong("`type=` is missing".into()))?;
        if seen.contains(&kind) {
            return Err(wrong(format!("`type={kind}` is asked for twice")));
        }
        let disabled = pairs.iter().position(|(key, _)| key == "disabled");
        let disabled = disabled.map(|at| pairs.remove(at).1);
        let disabled = match disabled {
            None => false,
            Some(text) => boolean(&text)
                .ok_or_else(|| wrong("`disabled` is neither `true` nor `false`".into()))?,
        };
        match kind.as_str() {
            "provenance" | "sbom" if disabled => {}
            "provenance" => provenance = Some(read(&pairs, &wrong)?),
            "sbom" => {
                // A generator is an image that would have to be pulled and run over the result.
                let flag = if flag == ATTEST { "`--attest type=sbom`" } else { "`--sbom`" };
                return Err(UsageError::NoScanner(flag.to_owned()));
            }
            other => {
                return Err(wrong(format!("type `{other}` is neither `provenance` nor `sbom`")));
            }
        }
        seen.push(kind);
    }
    Ok(provenance)
}

fn read(
    pairs: &[(String, String)],
    wrong: &dyn Fn(String) -> UsageError,
) -> Result<ProvenanceRequest, UsageError> {
    // BuildKit's default, when provenance is asked for at all.
    let mut request = ProvenanceRequest {
        mode: ProvenanceMode::Max,
        builder_id: String::new(),
        reproducible: false,
        complete: false,
        inline_only: false,
        file_name: "provenance.json".to_owned(),
    };
    for (key, value) in pairs {
        let truth = || {
            boolean(value).ok_or_else(|| wrong(format!("`{key}` is neither `true` nor `false`")))
        };
        match key.as_str() {
            "mode" => {
                request.mode = match value.as_str() {
                    "min" => ProvenanceMode::Min,
                    "max" | "full" => ProvenanceMode::Max,
                    other => {
                        return Err(wrong(format!("mode `{other}` is neither `min` nor `max`")));
                    }
                }
            }
            "builder-id" => request.builder_id.clone_from(value),
            "reproducible" => request.reproducible = truth()?,
            "complete-materials" => request.complete = truth()?,
            "inline-only" => request.inline_only = truth()?,
            "filename" if value.is_empty() || value.contains('/') => {
                return Err(wrong("`filename` is no name of a file".into()));
            }
            "filename" => request.file_name.clone_from(value),
            "version" if value == "v1" => {}
            "version" => {
                return Err(wrong(format!("version `{value}` is not written, only `v1`")));
            }
            other => return Err(wrong(format!("provenance has no attribute `{other}`"))),
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn asked(typed: &str) -> Result<Option<ProvenanceRequest>, String> {
        let words = ["rbuild", "build", "."].into_iter().chain(typed.split_whitespace());
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Build(arguments) = &cli.command else { unreachable!("it says build") };
        provenance(arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_say_how_much() {
        let check = |typed: &str, expected: Option<ProvenanceMode>| {
            assert_eq!(asked(typed).unwrap().map(|asked| asked.mode), expected, "{typed}");
        };
        let (min, max) = (Some(ProvenanceMode::Min), Some(ProvenanceMode::Max));
        check("", None);
        check("--provenance=false", None);
        check("--provenance=0 --sbom=false", None);
        check("--provenance= --sbom=", None);
        check("--attest=type=sbom,disabled=true,generator=x", None);
        check("--attest type=sbom,disabled=1 --provenance=false", None);
        check("--provenance", max);
        check("--provenance=true", max);
        check("--provenance=mode=min", min);
        check("--attest type=provenance,mode=max,version=v1", max);
        check("--attest type=provenance,disabled=true", None);
        check("--attest type=sbom,disabled=true --attest type=provenance,mode=min", min);
        let asked = asked(
            "--attest type=provenance,builder-id=https://ci/1,reproducible=1,filename=p.json",
        );
        let asked = asked.unwrap().unwrap();
        assert_eq!((&*asked.builder_id, &*asked.file_name), ("https://ci/1", "p.json"));
        assert!(asked.reproducible && !asked.complete);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let check = |typed: &str, expected: &str| {
            let error = asked(typed).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("--sbom", "`--sbom` asks for a scanner");
        check("--sbom=true", "`--sbom` asks for a scanner");
        check("--attest type=sbom,disabled=false", "`--attest type=sbom` asks for a scanner");
        check("--sbom=generator=x", "`--sbom` asks for a scanner");
        check("--attest type=sbom", "`--attest type=sbom` asks for a scanner");
        check("--provenance=max", "field `max` is no `key=value` pair");
        check("--provenance=mode=most", "mode `most` is neither `min` nor `max`");
        check("--provenance=mod=max", "provenance has no attribute `mod`");
        check("--provenance=version=v0.2", "version `v0.2` is not written");
        check("--attest mode=max", "`type=` is missing");
        check("--attest type=vsa", "type `vsa` is neither");
        check("--provenance --attest type=provenance", "`type=provenance` is asked for twice");
    }
}
