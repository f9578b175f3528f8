//! What steps came to, under which keys: `index.db`, a SQLite database that can be dropped.
//!
//! It holds records only, never bytes that cost work: a record that points at a snapshot which is
//! gone is no record. Readers never wait for writers, writers wait for each other (`BEGIN
//! IMMEDIATE`, a busy timeout). A database that turns out to be damaged is started afresh
//! (`index/database.rs`). SQLite has no checksums: what a key or a memo leads to carries one here,
//! and what does not agree with it counts as absent.

mod connections;
mod database;

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use self::connections::Connections;
pub use self::database::Journal;
use crate::digest::{CacheKey, Digest, Hasher, TreeDigest};
use crate::snapshot::SnapshotId;

/// The version of the tables; a database of another version is not read.
const VERSION: i64 = 3;

const TABLES: &str = "
    CREATE TABLE results (
        id INTEGER PRIMARY KEY,
        snapshot TEXT NOT NULL UNIQUE,
        content BLOB NOT NULL,
        description TEXT NOT NULL,
        evidence TEXT NOT NULL,
        created INTEGER NOT NULL
    );
    CREATE TABLE keys (
        key BLOB PRIMARY KEY,
        result INTEGER NOT NULL REFERENCES results (id) ON DELETE CASCADE,
        proof BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX keys_by_result ON keys (result);
    CREATE TABLE marks (
        mark BLOB NOT NULL,
        result INTEGER NOT NULL REFERENCES results (id) ON DELETE CASCADE,
        PRIMARY KEY (mark, result)
    ) WITHOUT ROWID;
    CREATE INDEX marks_by_result ON marks (result);
    CREATE TABLE pruned (
        key BLOB PRIMARY KEY,
        at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE memo (
        kind TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        proof BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
";

/// Of so many results that were pruned the keys are kept, to tell those from what never was.
const PRUNED_MAX: u32 = 50_000;

/// Somebody who knows what steps came to: the local index, and later the caches of others.
///
/// What a source says costs nothing to doubt: a record whose snapshot is not there counts as none,
/// and a snapshot is compared with its digest before it is used.
pub trait CacheSource: std::fmt::Debug + Send + Sync {
    /// What the step with this key came to.
    fn find(&self, key: &CacheKey) -> Result<Option<CacheRecord>, IndexError>;
}

impl CacheSource for Index {
    fn find(&self, key: &CacheKey) -> Result<Option<CacheRecord>, IndexError> {
        self.lookup(key)
    }
}

/// The records of one state folder.
#[derive(Debug)]
pub struct Index {
    connections: Connections,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheRecord {
    /// The tree it made.
    pub snapshot: SnapshotId,
    /// What that tree contains, without times.
    pub content: TreeDigest,
    /// The step as people know it: `RUN go build`.
    pub description: String,
    /// What the step depended on, in whatever form its op gives; read by who explains misses.
    pub evidence: serde_json::Value,
    /// When it ran, in seconds since 1970.
    pub created: i64,
}

/// A result that is to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    /// What it is known under.
    pub keys: &'a [CacheKey],
    /// By what it can be found again ([`Index::marked`]).
    pub marks: &'a [Digest],
    /// The result.
    pub record: &'a CacheRecord,
}

/// Key and value of what is remembered.
pub type Memo = (Vec<u8>, Vec<u8>);

/// Says why the index could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite failed.
    #[error("the cache index `{path}` cannot be used")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Index {
    /// Opens the database at `path`, and makes it when it is missing.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        Ok(Self { connections: Connections::open(path)? })
    }

    /// How the database is kept from being read half-written.
    pub fn journal(&self) -> &Journal {
        self.connections.journal()
    }

    /// What the step with this key came to. Whether the snapshot is still there, the caller asks
    /// the snapshotter.
    pub fn lookup(&self, key: &CacheKey) -> Result<Option<CacheRecord>, IndexError> {
        self.connections
            .ask(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT snapshot, content, description, evidence, created, proof
                 FROM keys JOIN results ON results.id = keys.result WHERE keys.key = ?1",
                )?;
                let found = statement
                    .query_row([bytes(key)], |row| Ok((record(row)?, row.get::<_, Vec<u8>>(5)?)))
                    .optional()?;
                Ok(found.filter(|(record, proof)| *proof == proof_of(key, &record.snapshot)))
            })
            .map(|found| found.map(|(record, _)| record))
    }

    /// Records a result under all of `keys`; what was known under one of them is forgotten.
    ///
    /// A snapshot has one record: one that is there already stays as it is, so that a result which
    /// is found again under another key is as old as it was. Nothing is written when nothing is new.
    pub fn insert(&self, keys: &[CacheKey], record: &CacheRecord) -> Result<(), IndexError> {
        self.insert_all(&[NewRecord { keys, marks: &[], record }])
    }

    /// The same for several results, which are marked as well: all of them, or none.
    pub fn insert_all(&self, new: &[NewRecord<'_>]) -> Result<(), IndexError> {
        let mut unknown = Vec::with_capacity(new.len());
        for new in new {
            let NewRecord { keys, record, .. } = new;
            let known =
                self.connections.ask(|connection| are_known(connection, keys, &record.snapshot))?;
            unknown.extend((!known).then_some(new));
        }
        if unknown.is_empty() {
            return Ok(());
        }
        self.connections
            .change(|transaction| unknown.iter().try_for_each(|new| insert(transaction, new)))
    }

    /// The latest results with this mark, at most `most` of them, the last one first.
    pub fn marked(&self, mark: &Digest, most: u32) -> Result<Vec<CacheRecord>, IndexError> {
        self.connections.ask(|connection| {
            connection
                .prepare_cached(
                    "SELECT snapshot, content, description, evidence, created
                     FROM marks JOIN results ON results.id = marks.result
                     WHERE marks.mark = ?1 ORDER BY marks.result DESC LIMIT ?2",
                )?
                .query_map(params![mark.as_bytes(), most], record)?
                .collect()
        })
    }

    /// Whether a result was known under this key and was pruned.
    pub fn was_pruned(&self, key: &CacheKey) -> Result<bool, IndexError> {
        self.connections.ask(|connection| {
            connection.prepare_cached("SELECT 1 FROM pruned WHERE key = ?1")?.exists([bytes(key)])
        })
    }

    /// Whether there is no record at all.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        self.connections.ask(|connection| {
            connection.prepare_cached("SELECT 1 FROM results")?.exists([]).map(|any| !any)
        })
    }

    /// The record of the step that made `snapshot`.
    pub fn made(&self, snapshot: &SnapshotId) -> Result<Option<CacheRecord>, IndexError> {
        self.connections.ask(|connection| {
            connection
                .prepare_cached(
                    "SELECT snapshot, content, description, evidence, created
                     FROM results WHERE snapshot = ?1",
                )?
                .query_row([snapshot.as_str()], record)
                .optional()
        })
    }

    /// Keys under which the result in `snapshot` is known, at most `limit`.
    pub fn keys(&self, snapshot: &SnapshotId, limit: u32) -> Result<Vec<CacheKey>, IndexError> {
        self.connections.ask(|connection| {
            connection
                .prepare_cached(
                    "SELECT key FROM keys JOIN results ON results.id = keys.result
                     WHERE results.snapshot = ?1 ORDER BY key LIMIT ?2",
                )?
                .query_map(params![snapshot.as_str(), limit], |row| {
                    Ok(CacheKey(Digest::from_bytes(row.get(0)?)))
                })?
                .collect()
        })
    }

    /// All results, in the order in which they were made.
    pub fn records(&self) -> Result<Vec<CacheRecord>, IndexError> {
        self.connections.ask(all_records)
    }

    /// The trees of all results, in the order in which they were made.
    pub fn snapshots(&self) -> Result<Vec<SnapshotId>, IndexError> {
        self.connections.ask(|connection| {
            connection
                .prepare_cached("SELECT snapshot FROM results ORDER BY id")?
                .query_map([], snapshot)?
                .collect()
        })
    }

    /// Forgets all results whose trees are `snapshots`, which are pruned at `now` (seconds since
    /// 1970): who asks for them later can be told so.
    pub fn prune(&self, snapshots: &[SnapshotId], now: i64) -> Result<(), IndexError> {
        if snapshots.is_empty() {
            return Ok(());
        }
        self.connections.change(|transaction| {
            let mut note = transaction.prepare_cached(
                "INSERT OR REPLACE INTO pruned (key, at)
                 SELECT key, ?2 FROM keys JOIN results ON results.id = keys.result
                 WHERE results.snapshot = ?1",
            )?;
            for snapshot in snapshots {
                note.execute(params![snapshot.as_str(), now])?;
                delete_result(transaction, snapshot)?;
            }
            transaction
                .prepare_cached(
                    "DELETE FROM pruned WHERE key NOT IN
                     (SELECT key FROM pruned ORDER BY at DESC LIMIT ?1)",
                )?
                .execute([PRUNED_MAX])
                .map(drop)
        })
    }

    /// What is wrong with the database, if anything is: the first lines of SQLite's own check, or what
    /// is wrong with a record.
    pub fn check(&self) -> Result<Vec<String>, IndexError> {
        self.connections.check(|connection| {
            let mut check = connection.prepare("PRAGMA integrity_check(10)")?;
            let lines: Vec<String> =
                check.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if lines == ["ok"] { all_records(connection).map(|_| Vec::new()) } else { Ok(lines) }
        })
    }

    /// Sets the database aside and begins with an empty one.
    pub fn start_afresh(&self) -> Result<(), IndexError> {
        self.connections.start_afresh()
    }

    /// What was remembered under this key; kinds do not see each other.
    pub fn recall(&self, kind: &str, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.connections
            .ask(|connection| {
                connection
                    .prepare_cached("SELECT value, proof FROM memo WHERE kind = ?1 AND key = ?2")?
                    .query_row(params![kind, key], memo(0))
                    .optional()
            })
            .map(|found| found.filter(|memo| memo.is_whole(kind, key)).map(|memo| memo.value))
    }

    /// Remembers `value`; what was remembered before under this key is replaced.
    pub fn remember(&self, kind: &str, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        self.connections.change(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO memo (kind, key, value, proof) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![kind, key, value, proof(&[kind.as_bytes(), key, value])])
                .map(drop)
        })
    }

    /// All that is remembered of a kind: keys and values, by key.
    pub fn memos(&self, kind: &str) -> Result<Vec<Memo>, IndexError> {
        let all: Vec<(Vec<u8>, StoredMemo)> = self.connections.ask(|connection| {
            connection
                .prepare_cached("SELECT key, value, proof FROM memo WHERE kind = ?1 ORDER BY key")?
                .query_map([kind], |row| Ok((row.get(0)?, memo(1)(row)?)))?
                .collect()
        })?;
        let whole = all.into_iter().filter(|(key, memo)| memo.is_whole(kind, key));
        Ok(whole.map(|(key, memo)| (key, memo.value)).collect())
    }

    /// Forgets what was remembered under these keys.
    pub fn forget_memos<K: AsRef<[u8]>>(&self, kind: &str, keys: &[K]) -> Result<(), IndexError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.connections.change(|transaction| {
            let mut forget =
                transaction.prepare_cached("DELETE FROM memo WHERE kind = ?1 AND key = ?2")?;
            keys.iter().try_for_each(|key| forget.execute(params![kind, key.as_ref()]).map(drop))
        })
    }
}

fn insert(transaction: &Transaction<'_>, new: &NewRecord<'_>) -> rusqlite::Result<()> {
    let NewRecord { keys, marks, record } = *new;
    let id = match id_of(transaction, &record.snapshot)? {
        Some(id) => id,
        None => transaction
            .prepare_cached(
                "INSERT INTO results (snapshot, content, description, evidence, created)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert(params![
                record.snapshot.as_str(),
                record.content.0.as_bytes(),
                record.description,
                record.evidence.to_string(),
                record.created,
            ])?,
    };
    add_marks(transaction, id, marks)?;
    add_keys(transaction, id, &record.snapshot, keys)
}

fn all_records(connection: &Connection) -> rusqlite::Result<Vec<CacheRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT snapshot, content, description, evidence, created FROM results ORDER BY id",
    )?;
    statement.query_map([], record)?.collect()
}

fn id_of(connection: &Connection, snapshot: &SnapshotId) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM results WHERE snapshot = ?1")?
        .query_row([snapshot.as_str()], |row| row.get(0))
        .optional()
}

fn are_known(
    connection: &Connection,
    keys: &[CacheKey],
    snapshot: &SnapshotId,
) -> rusqlite::Result<bool> {
    let mut known = connection.prepare_cached(
        "SELECT 1 FROM keys JOIN results ON results.id = keys.result
         WHERE keys.key = ?1 AND results.snapshot = ?2",
    )?;
    for key in keys {
        if !known.exists(params![bytes(key), snapshot.as_str()])? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn add_keys(
    transaction: &Transaction<'_>,
    id: i64,
    snapshot: &SnapshotId,
    keys: &[CacheKey],
) -> rusqlite::Result<()> {
    let mut forget = transaction.prepare_cached(
        "DELETE FROM results WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM keys WHERE result = ?1)",
    )?;
    let mut known =
        transaction.prepare_cached("SELECT result FROM keys WHERE key = ?1 AND result <> ?2")?;
    let mut add = transaction
        .prepare_cached("INSERT OR REPLACE INTO keys (key, result, proof) VALUES (?1, ?2, ?3)")?;
    let mut unprune = transaction.prepare_cached("DELETE FROM pruned WHERE key = ?1")?;
    for key in keys {
        let before: Option<i64> =
            known.query_row(params![bytes(key), id], |row| row.get(0)).optional()?;
        add.execute(params![bytes(key), id, proof_of(key, snapshot)])?;
        unprune.execute([bytes(key)])?;
        before.map_or(Ok(0), |before| forget.execute([before]))?;
    }
    Ok(())
}

fn add_marks(transaction: &Transaction<'_>, id: i64, marks: &[Digest]) -> rusqlite::Result<()> {
    let mut add =
        transaction.prepare_cached("INSERT OR IGNORE INTO marks (mark, result) VALUES (?1, ?2)")?;
    marks.iter().try_for_each(|mark| add.execute(params![mark.as_bytes(), id]).map(drop))
}

fn delete_result(transaction: &Transaction<'_>, snapshot: &SnapshotId) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM results WHERE snapshot = ?1")?
        .execute([snapshot.as_str()])
        .map(drop)
}

/// What is remembered, and what proves that it is as it was written.
struct StoredMemo {
    value: Vec<u8>,
    proof: Vec<u8>,
}

impl StoredMemo {
    fn is_whole(&self, kind: &str, key: &[u8]) -> bool {
        self.proof == proof(&[kind.as_bytes(), key, &self.value])
    }
}

/// Reads a memo from the columns from `first` on.
fn memo(first: usize) -> impl Fn(&Row<'_>) -> rusqlite::Result<StoredMemo> {
    move |row| Ok(StoredMemo { value: row.get(first)?, proof: row.get(first + 1)? })
}

/// Proves that a key leads to this snapshot, and not to another since a bit was flipped.
fn proof_of(key: &CacheKey, snapshot: &SnapshotId) -> Vec<u8> {
    proof(&[bytes(key), snapshot.as_str().as_bytes()])
}

fn proof(fields: &[&[u8]]) -> Vec<u8> {
    let mut hasher = Hasher::new();
    for field in fields {
        hasher.field(field);
    }
    hasher.digest().as_bytes()[..8].to_vec()
}

fn bytes(key: &CacheKey) -> &[u8] {
    key.0.as_bytes()
}

/// Reads a snapshot's name from the first column.
fn snapshot(row: &Row<'_>) -> rusqlite::Result<SnapshotId> {
    let name: String = row.get(0)?;
    name.parse().map_err(|error| wrong(0, Box::new(error)))
}

fn wrong(column: usize, error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error)
}

fn record(row: &Row<'_>) -> rusqlite::Result<CacheRecord> {
    let evidence: String = row.get(3)?;
    Ok(CacheRecord {
        snapshot: snapshot(row)?,
        content: TreeDigest(Digest::from_bytes(row.get(1)?)),
        description: row.get(2)?,
        evidence: serde_json::from_str(&evidence).map_err(|error| wrong(3, error.into()))?,
        created: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> CacheKey {
        CacheKey(Digest::of(text))
    }

    fn result(text: &str) -> CacheRecord {
        CacheRecord {
            snapshot: SnapshotId::random(),
            content: TreeDigest(Digest::of(text)),
            description: format!("RUN {text}"),
            evidence: serde_json::json!({"paths": [text]}),
            created: 1,
        }
    }

    #[test]
    fn a_result_is_found_under_all_its_keys_by_other_processes_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        let (one, two) = (Index::open(&path).unwrap(), Index::open(&path).unwrap());
        let a = result("a");
        one.insert(&[key("1"), key("2")], &a).unwrap();
        assert_eq!(two.lookup(&key("1")).unwrap(), Some(a.clone()));
        two.insert(&[key("3")], &a).unwrap();
        assert_eq!(one.lookup(&key("3")).unwrap(), Some(a.clone()));
        assert_eq!(one.made(&a.snapshot).unwrap().unwrap().description, "RUN a");
        one.prune(std::slice::from_ref(&a.snapshot), 1).unwrap();
        for forgotten in ["1", "2", "3"] {
            assert_eq!(two.lookup(&key(forgotten)).unwrap(), None);
        }
    }

    #[test]
    fn several_results_are_recorded_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        let (one, two) = (result("one"), result("two"));
        index.insert(&[key("1")], &one).unwrap();
        let (first, second) = ([key("1"), key("1a")], [key("2")]);
        let new = [
            NewRecord { keys: &first, marks: &[], record: &one },
            NewRecord { keys: &second, marks: &[Digest::of("mark")], record: &two },
        ];
        for _ in 0..2 {
            index.insert_all(&new).unwrap();
            for (text, expected) in [("1", &one), ("1a", &one), ("2", &two)] {
                assert_eq!(index.lookup(&key(text)).unwrap().as_ref(), Some(expected));
            }
            let marked = index.marked(&Digest::of("mark"), 9).unwrap();
            assert_eq!(marked, std::slice::from_ref(&two));
            assert_eq!(index.records().unwrap().len(), 2);
        }
        index.insert_all(&[]).unwrap();
    }

    #[test]
    fn a_result_without_keys_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        let (a, b) = (result("a"), result("b"));
        index.insert(&[key("1"), key("2")], &a).unwrap();
        index.insert(&[key("1")], &b).unwrap();
        assert_eq!(index.lookup(&key("1")).unwrap(), Some(b.clone()));
        assert_eq!(index.records().unwrap(), [a, b.clone()]);
        index.insert(&[key("2")], &b).unwrap();
        assert_eq!(index.records().unwrap(), [b]);
    }

    #[test]
    fn a_result_that_is_found_again_is_as_old_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        let a = result("a");
        index.insert(&[key("1")], &a).unwrap();
        let again = CacheRecord { created: 99, ..a.clone() };
        index.insert(&[key("1"), key("2")], &again).unwrap();
        assert_eq!(index.lookup(&key("1")).unwrap(), Some(a.clone()));
        assert_eq!(index.lookup(&key("2")).unwrap(), Some(a));
    }

    #[test]
    fn a_damaged_database_is_started_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        Index::open(&path).unwrap().insert(&[key("1")], &result("a")).unwrap();
        fs_err::remove_file(folder.path().join("index.db-wal")).unwrap();
        fs_err::write(&path, "this is no database, it is only a text".repeat(200)).unwrap();
        let index = Index::open(&path).unwrap();
        assert_eq!(index.lookup(&key("1")).unwrap(), None);
        index.insert(&[key("1")], &result("a")).unwrap();
    }

    /// SQLite's own check finds nothing wrong with it.
    #[test]
    fn a_record_that_cannot_be_read_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        for damage in ["evidence = '{'", "content = 'short'", "snapshot = '../x'"] {
            let index = Index::open(&path).unwrap();
            let a = result("a");
            index.insert(&[key("1")], &a).unwrap();
            let damage = format!("UPDATE results SET {damage}");
            Connection::open(&path).unwrap().execute(&damage, []).unwrap();
            assert_eq!(index.check().unwrap().len(), 1, "{damage}");
            assert_eq!(index.lookup(&key("1")).unwrap(), None, "{damage}");
            assert_eq!(index.check().unwrap(), Vec::<String>::new());
            index.insert(&[key("1")], &a).unwrap();
            assert_eq!(index.lookup(&key("1")).unwrap(), Some(a), "{damage}");
        }
    }

    #[test]
    fn a_database_of_a_later_version_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        Index::open(&path).unwrap().insert(&[key("1")], &result("a")).unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let index = Index::open(&path).unwrap();
        assert_eq!(index.lookup(&key("1")).unwrap(), None);
        let other = result("b");
        index.insert(&[key("1")], &other).unwrap();
        assert_eq!(index.lookup(&key("1")).unwrap(), Some(other));
    }

    #[test]
    fn many_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let index = Index::open(path).unwrap();
                    for n in 0..20 {
                        let text = format!("{writer}/{n}");
                        index.insert(&[key(&text)], &result(&text)).unwrap();
                    }
                });
            }
        });
        assert_eq!(Index::open(&path).unwrap().records().unwrap().len(), 80);
    }

    #[test]
    fn a_hundred_thousand_records_do_not_slow_a_look_up() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        let fill = |from: usize, to: usize| {
            index
                .connections
                .change(|transaction| {
                    for n in from..to {
                        let snapshot = SnapshotId::random();
                        let id = transaction
                            .prepare_cached(
                                "INSERT INTO results
                                 (snapshot, content, description, evidence, created)
                                 VALUES (?1, ?2, 'RUN make', '{}', 1)",
                            )?
                            .insert(params![snapshot.as_str(), [7_u8; 32]])?;
                        add_keys(transaction, id, &snapshot, &[key(&n.to_string())])?;
                    }
                    Ok(())
                })
                .unwrap();
        };
        let look_up = |records: usize| {
            let begun = std::time::Instant::now();
            for n in 0..1000 {
                let key = key(&(n * 7919 % records).to_string());
                assert!(index.lookup(&key).unwrap().is_some());
            }
            begun.elapsed() / 1000
        };
        fill(0, 100);
        look_up(100);
        let few = look_up(100);
        fill(100, 100_000);
        look_up(100_000);
        let many = look_up(100_000);
        let figure = format!("look-up among 100 records {few:.1?}, among 100,000 {many:.1?}\n");
        std::io::Write::write_all(&mut std::io::stderr(), figure.as_bytes()).unwrap();
        // A level or two more of a tree; the rest is room for a busy machine.
        assert!(many < few * 10 + std::time::Duration::from_micros(200), "{figure}");
    }

    #[test]
    fn memos_are_kept_apart_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        index.remember("etag", b"u", b"1").unwrap();
        index.remember("etag", b"u", b"2").unwrap();
        assert_eq!(index.recall("etag", b"u").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(index.recall("layer", b"u").unwrap(), None);
        assert_eq!(index.memos("etag").unwrap(), [(b"u".to_vec(), b"2".to_vec())]);
        index.forget_memos("etag", &[b"u"]).unwrap();
        assert_eq!(index.recall("etag", b"u").unwrap(), None);
    }
}
