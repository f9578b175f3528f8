//! Large files that pass by once, and what they leave in the kernel's page cache.
//!
//! An archive of gigabytes is written and then left alone. Kept in memory it would push out what others
//! read; and memory that was not in use has its price on virtual machines, whose host hands out a page when
//! it is first touched: 1.7 s of a processor for each gigabyte on the machine of `docs/performance.md`, as
//! against 0.3 s when a file's first pages are used again for its later ones. Layers are not treated so:
//! who pushes them reads them again, and pushing took longer.
//!
//! So the kernel is told early to write what is new, and to forget what has passed and is a good deal
//! behind. This is advice: nothing waits for it, a disk that cannot follow keeps its pages in memory, and
//! file systems without a disk ignore it. Small files never get so far.

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

/// Keeps most of one large file out of memory, beside whoever writes it.
///
/// It has a thread of its own once the file is large, since the kernel makes who starts to write wait
/// when the disk has a lot to do.
#[derive(Debug, Default)]
pub struct PageCache {
    /// The position that was told of last.
    told: u64,
    teller: Option<SyncSender<u64>>,
}

impl PageCache {
    /// For a file at its start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is told that all before `position` was written to the file that `file` opens. It is
    /// asked once, for a file that is open already.
    pub fn is_at(&mut self, position: u64, file: impl FnOnce() -> io::Result<File>) {
        // What was taken back will be written again.
        self.told = self.told.min(position);
        if position < NEAR || position - self.told < STEP {
            return;
        }
        if self.teller.is_none() {
            self.teller = teller(file).ok();
        }
        // When it is busy, it is told of more the next time.
        if self.teller.as_ref().is_some_and(|teller| teller.try_send(position).is_ok()) {
            self.told = position;
        }
    }
}

fn teller(file: impl FnOnce() -> io::Result<File>) -> io::Result<SyncSender<u64>> {
    let file = file()?;
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
    /// What the kernel is to forget when the file is at `position`. What is not on the disk yet it starts
    /// to write, and does not forget: so it is told of everything that was written at once, and again
    /// when it is not near any more.
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
        let check = |steps: &[u64], expected: bool| {
            let mut cache = PageCache::new();
            for position in steps {
                cache.is_at(position * MIB, || {
                    tempfile::tempfile().map(|file| File::from_parts(file, ""))
                });
            }
            assert_eq!(cache.teller.is_some(), expected, "{steps:?}");
        };
        check(&[1, 8, 63], false);
        check(&[60, 70, 3, 63], true);
        check(&[64], true);
    }

    #[test]
    fn what_is_forgotten_is_still_in_the_file() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("large");
        let (mut written, mut bytes) = (File::create(&path).unwrap(), vec![0; 1 << 20]);
        let mut cache = PageCache::new();
        for number in 1..=100_u8 {
            bytes.fill(number);
            written.write_all(&bytes).unwrap();
            let position = written.stream_position().unwrap();
            cache.is_at(position, || written.try_clone());
        }
        let mut read = File::open(&path).unwrap();
        for number in 1..=100_u8 {
            read.read_exact(&mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == number), "{number}");
        }
    }
}
