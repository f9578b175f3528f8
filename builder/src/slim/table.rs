//! The report of a slim image for people.

use std::fmt::Write as _;

use rbuild_solver::ops::slim::report::{Outcome, SlimReport};

use crate::command::table::Table;
use crate::progress::{self, bytes};

/// How many rows of packages, folders and dropped paths are shown: the largest ones.
const ROWS: usize = 25;

/// The report as text.
pub fn table(report: &SlimReport) -> String {
    let mut text = summary(report);
    let _ = write!(text, "\nPACKAGES\n{}", packages(report));
    let _ = write!(text, "\nFOLDERS\n{}", folders(report));
    for (title, paths) in [
        ("SETUID FILES REMOVED", &report.setuid_removed),
        ("SETUID FILES KEPT", &report.setuid_kept),
        ("SHELLS REMOVED", &report.shells_removed),
        ("SHELLS KEPT", &report.shells_kept),
    ] {
        if !paths.is_empty() {
            let _ = write!(text, "\n{title}\n{}\n", paths.join("\n"));
        }
    }
    if let Some(verification) = &report.verification {
        let _ = write!(text, "\nPROBE {}\n", verification.probe);
        let mut table = Table::new(["STEP", "FULL", "SLIM", "SAME"]);
        for step in &verification.steps {
            let same = if step.same { "yes" } else { "NO" };
            table.row([step.name.clone(), step.full.clone(), step.slim.clone(), same.into()]);
        }
        text.push_str(&table.draw());
        if !verification.put_back.is_empty() {
            let _ = write!(text, "\nPUT BACK\n{}\n", verification.put_back.join("\n"));
        }
    }
    if !report.notes.is_empty() {
        let _ = write!(text, "\nNOTES\n{}\n", report.notes.join("\n"));
    }
    text
}

/// A few lines: what there was, what there is, and the ratio.
pub fn summary(report: &SlimReport) -> String {
    let mut table = Table::new(["", "FULL", "SLIM"]);
    let (full, slim) = (&report.full, &report.slim);
    table.row(["content".into(), bytes(full.bytes), bytes(slim.bytes)]);
    for (name, before, after) in [
        ("files", full.files, slim.files),
        ("packages", full.packages, slim.packages),
        ("programs", full.programs, slim.programs),
        ("shells", full.shells, slim.shells),
        ("setuid", full.setuid, slim.setuid),
    ] {
        table.row([name.into(), before.to_string(), after.to_string()]);
    }
    let verified = match (&report.outcome, &report.verification) {
        (Outcome::Full { .. }, _) => "the full image was exported",
        (Outcome::Slim, Some(verification)) if verification.passed => "its answers were compared",
        (Outcome::Slim, _) => "nothing was run to compare them",
    };
    let ratio = ratio(full.bytes, slim.bytes);
    format!("slim {}: {ratio} smaller, {verified}\n{}", report.platform, table.draw())
}

/// `3.8x`
fn ratio(full: u64, slim: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "two digits of it are shown")]
    let ratio = full as f64 / slim.max(1) as f64;
    format!("{ratio:.1}x")
}

fn packages(report: &SlimReport) -> String {
    let mut table = Table::new(["NAME", "VERSION", "KEPT", "DROPPED", "FILES"]);
    let mut kept: Vec<_> = report.packages.iter().filter(|package| package.files > 0).collect();
    kept.sort_by(|a, b| (b.kept, &a.name).cmp(&(a.kept, &b.name)));
    for package in &kept {
        table.row([
            package.name.clone(),
            package.version.clone(),
            bytes(package.kept),
            bytes(package.dropped),
            package.files.to_string(),
        ]);
    }
    let gone = report.packages.iter().filter(|package| package.files == 0);
    let (count, size) =
        gone.fold((0, 0), |(count, size), package| (count + 1, size + package.dropped));
    let packages = progress::count(count, "package", "packages");
    format!("{}and {packages} of which nothing is kept, {}\n", table.draw(), bytes(size))
}

fn folders(report: &SlimReport) -> String {
    let mut table = Table::new(["PATH", "KEPT", "DROPPED"]);
    let mut folders: Vec<_> = report.folders.iter().collect();
    folders.sort_by(|a, b| (b.kept + b.dropped, &a.path).cmp(&(a.kept + a.dropped, &b.path)));
    for folder in folders.iter().take(ROWS) {
        table.row([folder.path.clone(), bytes(folder.kept), bytes(folder.dropped)]);
    }
    table.draw()
}
