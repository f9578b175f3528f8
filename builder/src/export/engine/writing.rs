//! Writing an archive to an engine: how much of it went there, and who is to blame where it broke off.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::export::ExportError;

/// Writes an archive; who runs it sees to where.
pub(super) type Writing = Box<dyn FnOnce(&mut dyn Write) -> Result<(), ExportError> + Send>;

/// What is known of an archive while it is written, and afterwards.
#[derive(Debug, Default)]
pub(super) struct Written {
    bytes: AtomicU64,
    failure: Mutex<Option<ExportError>>,
}

impl Written {
    /// How many bytes were written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why there is no more of it, if that is no fault of the engine's: a damaged blob, say. It is
    /// known before the engine sees that the archive has broken off.
    pub(super) fn failure(&self) -> Option<ExportError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The same, and what comes of it.
pub(super) fn watched(writing: Writing) -> (Writing, Arc<Written>) {
    let written = Arc::new(Written::default());
    let told = Arc::clone(&written);
    let writing = Box::new(move |out: &mut dyn Write| {
        let mut out = Watched { out, bytes: &told.bytes, is_gone: false };
        let done = writing(&mut out);
        match done {
            Err(error) if !out.is_gone => {
                let reason = error.to_string();
                *told.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(ExportError::Load(reason))
            }
            done => done,
        }
    });
    (writing, written)
}

/// Passes everything on.
struct Watched<'a> {
    out: &'a mut dyn Write,
    bytes: &'a AtomicU64,
    /// The engine takes no more.
    is_gone: bool,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes).inspect_err(|_| self.is_gone = true)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.is_gone = true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that takes so many bytes.
    struct Takes(usize);

    impl Write for Takes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_breaks_off_by_itself_is_told_from_an_engine_that_takes_no_more() {
        let check = |takes: usize, fails: bool, expected: (bool, u64, Option<&str>)| {
            let (writing, written) = watched(Box::new(move |out| {
                out.write_all(b"12345")?;
                if fails { Err(ExportError::Load("a blob is damaged".into())) } else { Ok(()) }
            }));
            let is_done = writing(&mut Takes(takes)).is_ok();
            let failure = written.failure().map(|error| error.to_string());
            let (done, bytes, said) = expected;
            assert_eq!((is_done, written.bytes()), (done, bytes));
            assert_eq!(failure.is_some(), said.is_some());
            assert!(failure.unwrap_or_default().contains(said.unwrap_or_default()));
        };
        check(9, false, (true, 5, None));
        check(9, true, (false, 5, Some("a blob is damaged")));
        check(3, true, (false, 0, None));
        check(3, false, (false, 0, None));
    }
}
