//! A blob that is still being written, for those who read it meanwhile: a layer is unpacked while it
//! is downloaded, and pushed while it is compressed.
//!
//! Readers go through the file, not through memory: none of them can slow the writer down, each may
//! begin when it likes, and what they are behind costs nothing. The end comes only once the blob was
//! committed, which is to say that digest and size are right; whoever reads to the end needs no check
//! of their own.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fs_err::File;

use crate::digest::Digest;
use crate::page_cache::PageCache;

/// A blob that is being written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Growing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Open for reading; it stays so when the blob gets its name.
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many bytes can be read.
    written: u64,
    end: Option<End>,
}

/// How a blob ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was committed under this digest with so many bytes.
    Whole(Digest, u64),
    /// Its writer gave up, or it was not what it should have been.
    Broken,
}

impl Growing {
    /// A blob of which `file` is the place.
    pub(super) fn new(file: File, written: u64) -> Self {
        let state = Mutex::new(State { written, end: None });
        Self(Arc::new(Shared { file, state, changed: Condvar::new() }))
    }

    /// Tells that the first `written` bytes are in the file.
    pub(super) fn is_at(&self, written: u64) {
        let mut state = self.state();
        if state.written < written {
            state.written = written;
            self.0.changed.notify_all();
        }
    }

    /// Tells how it ended; the first word counts.
    pub(super) fn ended(&self, end: End) {
        let mut state = self.state();
        if let End::Whole(_, size) = end {
            state.written = size;
        }
        state.end.get_or_insert(end);
        self.0.changed.notify_all();
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.state().end
    }

    /// Waits until it ended.
    pub fn wait(&self) -> End {
        let mut state = self.state();
        loop {
            match state.end {
                Some(end) => return end,
                None => state = self.changed(state),
            }
        }
    }

    /// Waits until more than `bytes` of it are there or it ended: whether it got longer than that.
    pub fn outgrows(&self, bytes: u64) -> bool {
        let mut state = self.state();
        loop {
            if state.written > bytes || state.end.is_some() {
                return state.written > bytes;
            }
            state = self.changed(state);
        }
    }

    /// Reads it from the first byte, waiting for those that are not written yet.
    pub fn reader(&self) -> GrowingReader {
        self.reader_from(0)
    }

    /// Reads it from byte `position` on, waiting for those that are not written yet.
    pub fn reader_from(&self, position: u64) -> GrowingReader {
        GrowingReader { blob: self.clone(), position, leaves: None }
    }

    /// Like [`Self::reader`], for who sends it away: what has gone does not stay in memory.
    pub fn leaving(&self) -> GrowingReader {
        GrowingReader { leaves: Some(PageCache::default()), ..self.reader() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a [`Growing`] blob.
///
/// Its end means that the blob is whole and right; when there will be no such end, reading fails.
#[derive(Debug)]
pub struct GrowingReader {
    blob: Growing,
    position: u64,
    leaves: Option<PageCache>,
}

impl Read for GrowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let ready = {
            let mut state = self.blob.state();
            loop {
                let ready = state.written.saturating_sub(self.position);
                if ready > 0 {
                    break ready;
                }
                match state.end {
                    Some(End::Whole(..)) => return Ok(0),
                    Some(End::Broken) => {
                        return Err(io::Error::other("the blob was given up while it was read"));
                    }
                    None => state = self.blob.changed(state),
                }
            }
        };
        let most = usize::try_from(ready).map_or(buffer.len(), |ready| ready.min(buffer.len()));
        let read = rustix::io::pread(&self.blob.0.file, &mut buffer[..most], self.position)?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.position += read as u64;
        if let Some(cache) = &mut self.leaves {
            cache.is_at(self.position, &self.blob.0.file);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::store::tests::store;

    fn read_on_a_thread(blob: &Growing) -> std::thread::JoinHandle<io::Result<Vec<u8>>> {
        let mut reader = blob.reader();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        })
    }

    #[test]
    fn it_is_read_while_it_is_written_and_after() {
        let (_top, store) = store();
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = store.writer().unwrap();
        writer.write_all(&bytes[..10]).unwrap();
        let blob = writer.growing().unwrap();
        let early = read_on_a_thread(&blob);
        for piece in bytes[10..].chunks(70_001) {
            writer.write_all(piece).unwrap();
        }
        // What is written can be read before there is an end.
        let mut start = vec![0; 5_000_000];
        blob.reader().read_exact(&mut start).unwrap();
        assert!(start == bytes[..5_000_000]);
        assert_eq!(blob.end(), None);
        let (digest, size) = writer.commit(None).unwrap();
        assert_eq!(blob.wait(), End::Whole(digest, size));
        assert!(blob.outgrows(size - 1) && !blob.outgrows(size));
        assert!(early.join().unwrap().unwrap() == bytes);
        let mut rest = Vec::new();
        blob.reader_from(size - 7).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, bytes[bytes.len() - 7..]);
    }

    #[test]
    fn what_is_given_up_or_wrong_has_no_end() {
        let (_top, store) = store();
        let check = |finish: &dyn Fn(crate::store::BlobWriter)| {
            let mut writer = store.writer().unwrap();
            writer.write_all(b"hello").unwrap();
            let blob = writer.growing().unwrap();
            let reading = read_on_a_thread(&blob);
            finish(writer);
            assert_eq!(blob.wait(), End::Broken);
            reading.join().unwrap().unwrap_err();
        };
        check(&drop);
        check(&|writer| drop(writer.commit(Some((Digest::of("hallo"), 5))).unwrap_err()));
        check(&|writer| drop(writer.commit(Some((Digest::of("hello"), 6))).unwrap_err()));
    }
}
