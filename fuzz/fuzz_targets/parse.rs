//! Any bytes as a Dockerfile: parsed, checked, lowered and drawn.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rbuild_cache::oci::Platform;
use rbuild_frontend::source::Source;
use rbuild_frontend::{BuildOptions, Resolved, base_images, lower, parse};
use rbuild_solver::graph::Graph;

fuzz_target!(|bytes: &[u8]| {
    let (dockerfile, diagnostics) = parse(Source::from_bytes("Dockerfile", bytes));
    for wrong in &diagnostics.0 {
        assert!(wrong.span.is_none_or(|span| span.end <= dockerfile.source.text().len()));
    }
    diagnostics.render(&dockerfile.source);
    if diagnostics.has_errors() {
        return;
    }
    let options = BuildOptions::new(Platform::new("linux", "amd64", None));
    let resolved = Resolved::default();
    if let Ok(missing) = base_images(&dockerfile, &options, &resolved)
        && missing.is_empty()
        && let Err(wrong) = lower(&dockerfile, &options, &resolved, &mut Graph::new())
    {
        assert!(wrong.has_errors());
    }
});
