//! What steps came to, under which keys: `index.db`, a SQLite database that can be dropped.
//!
//! It holds records only, never bytes that cost work: a record that points at a snapshot which is
//! gone is no record. Readers never wait for writers (WAL), writers wait for each other (`BEGIN
//! IMMEDIATE`, a busy timeout). A database that is damaged, or of another version, is set aside and
//! started afresh.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fs_err::File;
use rusqlite::config::DbConfig;
use rusqlite::types::Type;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use rustix::fs::{FlockOperation, flock, statfs};

use crate::digest::{CacheKey, Digest, TreeDigest};
use crate::snapshot::SnapshotId;

/// The version of the tables; a database of another version is not read.
const VERSION: i64 = 2;

const TABLES: &str = "
    CREATE TABLE results (
        id INTEGER PRIMARY KEY,
        snapshot TEXT NOT NULL UNIQUE,
        content BLOB NOT NULL,
        description TEXT NOT NULL,
        evidence TEXT NOT NULL,
        created INTEGER NOT NULL,
        last_used INTEGER NOT NULL
    );
    
    CREATE TABLE keys (
        key BLOB PRIMARY KEY,
        result INTEGER NOT NULL REFERENCES results (id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    CREATE INDEX keys_by_result ON keys (result);
    CREATE TABLE memo (
        kind TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
";

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
    connection: Mutex<Connection>,
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
    /// When it was last found, in seconds since 1970.
    pub last_used: i64,
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
        let connection = match connect(path) {
            Ok((connection, VERSION)) => Ok(connection),
            Ok(_) => make_alone(path)?,
            Err(e) if is_unusable(&e) => make_alone(path)?,
            Err(e) => Err(e),
        };
        match connection {
            Ok(connection) => Ok(Self { connection: Mutex::new(connection) }),
            Err(source) => Err(IndexError::Database { path: path.to_owned(), source }),
        }
    }

    /// What the step with this key came to. Whether the snapshot is still there, the caller asks
    /// the snapshotter.
    pub fn lookup(&self, key: &CacheKey) -> Result<Option<CacheRecord>, IndexError> {
        self.ask(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT snapshot, content, description, evidence, created, last_used
                 FROM keys JOIN results ON results.id = keys.result WHERE keys.key = ?1",
            )?;
            statement.query_row([bytes(key)], record).optional()
        })
    }

    /// Records a result under all of `keys`; what was known under one of them is forgotten.
    ///
    /// A snapshot has one record: one that is there already stays as it is, so that a result which
    /// is found again under another key is as old as it was. Nothing is written when nothing is new.
    pub fn insert(&self, keys: &[CacheKey], record: &CacheRecord) -> Result<(), IndexError> {
        if self.ask(|connection| are_known(connection, keys, &record.snapshot))? {
            return Ok(());
        }
        self.change(|transaction| {
            let id = match id_of(transaction, &record.snapshot)? {
                Some(id) => id,
                None => transaction
                    .prepare_cached(
                        "INSERT INTO results
                         (snapshot, content, description, evidence, created, last_used)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .insert(params![
                        record.snapshot.as_str(),
                        record.content.0.as_bytes(),
                        record.description,
                        record.evidence.to_string(),
                        record.created,
                        record.last_used,
                    ])?,
            };
            add_keys(transaction, id, keys)
        })
    }

    /// Makes the result that is known under `known` known under `keys` as well.
    pub fn alias(&self, known: &CacheKey, keys: &[CacheKey]) -> Result<(), IndexError> {
        self.change(|transaction| {
            let id = transaction
                .prepare_cached("SELECT result FROM keys WHERE key = ?1")?
                .query_row([bytes(known)], |row| row.get(0))
                .optional()?;
            id.map_or(Ok(()), |id: i64| add_keys(transaction, id, keys))
        })
    }

    /// Notes that the results under `keys` were used at `now`, in seconds since 1970.
    pub fn touch(&self, keys: &[CacheKey], now: i64) -> Result<(), IndexError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.change(|transaction| {
            // A day's precision is enough to prune by; most builds then write nothing here.
            let mut statement = transaction.prepare_cached(
                "UPDATE results SET last_used = ?2 WHERE last_used < ?2 - 3600
                 AND id = (SELECT result FROM keys WHERE key = ?1)",
            )?;
            keys.iter().try_for_each(|key| statement.execute(params![bytes(key), now]).map(drop))
        })
    }

    /// The record of the step that made `snapshot`.
    pub fn made(&self, snapshot: &SnapshotId) -> Result<Option<CacheRecord>, IndexError> {
        self.ask(|connection| {
            connection
                .prepare_cached(
                    "SELECT snapshot, content, description, evidence, created, last_used
                     FROM results WHERE snapshot = ?1",
                )?
                .query_row([snapshot.as_str()], record)
                .optional()
        })
    }

    /// Keys under which the result in `snapshot` is known, at most `limit`.
    pub fn keys(&self, snapshot: &SnapshotId, limit: u32) -> Result<Vec<CacheKey>, IndexError> {
        self.ask(|connection| {
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

    /// All results, the longest unused first.
    pub fn records(&self) -> Result<Vec<CacheRecord>, IndexError> {
        self.ask(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT snapshot, content, description, evidence, created, last_used
                 FROM results ORDER BY last_used, id",
            )?;
            statement.query_map([], record)?.collect()
        })
    }

    /// Forgets all results whose tree is `snapshot`.
    pub fn forget(&self, snapshot: &SnapshotId) -> Result<(), IndexError> {
        self.change(|transaction| {
            transaction
                .prepare_cached("DELETE FROM results WHERE snapshot = ?1")?
                .execute([snapshot.as_str()])
                .map(drop)
        })
    }

    /// What was remembered under this key; kinds do not see each other.
    pub fn recall(&self, kind: &str, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.ask(|connection| {
            connection
                .prepare_cached("SELECT value FROM memo WHERE kind = ?1 AND key = ?2")?
                .query_row(params![kind, key], |row| row.get(0))
                .optional()
        })
    }

    /// Remembers `value`; what was remembered before under this key is replaced.
    pub fn remember(&self, kind: &str, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        self.change(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO memo (kind, key, value) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![kind, key, value])
                .map(drop)
        })
    }

    /// All that is remembered of a kind: keys and values, by key.
    pub fn memos(&self, kind: &str) -> Result<Vec<Memo>, IndexError> {
        self.ask(|connection| {
            connection
                .prepare_cached("SELECT key, value FROM memo WHERE kind = ?1 ORDER BY key")?
                .query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }

    /// Forgets what was remembered under this key.
    pub fn forget_memo(&self, kind: &str, key: &[u8]) -> Result<(), IndexError> {
        self.change(|transaction| {
            transaction
                .prepare_cached("DELETE FROM memo WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind, key])
                .map(drop)
        })
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        let connection = self.connection();
        question(&connection).map_err(|source| database_error(&connection, source))
    }

    fn change(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), IndexError> {
        let mut connection = self.connection();
        let done = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| change(&transaction).and_then(|()| transaction.commit()));
        done.map_err(|source| database_error(&connection, source))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in the middle of a transaction rolled it back; the connection is as good as new.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn database_error(connection: &Connection, source: rusqlite::Error) -> IndexError {
    IndexError::Database { path: connection.path().unwrap_or_default().into(), source }
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

fn add_keys(transaction: &Transaction<'_>, id: i64, keys: &[CacheKey]) -> rusqlite::Result<()> {
    let mut forget = transaction.prepare_cached(
        "DELETE FROM results WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM keys WHERE result = ?1)",
    )?;
    let mut known =
        transaction.prepare_cached("SELECT result FROM keys WHERE key = ?1 AND result <> ?2")?;
    let mut add =
        transaction.prepare_cached("INSERT OR REPLACE INTO keys (key, result) VALUES (?1, ?2)")?;
    for key in keys {
        let before: Option<i64> =
            known.query_row(params![bytes(key), id], |row| row.get(0)).optional()?;
        add.execute(params![bytes(key), id])?;
        before.map_or(Ok(0), |before| forget.execute([before]))?;
    }
    Ok(())
}

fn bytes(key: &CacheKey) -> &[u8] {
    key.0.as_bytes()
}

fn record(row: &Row<'_>) -> rusqlite::Result<CacheRecord> {
    let wrong = |column, kind, error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(column, kind, error)
    };
    let snapshot: String = row.get(0)?;
    let evidence: String = row.get(3)?;
    Ok(CacheRecord {
        snapshot: snapshot.parse().map_err(|e| wrong(0, Type::Text, Box::new(e)))?,
        content: TreeDigest(Digest::from_bytes(row.get(1)?)),
        description: row.get(2)?,
        evidence: serde_json::from_str(&evidence).map_err(|e| wrong(3, Type::Text, e.into()))?,
        created: row.get(4)?,
        last_used: row.get(5)?,
    })
}

/// A connection, and the version of the tables; 0 for none.
fn connect(path: &Path) -> rusqlite::Result<(Connection, i64)> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_mins(1))?;
    connection.set_prepared_statement_cache_capacity(32);
    // The last process to close would otherwise move the whole log and wait for the disk.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // The next process to open reads the log: 256 pages are a millisecond.
    connection.pragma_update(None, "wal_autocheckpoint", 256)?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok((connection, version))
}

/// Makes the database, or makes it anew, unless another process has done so meanwhile. Changing to
/// WAL does not wait for others as transactions do, so only one process at a time may be at it.
fn make_alone(path: &Path) -> io::Result<rusqlite::Result<Connection>> {
    let folder = File::open(path.parent().unwrap_or(path))?;
    flock(&folder, FlockOperation::LockExclusive)?;
    match connect(path) {
        Ok((connection, VERSION)) => return Ok(Ok(connection)),
        Ok((connection, 0)) => return Ok(make(connection, path)),
        Ok((connection, version)) => {
            tracing::warn!(path = %path.display(), version, "started the index afresh");
            drop(connection);
        }
        Err(error) if is_unusable(&error) => {
            tracing::warn!(path = %path.display(), %error, "started the index afresh");
        }
        Err(error) => return Ok(Err(error)),
    }
    set_aside(path)?;
    Ok(connect(path).and_then(|(connection, _)| make(connection, path)))
}

fn make(mut connection: Connection, path: &Path) -> rusqlite::Result<Connection> {
    // WAL needs memory that processes share, which network file systems do not give.
    let mode = if is_network(path) { "DELETE" } else { "WAL" };
    connection.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(()))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(connection)
}

fn is_unusable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Moves an unusable database out of the way, over the one that was unusable before.
fn set_aside(path: &Path) -> io::Result<()> {
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        match fs_err::remove_file(beside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    fs_err::rename(path, path.with_extension("db.unusable"))
}

fn is_network(path: &Path) -> bool {
    const NFS: u32 = 0x6969;
    const SMB: [u32; 3] = [0x517B, 0xFF53_4D42, 0xFE53_4D42];
    const NINE_P: u32 = 0x0102_1997;
    const CEPH: u32 = 0x00c3_6400;
    const AFS: u32 = 0x5346_414F;
    const LUSTRE: u32 = 0x0BD0_0BD3;
    let folder = path.parent().unwrap_or(path);
    let Ok(stat) = statfs(folder) else { return false };
    // The kernel's numbers are 32 bits wide; the field's width depends on the architecture.
    let kind = u32::try_from(stat.f_type & 0xffff_ffff).unwrap_or_default();
    matches!(kind, NFS | NINE_P | CEPH | AFS | LUSTRE) || SMB.contains(&kind)
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
            last_used: 1,
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
        two.alias(&key("2"), &[key("3")]).unwrap();
        assert_eq!(one.lookup(&key("3")).unwrap(), Some(a.clone()));
        two.touch(&[key("3")], 10_000).unwrap();
        assert_eq!(one.lookup(&key("1")).unwrap().unwrap().last_used, 10_000);
        assert_eq!(one.made(&a.snapshot).unwrap().unwrap().description, "RUN a");
        one.forget(&a.snapshot).unwrap();
        for forgotten in ["1", "2", "3"] {
            assert_eq!(two.lookup(&key(forgotten)).unwrap(), None);
        }
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

    #[test]
    fn a_database_of_a_later_version_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        drop(Index::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        Index::open(&path).unwrap().insert(&[key("1")], &result("a")).unwrap();
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
    fn memos_are_kept_apart_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index.db")).unwrap();
        index.remember("etag", b"u", b"1").unwrap();
        index.remember("etag", b"u", b"2").unwrap();
        assert_eq!(index.recall("etag", b"u").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(index.recall("layer", b"u").unwrap(), None);
        assert_eq!(index.memos("etag").unwrap(), [(b"u".to_vec(), b"2".to_vec())]);
        index.forget_memo("etag", b"u").unwrap();
        assert_eq!(index.recall("etag", b"u").unwrap(), None);
    }
}
