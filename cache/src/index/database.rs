//! The index's database: opened, made, and made anew when it cannot be used.
//!
//! A database that is damaged, or of another version, is set aside as `index.db.unusable`; nothing
//! in it is the only copy of anything. Writing ahead (WAL) lets readers go on while somebody writes,
//! but needs memory that all processes share, which network file systems do not give: there SQLite
//! keeps a journal instead, and users are told.

use std::io;
use std::path::Path;
use std::time::Duration;

use fs_err::File;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use rustix::fs::{FlockOperation, flock, statfs};

use super::{TABLES, VERSION};
use crate::lock::retry_interrupted;

/// How a database is kept from being read half-written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Journal {
    /// By writing ahead: readers never wait for writers.
    WriteAhead,
    /// By a journal, since writing ahead is not possible here: readers and writers wait for each
    /// other. Why, is said.
    Rollback(String),
}

/// How sure it is that a database cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It could not be read just now; another process may have replaced it meanwhile.
    Strong,
    /// It is to be replaced.
    Certain,
}

/// A connection that can be used, or what SQLite says.
type Opened = rusqlite::Result<(Connection, Journal)>;

/// Opens the database at `path`, and makes it when it is missing or cannot be used.
pub(super) fn open(path: &Path) -> io::Result<Opened> {
    open_on(path, network_file_system(path))
}

fn open_on(path: &Path, network: Option<&str>) -> io::Result<Opened> {
    match connect(path) {
        Ok((connection, VERSION)) if has_journal(&connection, network) => {
            return Ok(Ok((connection, Journal::of(network))));
        }
        // Closed here: the journal can be changed by the only one who has the database open.
        Ok(unsuitable) => drop(unsuitable),
        Err(error) if is_unusable(&error) => {}
        Err(error) => return Ok(Err(error)),
    }
    alone(path, || make_usable(path, network))
}

/// One more connection to the database at `path`, which was opened before.
pub(super) fn connect_again(path: &Path) -> rusqlite::Result<Connection> {
    let (connection, version) = connect(path)?;
    if version == VERSION {
        return Ok(connection);
    }
    // An rbuild of another version has replaced it meanwhile.
    let unusable = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
    Err(rusqlite::Error::SqliteFailure(unusable, None))
}

/// Replaces the database at `path` by an empty one, unless another process has done so.
pub(super) fn replace(path: &Path, suspicion: Suspicion) -> io::Result<Opened> {
    let network = network_file_system(path);
    alone(path, || {
        if suspicion == Suspicion::Strong
            && let Ok((connection, VERSION)) = connect(path)
            && is_whole(&connection)
        {
            return Ok(Ok((connection, Journal::of(network))));
        }
        set_aside(path)?;
        make_usable(path, network)
    })
}

impl Journal {
    fn of(network: Option<&str>) -> Self {
        match network {
            None => Self::WriteAhead,
            Some(name) => Self::Rollback(format!("the state folder is on a {name} file system")),
        }
    }
}

/// Changing to WAL does not wait for others as transactions do, so only one process at a time may be
/// at it.
fn alone<T>(path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let folder = File::open(path.parent().unwrap_or(path))?;
    retry_interrupted(|| flock(&folder, FlockOperation::LockExclusive))?;
    work()
}

fn make_usable(path: &Path, network: Option<&str>) -> io::Result<Opened> {
    match connect(path) {
        // Another process was faster, or only the journal is not what it should be.
        Ok((connection, VERSION)) => {
            return Ok(set_journal(&connection, network).map(|journal| (connection, journal)));
        }
        Ok((connection, 0)) => return Ok(make(connection, network)),
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
    Ok(connect(path).and_then(|(connection, _)| make(connection, network)))
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

fn make(mut connection: Connection, network: Option<&str>) -> Opened {
    let journal = set_journal(&connection, network)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok((connection, journal))
}

/// Whether the database is written as it should be. A folder can have been moved to another disk.
fn has_journal(connection: &Connection, network: Option<&str>) -> bool {
    let mode: rusqlite::Result<String> =
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0));
    mode.is_ok_and(|mode| (mode == "wal") == network.is_none())
}

fn set_journal(connection: &Connection, network: Option<&str>) -> rusqlite::Result<Journal> {
    let wanted = if network.is_some() { "DELETE" } else { "WAL" };
    let got: String =
        connection.pragma_update_and_check(None, "journal_mode", wanted, |row| row.get(0))?;
    Ok(match got.as_str() {
        "wal" => Journal::WriteAhead,
        _ if network.is_some() => Journal::of(network),
        _ => Journal::Rollback("the file system of the state folder has no shared memory".into()),
    })
}

pub(super) fn is_unusable(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
        // What was read is not of the type that was written.
        || matches!(
            error,
            rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..)
        )
        || error.to_string().contains("malformed database schema")
}

fn is_whole(connection: &Connection) -> bool {
    let answer: rusqlite::Result<String> =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0));
    answer.is_ok_and(|answer| answer == "ok")
}

/// Moves an unusable database out of the way, over the one that was unusable before.
fn set_aside(path: &Path) -> io::Result<()> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        missing_is_fine(fs_err::remove_file(beside))?;
    }
    missing_is_fine(fs_err::rename(path, path.with_extension("db.unusable")))
}

fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The name of the network file system that `path` is on, if it is on one.
fn network_file_system(path: &Path) -> Option<&'static str> {
    let stat = statfs(path.parent().unwrap_or(path)).ok()?;
    // The kernel's numbers (linux/magic.h) are 32 bits wide; the field's width depends on the
    // architecture.
    let kind = u32::try_from(stat.f_type & 0xffff_ffff).unwrap_or_default();
    match kind {
        0x6969 => Some("NFS"),
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414F => Some("AFS"),
        0x0BD0_0BD3 => Some("Lustre"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> String {
        let connection = Connection::open(path).unwrap();
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_network_file_system_is_noticed_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        let journal = |network| open_on(&path, network).unwrap().unwrap().1;
        assert_eq!(journal(None), Journal::WriteAhead);
        assert_eq!(mode(&path), "wal");
        let Journal::Rollback(why) = journal(Some("NFS")) else { panic!("WAL on NFS") };
        assert_eq!(why, "the state folder is on a NFS file system");
        assert_eq!(mode(&path), "delete");
        assert_eq!(journal(None), Journal::WriteAhead);
        assert_eq!(mode(&path), "wal");
    }

    #[test]
    fn where_sqlite_refuses_to_write_ahead_it_is_said() {
        // A database in memory cannot be shared, which is what SQLite finds out by itself elsewhere.
        let (_, journal) = make(Connection::open_in_memory().unwrap(), None).unwrap();
        assert!(matches!(journal, Journal::Rollback(_)), "{journal:?}");
    }
}
