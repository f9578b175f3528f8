//! The connections to the index's database: one that answers, and one that writes, so that whoever
//! asks does not wait for whoever writes. With a connection for both, a build of small steps would
//! write down one step's result while the next step waits for an answer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::IndexError;
use super::database::{self, Journal, Suspicion};

/// The database, opened.
#[derive(Debug)]
pub(super) struct Connections {
    path: PathBuf,
    journal: Journal,
    /// Answers. Whoever locks both locks `writer` first.
    reader: Mutex<Connection>,
    /// Writes; opened when something is written first. Where the database has a journal, `reader`
    /// does that as well: the two would wait for each other, and not wake each other.
    writer: Mutex<Option<Connection>>,
}

impl Connections {
    /// Opens the database at `path`, and makes it when it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        let path = path.to_owned();
        match database::open(&path)? {
            Ok((reader, journal)) => {
                let (reader, writer) = (Mutex::new(reader), Mutex::default());
                Ok(Self { path, journal, reader, writer })
            }
            Err(source) => Err(IndexError::Database { path, source }),
        }
    }

    /// How the database is kept from being read half-written.
    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Asks.
    pub(super) fn ask<T>(
        &self,
        question: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        let answer = question(&self.reader());
        self.or_afresh(answer, |connection| question(connection))
    }

    /// Changes something, all of it or nothing.
    pub(super) fn change(
        &self,
        change: impl Fn(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), IndexError> {
        let work = |connection: &mut Connection| {
            connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .and_then(|transaction| change(&transaction).and_then(|()| transaction.commit()))
        };
        let done = match self.journal {
            Journal::WriteAhead => self.write(work),
            Journal::Rollback(_) => work(&mut self.reader()),
        };
        self.or_afresh(done, work)
    }

    /// Sets the database aside and begins with an empty one.
    pub(super) fn start_afresh(&self) -> Result<(), IndexError> {
        let (mut writer, mut reader) = (self.writer(), self.reader());
        self.replace(&mut writer, &mut reader, Suspicion::Certain)
    }

    /// What `check` finds out about the database; that it cannot be used is an answer, too.
    pub(super) fn check(
        &self,
        check: impl FnOnce(&Connection) -> rusqlite::Result<Vec<String>>,
    ) -> Result<Vec<String>, IndexError> {
        match check(&self.reader()) {
            Err(error) if database::is_unusable(&error) => Ok(vec![error.to_string()]),
            lines => lines.map_err(|source| self.error(source)),
        }
    }

    fn write(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut writer = self.writer();
        match &mut *writer {
            Some(connection) => work(connection),
            None => work(writer.insert(database::connect_again(&self.path)?)),
        }
    }

    /// What was `done`; or what `work` does on an empty database, when this one turned out to be
    /// damaged.
    fn or_afresh<T>(
        &self,
        done: rusqlite::Result<T>,
        work: impl Fn(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        let mut error = match done {
            Err(error) if database::is_unusable(&error) => error,
            done => return done.map_err(|source| self.error(source)),
        };
        let (mut writer, mut reader) = (self.writer(), self.reader());
        // Another process, or thread, may have replaced it by now. If it is still the same, and whole for
        // SQLite, there are values in it that nobody wrote.
        for suspicion in [Suspicion::Strong, Suspicion::Certain] {
            tracing::warn!(path = %self.path.display(), %error, "the index is damaged");
            self.replace(&mut writer, &mut reader, suspicion)?;
            error = match work(&mut reader) {
                Err(error) if database::is_unusable(&error) => error,
                done => return done.map_err(|source| self.error(source)),
            };
        }
        Err(self.error(error))
    }

    fn replace(
        &self,
        writer: &mut Option<Connection>,
        reader: &mut Connection,
        suspicion: Suspicion,
    ) -> Result<(), IndexError> {
        *writer = None;
        let (fresh, _) =
            database::replace(&self.path, suspicion)?.map_err(|source| self.error(source))?;
        *reader = fresh;
        Ok(())
    }

    fn error(&self, source: rusqlite::Error) -> IndexError {
        if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) {
            return io::Error::new(io::ErrorKind::StorageFull, source).into();
        }
        IndexError::Database { path: self.path.clone(), source }
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        // A panic in the middle of a transaction rolled it back; the connection is as good as new.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Connection>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_does_not_wait_for_who_writes() {
        let folder = tempfile::tempdir().unwrap();
        let index = Connections::open(&folder.path().join("index.db")).unwrap();
        let count = || {
            index.ask(|connection| {
                connection.query_row("SELECT count(*) FROM pruned", [], |row| row.get::<_, i64>(0))
            })
        };
        let insert = |transaction: &Transaction<'_>| {
            transaction.execute("INSERT INTO pruned (key, at) VALUES (x'00', 0)", []).unwrap();
            // In the middle of it, by the same thread.
            assert_eq!(count().unwrap(), 0);
            Ok(())
        };
        index.change(insert).unwrap();
        assert_eq!(count().unwrap(), 1);
    }

    #[test]
    fn both_begin_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let index = Connections::open(&folder.path().join("index.db")).unwrap();
        let insert = || {
            index.change(|transaction| {
                let insert = "INSERT OR REPLACE INTO pruned (key, at) VALUES (x'00', 0)";
                transaction.execute(insert, []).map(drop)
            })
        };
        let is_empty = || {
            index.ask(|connection| {
                connection.prepare("SELECT 1 FROM pruned")?.exists([]).map(|any| !any)
            })
        };
        insert().unwrap();
        assert!(!is_empty().unwrap());
        index.start_afresh().unwrap();
        assert!(is_empty().unwrap());
        insert().unwrap();
        assert!(!is_empty().unwrap());
    }
}
