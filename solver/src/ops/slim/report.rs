//! What was kept, what was not, and why: a layer beside those of the result, shown as a table or as
//! JSON, asked by `rbuild slim why`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read as _};
use std::path::Path;

use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::index::IndexError;
use rbuild_cache::snapshot::{Snapshot, SnapshotError, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{View, ViewError};
use serde::{Deserialize, Serialize};

use super::closure::Kept;
use super::files::{FileId, Files};
use super::layers::{Made, MadeKind, Part, part};
use super::package::Packages;
use super::partition::{Origin, Partition};
use super::reason::Why;
use super::shebang;
use crate::graph::{Op, SlimMode, SlimOp};

/// The version of the report's form.
const VERSION: u32 = 2;
/// What a report is called in its layer.
const FILE: &str = "report.json";
/// The most bytes of a report that are read; that of 100,000 files has a tenth of it.
const LONGEST: u64 = 256 << 20;
/// How deep the folders are that the report counts for.
const FOLDER_DEPTH: usize = 2;

/// What came of slimming an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlimReport {
    /// The version of this form.
    pub version: u32,
    /// How it was found out what is needed.
    pub mode: SlimMode,
    /// For which platform the image is.
    pub platform: String,
    /// What a container of it runs.
    pub command: Vec<String>,
    /// The digest of the tree that was slimmed.
    pub from: TreeDigest,
    /// What was exported.
    pub outcome: Outcome,
    /// The tree that was slimmed.
    pub full: Counts,
    /// What came of it.
    pub slim: Counts,
    /// The two layers.
    pub layers: Vec<LayerCounts>,
    /// Its packages: those of which something is kept, then the others; by name.
    pub packages: Vec<PackageCounts>,
    /// Its folders, two levels deep.
    pub folders: Vec<FolderCounts>,
    /// Files with setuid or setgid that are kept.
    pub setuid_kept: Vec<String>,
    /// And those that are not.
    pub setuid_removed: Vec<String>,
    /// Shells that are kept.
    pub shells_kept: Vec<String>,
    /// And those that are not.
    pub shells_removed: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Libraries that programs ask for and that are not in the full image either.
    pub unresolved: Vec<Unresolved>,
    /// What the probe showed, if one was run.
    pub verification: Option<Verification>,
    /// Every path of the result, by path.
    pub files: Vec<KeptFile>,
    /// What is not kept, by path; a folder of which nothing is kept stands for all that is in it.
    pub dropped: Vec<DroppedFile>,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The slim image.
    Slim,
    /// The full image, since the slim one did not pass.
    Full {
        /// Why.
        reason: String,
        /// It may be for want of time: the next build tries again.
        #[serde(default)]
        late: bool,
    },
}

/// How large a tree is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The bytes of its files, each counted once however many hard links it has.
    pub bytes: u64,
    /// Its files.
    pub files: usize,
    /// Files in the folders of programs that can be run.
    pub programs: usize,
    /// Shells among them.
    pub shells: usize,
    /// Files with setuid or setgid.
    pub setuid: usize,
    /// Packages of which there are files.
    pub packages: usize,
}

/// How large a layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCounts {
    /// Which.
    pub part: Part,
    /// The bytes of its files.
    pub bytes: u64,
    /// Its files.
    pub files: usize,
}

/// What is kept of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageCounts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes that are kept.
    pub kept: u64,
    /// Bytes that are not.
    pub dropped: u64,
    /// Files that are kept.
    pub files: usize,
}

/// What is kept of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderCounts {
    /// Its path.
    pub path: String,
    /// Bytes that are kept.
    pub kept: u64,
    /// Bytes that are not.
    pub dropped: u64,
}

/// A library that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unresolved {
    /// Who asks for it.
    pub path: String,
    /// Its name.
    pub library: String,
}

/// What a probe showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the slim image answered as the full one.
    pub passed: bool,
    /// What was asked.
    pub probe: String,
    /// How often paths were put back.
    pub rounds: usize,
    /// Paths of the full image that the slim run looked for, and that were put back.
    pub put_back: Vec<String>,
    /// What each step of the probe answered.
    pub steps: Vec<VerifiedStep>,
}

/// A step of the probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedStep {
    /// What was asked.
    pub name: String,
    /// What the full image answered.
    pub full: String,
    /// What the slim image answered.
    pub slim: String,
    /// Whether that is the same, but for what two runs of the full image differ in.
    pub same: bool,
}

/// A path of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// The path.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// In which layer it is.
    pub part: Part,
    /// The package it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Why it is kept; none for what slimming itself wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// For whom: the place in this list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<usize>,
}

/// What is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedFile {
    /// The path; one that ends in `/` stands for all that is in it.
    pub path: String,
    /// Its bytes, or those of all that is in it.
    pub bytes: u64,
    /// The package it is of, if it is one file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

/// What [`SlimReport::why`] says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It is kept: itself, then for whom, up to what the image asks for.
    Kept(Vec<&'a KeptFile>),
    /// It is not.
    Dropped(&'a DroppedFile),
    /// The full image had no such path.
    Unknown,
}

/// Everything that a report tells of.
pub(super) struct Subject<'a> {
    pub(super) op: &'a SlimOp,
    pub(super) from: TreeDigest,
    pub(super) files: &'a Files,
    pub(super) packages: &'a Packages,
    pub(super) partition: &'a Partition,
    pub(super) kept: &'a Kept,
    pub(super) made: &'a [Made],
}

impl SlimReport {
    /// Counts what is kept and what is not.
    pub(super) fn of(subject: &Subject<'_>) -> Self {
        let Subject { op, from, files, packages, partition, kept, made } = subject;
        let is_kept = |id: FileId| kept.reasons[id.index()].is_some();
        let list = kept_files(subject);
        let mut report = Self {
            version: VERSION,
            mode: op.mode,
            platform: op.platform.to_string(),
            command: op.command.clone(),
            from: *from,
            outcome: Outcome::Slim,
            full: counts(files, packages, |_| true),
            slim: counts(files, packages, is_kept),
            layers: Vec::new(),
            packages: package_counts(files, packages, is_kept),
            folders: folder_counts(files, is_kept),
            setuid_kept: Vec::new(),
            setuid_removed: Vec::new(),
            shells_kept: Vec::new(),
            shells_removed: Vec::new(),
            notes: kept.notes.clone(),
            unresolved: kept
                .unresolved
                .iter()
                .map(|(path, library)| Unresolved { path: path.clone(), library: library.clone() })
                .collect(),
            verification: None,
            files: list,
            dropped: dropped(files, packages, is_kept),
        };
        for made in *made {
            if let MadeKind::File(bytes) = &made.kind {
                let replaced = files.lookup(&made.path).file.filter(|id| is_kept(*id));
                let before = replaced.map_or(0, |id| files.size(id));
                report.slim.bytes = report.slim.bytes - before + bytes.len() as u64;
                report.slim.files += usize::from(replaced.is_none());
            }
        }
        for id in files.ids() {
            let path = || files.text(id);
            if is_setuid(files, id) {
                let list =
                    if is_kept(id) { &mut report.setuid_kept } else { &mut report.setuid_removed };
                list.push(path());
            }
            if is_shell(files, id) {
                let list =
                    if is_kept(id) { &mut report.shells_kept } else { &mut report.shells_removed };
                list.push(path());
            }
        }
        for list in [
            &mut report.setuid_kept,
            &mut report.setuid_removed,
            &mut report.shells_kept,
            &mut report.shells_removed,
        ] {
            list.sort();
        }
        for part in [Part::Runtime, Part::Application] {
            let of_part = report.files.iter().filter(|file| file.part == part);
            let (bytes, files) =
                of_part.fold((0, 0), |(bytes, files), file| (bytes + file.bytes, files + 1));
            report.layers.push(LayerCounts { part, bytes, files });
        }
        if partition.has_no_distribution() && !files.get(FileId::ROOT).children.is_empty() {
            report.notes.extend(unknown_distribution(files));
        }
        report
    }

    /// Why `path` is kept, or that it is not.
    pub fn why(&self, path: &str) -> Answer<'_> {
        let path = format!("/{}", path.trim_matches('/'));
        if let Some(position) = self.files.iter().position(|file| file.path == path) {
            let mut chain = vec![&self.files[position]];
            let mut next = self.files[position].because;
            // A damaged report could go in a circle.
            while let Some(file) = next.and_then(|position| self.files.get(position)) {
                if chain.len() > self.files.len() {
                    break;
                }
                chain.push(file);
                next = file.because;
            }
            return Answer::Kept(chain);
        }
        let is_meant = |file: &&DroppedFile| {
            file.path == path
                || (file.path.ends_with('/') && format!("{path}/").starts_with(&file.path))
        };
        self.dropped.iter().find(is_meant).map_or(Answer::Unknown, Answer::Dropped)
    }

    /// Keeps the report as a layer.
    pub(super) fn commit(&self, state: &StateFolder) -> Result<Snapshot, ReportError> {
        let draft = state.snapshots().draft()?;
        let bytes = serde_json::to_vec(self).expect("reports have string keys only");
        fs_err::write(draft.folder().join(FILE), bytes)?;
        Ok(state.snapshots().commit(&SnapshotId::random(), draft)?)
    }

    /// The report in the layer `ids`; none in one of another version.
    pub(super) fn read(
        state: &StateFolder,
        ids: &[SnapshotId],
    ) -> Result<Option<Self>, ReportError> {
        let view = View::layers(state.snapshots().lower(ids)?);
        let Some(entry) = view.child(&view.root()?, FILE.as_ref())? else { return Ok(None) };
        if !entry.metadata().is_file() || entry.metadata().size > LONGEST {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        view.open(&entry)?.take(LONGEST).read_to_end(&mut bytes)?;
        let report = serde_json::from_slice::<Self>(&bytes).ok();
        Ok(report.filter(|report| report.version == VERSION))
    }

    /// The report called `name`, if it is there.
    pub fn load(state: &StateFolder, name: &Digest) -> Result<Option<Self>, ReportError> {
        let record = state.index().lookup(&key(&CacheKey(*name)))?;
        let Some(record) = record else { return Ok(None) };
        if state.snapshots().get(&record.snapshot)?.is_none() {
            return Ok(None);
        }
        Self::read(state, &[record.snapshot])
    }
}

/// Says why a report could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its layer could not be kept or found.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Its layer could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// It could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The key of the report on the result under `result`.
pub(super) fn key(result: &CacheKey) -> CacheKey {
    crate::key::part(result, "report")
}

/// What the report of `op` over a tree is called.
pub(super) fn name(op: &Op, from: TreeDigest) -> Digest {
    crate::key::definition(op, &[from]).0
}

fn unknown_distribution(files: &Files) -> Option<String> {
    let is_there = |path: &str| files.resolve(Path::new(path)).file.is_some();
    let is_system = is_there("/etc/os-release") || is_there("/bin/sh") || is_there("/usr/bin/env");
    is_system.then(|| {
        "no database of packages that rbuild knows (dpkg, apk) is in the image: all of it counts \
         as the application's own, and is kept"
            .to_owned()
    })
}

fn kept_files(subject: &Subject<'_>) -> Vec<KeptFile> {
    let Subject { files, packages, partition, kept, made, .. } = subject;
    let mut list: Vec<(KeptFile, Option<FileId>)> = Vec::new();
    let mut of_made: HashSet<&Path> = HashSet::new();
    for made in *made {
        of_made.insert(&made.path);
        let bytes = match &made.kind {
            MadeKind::File(bytes) => bytes.len() as u64,
            MadeKind::Folder => 0,
        };
        let path = format!("/{}", made.path.display());
        let file =
            KeptFile { path, bytes, part: Part::Runtime, package: None, why: None, because: None };
        list.push((file, None));
    }
    let mut counted = HashSet::new();
    for id in files.ids() {
        let Some(reason) = &kept.reasons[id.index()] else { continue };
        let entry = &files.get(id).entry;
        if of_made.contains(entry.path()) {
            continue;
        }
        let metadata = entry.metadata();
        let is_new = metadata.links == 1 || counted.insert((metadata.file_system, metadata.inode));
        let file = KeptFile {
            path: files.text(id),
            bytes: if is_new { files.size(id) } else { 0 },
            part: part(partition, id),
            package: packages.owner(id).map(|package| package.name.clone()),
            why: Some(reason.why.clone()),
            because: None,
        };
        list.push((file, Some(id)));
    }
    list.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    let places: HashMap<FileId, usize> =
        list.iter().enumerate().filter_map(|(place, (_, id))| id.map(|id| (id, place))).collect();
    let because = |id: FileId| {
        let from = kept.reasons[id.index()].as_ref()?.from?;
        places.get(&from).copied()
    };
    list.into_iter().map(|(file, id)| KeptFile { because: id.and_then(because), ..file }).collect()
}

fn counts(files: &Files, packages: &Packages, is_kept: impl Fn(FileId) -> bool) -> Counts {
    let mut counts = Counts::default();
    let mut seen = HashSet::new();
    let mut of_packages = HashSet::new();
    for id in files.ids().filter(|id| is_kept(*id)) {
        if let Some(package) = packages.owners.get(&id) {
            of_packages.insert(*package);
        }
        if !files.is_file(id) {
            continue;
        }
        counts.files += 1;
        let metadata = files.get(id).entry.metadata();
        if metadata.links == 1 || seen.insert((metadata.file_system, metadata.inode)) {
            counts.bytes += metadata.size;
        }
        counts.programs += usize::from(is_program(files, id));
        counts.shells += usize::from(is_shell(files, id));
        counts.setuid += usize::from(is_setuid(files, id));
    }
    counts.packages = of_packages.len();
    counts
}

fn is_program(files: &Files, id: FileId) -> bool {
    let folder = files.text(files.get(id).parent);
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];
    files.is_executable(id) && folders.contains(&&*folder)
}

fn is_shell(files: &Files, id: FileId) -> bool {
    let name = files.name(id);
    is_program(files, id) && (shebang::is_shell(name) || name == "busybox")
}

fn is_setuid(files: &Files, id: FileId) -> bool {
    files.is_file(id) && files.get(id).entry.metadata().mode & 0o6000 != 0
}

fn package_counts(
    files: &Files,
    packages: &Packages,
    is_kept: impl Fn(FileId) -> bool,
) -> Vec<PackageCounts> {
    let count = |package: &super::package::Package| {
        let mut counts = PackageCounts {
            name: package.name.clone(),
            version: package.version.clone(),
            kept: 0,
            dropped: 0,
            files: 0,
        };
        for id in &package.files {
            if is_kept(*id) {
                counts.files += 1;
                counts.kept += files.size(*id);
            } else {
                counts.dropped += files.size(*id);
            }
        }
        counts
    };
    let mut counts: Vec<PackageCounts> = packages.list.iter().map(count).collect();
    counts.sort_by(|a, b| (a.files == 0, &a.name).cmp(&(b.files == 0, &b.name)));
    counts
}

fn folder_counts(files: &Files, is_kept: impl Fn(FileId) -> bool) -> Vec<FolderCounts> {
    let mut folders: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for id in files.ids().filter(|id| files.is_file(*id)) {
        let parent = files.path(files.get(id).parent);
        let folder: std::path::PathBuf = parent.components().take(FOLDER_DEPTH + 1).collect();
        let counts = folders.entry(folder.to_string_lossy().into_owned()).or_default();
        let place = if is_kept(id) { &mut counts.0 } else { &mut counts.1 };
        *place += files.size(id);
    }
    let counts = folders.into_iter();
    counts.map(|(path, (kept, dropped))| FolderCounts { path, kept, dropped }).collect()
}

/// What is not kept; folders of which nothing is kept stand for what is in them.
fn dropped(
    files: &Files,
    packages: &Packages,
    is_kept: impl Fn(FileId) -> bool,
) -> Vec<DroppedFile> {
    let mut keeps = vec![false; files.len()];
    let mut bytes = vec![0; files.len()];
    // Whatever is in a folder comes after it.
    let ids: Vec<FileId> = files.ids().collect();
    for id in ids.iter().rev() {
        let parent = files.get(*id).parent.index();
        keeps[id.index()] |= is_kept(*id);
        bytes[id.index()] += files.size(*id);
        if *id != FileId::ROOT {
            keeps[parent] |= keeps[id.index()];
            bytes[parent] += bytes[id.index()];
        }
    }
    let mut dropped: Vec<DroppedFile> = Vec::new();
    for id in ids {
        let is_first = id == FileId::ROOT || keeps[files.get(id).parent.index()];
        if keeps[id.index()] || !is_first {
            continue;
        }
        let end = if files.is_directory(id) { "/" } else { "" };
        dropped.push(DroppedFile {
            path: format!("{}{end}", files.text(id)),
            bytes: bytes[id.index()],
            package: packages.owner(id).map(|package| package.name.clone()),
        });
    }
    dropped.sort_by(|a, b| a.path.cmp(&b.path));
    dropped
}

impl Partition {
    /// Whether no file is known to be the distribution's.
    fn has_no_distribution(&self) -> bool {
        self.all().all(|origin| !matches!(origin, Origin::Distribution(_)))
    }
}
