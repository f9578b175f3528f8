//! Steps whose programs are for another machine: what they need is named before the first step runs.
//!
//! What counts is the image that a step runs in, not what it is built for: programs of this machine
//! run in a stage for any platform. The kernel hands programs of others to whatever is registered
//! for them (kernel documentation, admin-guide/binfmt-misc.rst).

use rbuild_cache::oci::Platform;
use rbuild_frontend::source::Source;
use rbuild_solver::graph::{Graph, Op, VertexId};

use crate::error::{BuildError, ErrorKind, Excerpt, Problem};

const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// Refuses a graph in which `targets` need steps that this machine cannot run.
pub(crate) fn check(
    graph: &Graph,
    targets: &[VertexId],
    dockerfile: &Source,
) -> Result<(), BuildError> {
    let host = Platform::host();
    for id in graph.reachable(targets) {
        let vertex = graph.vertex(id);
        if !matches!(vertex.op, Op::Run(_)) {
            continue;
        }
        let Some(platform) = programs_of(graph, id) else { continue };
        if runs(&host, &platform) || has_handler(&platform) {
            continue;
        }
        let excerpt = vertex.span.as_ref().map(|span| Excerpt {
            name: std::sync::Arc::clone(&span.file),
            text: dockerfile.text().into(),
            span: span.start..span.end,
            label: Some(format!("runs programs for `{platform}`")),
        });
        let problem = Problem {
            message: format!(
                "`{}` cannot run: this machine is `{host}`, and has nothing that runs programs \
                 for `{platform}`",
                vertex.name
            ),
            excerpt,
            hints: vec![
                "install `qemu-user-static` (Debian), which registers itself for them".into(),
                "or run the step in a stage that is `FROM --platform=$BUILDPLATFORM`, and copy what \
                 it makes"
                    .into(),
            ],
            ..Problem::default()
        };
        return Err(BuildError::new(ErrorKind::Failed, problem));
    }
    Ok(())
}

/// For which platform the programs are that a step finds: that of the image below it.
fn programs_of(graph: &Graph, step: VertexId) -> Option<Platform> {
    let mut id = step;
    loop {
        if let Op::Image(image) = &graph.vertex(id).op {
            return Some(image.platform.clone());
        }
        id = *graph.inputs(id).first()?;
    }
}

/// Whether a processor runs the programs of another by itself.
fn runs(host: &Platform, platform: &Platform) -> bool {
    host.architecture == platform.architecture
        || matches!(
            (&*host.architecture, &*platform.architecture),
            ("amd64", "386") | ("arm64", "arm")
        )
}

/// Whether the kernel has been told what runs programs of `platform`, in any root file system.
fn has_handler(platform: &Platform) -> bool {
    let Ok(entries) = fs_err::read_dir(HANDLERS) else { return false };
    let handlers = entries.filter_map(|entry| fs_err::read_to_string(entry.ok()?.path()).ok());
    handlers.into_iter().any(|text| handles(&text, &platform.architecture))
}

fn handles(handler: &str, architecture: &str) -> bool {
    let Some(machine) = machine(architecture) else { return false };
    let is_enabled = handler.lines().next() == Some("enabled");
    let field = |name: &str| handler.lines().find_map(|line| line.strip_prefix(name));
    // `F`: the program was opened when it was registered; steps have none of this machine's.
    let is_fixed = field("flags:").is_some_and(|flags| flags.contains('F'));
    let magic = field("magic ").and_then(|magic| hex::decode(magic.trim()).ok());
    let found = magic.as_deref().and_then(|magic| magic.get(18..20)?.try_into().ok());
    let is_it = found.is_some_and(|bytes: [u8; 2]| {
        u16::from_le_bytes(bytes) == machine || u16::from_be_bytes(bytes) == machine
    });
    is_enabled && is_fixed && is_it
}

/// What ELF calls a processor (elf.h, `EM_…`).
fn machine(architecture: &str) -> Option<u16> {
    Some(match architecture {
        "386" => 3,
        "mips" | "mipsle" | "mips64" | "mips64le" => 8,
        "ppc64" | "ppc64le" => 21,
        "s390x" => 22,
        "arm" => 40,
        "amd64" => 62,
        "arm64" => 183,
        "riscv64" => 243,
        "loong64" => 258,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_say_for_which_programs_they_are() {
        let arm64 = "enabled\ninterpreter /usr/libexec/qemu-aarch64\nflags: F\noffset 0\n\
                     magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00\n";
        assert!(handles(arm64, "arm64"));
        assert!(!handles(arm64, "riscv64"));
        assert!(!handles(&arm64.replace("flags: F", "flags: OC"), "arm64"), "not in a step");
        assert!(!handles(&arm64.replace("enabled", "disabled"), "arm64"));
        assert!(!handles("enabled\n", "arm64"));
    }

    #[test]
    fn some_machines_run_programs_of_others() {
        let runs = |host: &str, platform: &str| {
            super::runs(&host.parse().unwrap(), &platform.parse().unwrap())
        };
        assert!(runs("linux/amd64", "linux/386") && runs("linux/arm64", "linux/arm/v7"));
        assert!(!runs("linux/amd64", "linux/arm64") && !runs("linux/386", "linux/amd64"));
    }
}
