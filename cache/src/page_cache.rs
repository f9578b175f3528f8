//! Large blobs that leave the machine, and what they leave in the kernel's page cache.
//!
//! A layer of gigabytes is written, read by who sends it, and then left alone. Kept in memory it would push
//! out what others read; and memory that was not in use has its price on virtual machines, whose host hands
//! out a page when it is first touched: up to 3.4 s of a processor for each gigabyte on the machine of
//! `docs/performance.md`, as against 0.2 s for memory that was in use a moment ago.
//!
//! So who reads such a blob has the kernel forget what it has read and is a good deal behind; what is not
//! on the disk yet, the kernel begins to write. This is advice: nothing waits for it, a disk that cannot
//! follow keeps its pages in memory, and file systems without a disk ignore it. Small blobs never get so
//! far. What leaves for a second place is read from the disk, which is faster than most networks.

use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};

use fs_err::File;
use rustix::fs::Advice;

/// So many bytes before the position stay in memory: those that are read again soon.
const NEAR: u64 = 64 << 20;
/// How often the kernel is told, in bytes.
const STEP: u64 = 8 << 20;

/// Keeps most of one large file out of memory, beside whoever reads it.
///
/// It has a thread of its own once the file is large, since the kernel makes who starts to write wait
/// when the disk has a lot to do.
#[derive(Debug, Default)]
pub(crate) struct PageCache {
    /// The position that was told of last.
    told: u64,
    teller: Option<SyncSender<u64>>,
}

impl PageCache {
    /// Is told that all before `position` was read from `file`.
    pub(crate) fn is_at(&mut self, position: u64, file: &File) {
        if position < NEAR || position - self.told < STEP {
            return;
        }
        if self.teller.is_none() {
            self.teller = file.try_clone().and_then(teller).ok();
        }
        // When it is busy, it is told of more the next time.
        if self.teller.as_ref().is_some_and(|teller| teller.try_send(position).is_ok()) {
            self.told = position;
        }
    }
}

fn teller(file: File) -> io::Result<SyncSender<u64>> {
    let (sender, positions) = mpsc::sync_channel(1);
    let name = "page-cache".to_owned();
    std::thread::Builder::new().name(name).spawn(move || tell(&file, &positions))?;
    Ok(sender)
}

fn tell(file: &File, positions: &Receiver<u64>) {
    let mut told = Told::default();
    for position in positions {
        for range in told.advice(position) {
            if let Some(length) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
                // Where advice is not taken, all goes on as without.
                let _ = rustix::fs::fadvise(file, range.start, Some(length), Advice::DontNeed);
            }
        }
    }
}

/// Up to where the kernel was told.
#[derive(Debug, Default)]
struct Told {
    begun: u64,
    forgotten: u64,
}

impl Told {
    /// What the kernel is to forget when the reader is at `position`. What is not on the disk yet it starts
    /// to write, and does not forget: so it is told of everything at once, and again of what is not near
    /// any more.
    fn advice(&mut self, position: u64) -> [Range<u64>; 2] {
        let passed = position.saturating_sub(NEAR);
        let (begin, forget) = (self.begun..position, self.forgotten..passed);
        (self.begun, self.forgotten) = (position, passed);
        [begin, forget]
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_told_of_has_passed() {
        let mut told = Told::default();
        let mut check = |position: u64, expected: [Range<u64>; 2]| {
            let expected = expected.map(|of| of.start * MIB..of.end * MIB);
            assert_eq!(told.advice(position * MIB), expected, "{position}");
        };
        check(64, [0..64, 0..0]);
        check(80, [64..80, 0..16]);
        check(96, [80..96, 16..32]);
    }

    #[test]
    fn small_files_are_left_alone() {
        let file = File::from_parts(tempfile::tempfile().unwrap(), "");
        let check = |steps: &[u64], expected: bool| {
            let mut cache = PageCache::default();
            for position in steps {
                cache.is_at(position * MIB, &file);
            }
            assert_eq!(cache.teller.is_some(), expected, "{steps:?}");
        };
        check(&[1, 8, 63], false);
        check(&[64], true);
    }

    #[test]
    fn what_is_forgotten_is_still_in_the_file() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("large");
        let mut bytes = vec![0; 1 << 20];
        let mut written = File::create(&path).unwrap();
        for number in 1..=100_u8 {
            bytes.fill(number);
            written.write_all(&bytes).unwrap();
        }
        for _ in 0..2 {
            let (mut read, mut cache) = (File::open(&path).unwrap(), PageCache::default());
            for number in 1..=100_u8 {
                read.read_exact(&mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == number), "{number}");
                cache.is_at(read.stream_position().unwrap(), &read);
            }
        }
    }
}
