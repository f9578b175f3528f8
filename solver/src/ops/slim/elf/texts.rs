//! The texts among a program's data: what stands between two zeros and could hold a path or the name
//! of a library. Data is read piece by piece, so that it may have any size.

use std::io::{self, Read as _, SeekFrom};
use std::ops::Range;

use memchr::{memchr, memchr2, memrchr};

use super::{ReadSeek, TEXT_MAX};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// The longest text that is looked at: one of several names.
const LONGEST: usize = 4 * TEXT_MAX;
/// What tables and holes are full of: many are passed over at once.
const ZEROS: [u8; 1024] = [0; 1024];
/// The shortest one that can be a path.
const SHORTEST: usize = 4;

/// Gives `each` the texts of `ranges` of `file`.
pub(super) fn read(
    file: &mut dyn ReadSeek,
    ranges: &[Range<u64>],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(PIECE + LONGEST);
    for range in ranges {
        file.seek(SeekFrom::Start(range.start))?;
        let mut left = range.end - range.start;
        // What is read belongs to a text that is too long already.
        let mut is_long = false;
        buffer.clear();
        while left > 0 {
            let piece = left.min(PIECE as u64);
            let read = (&mut *file).take(piece).read_to_end(&mut buffer)?;
            left = if read == 0 { 0 } else { left - read as u64 };
            let end = if left == 0 { Some(buffer.len()) } else { memrchr(0, &buffer) };
            let Some(end) = end else {
                is_long |= buffer.len() > LONGEST;
                if is_long {
                    buffer.clear();
                }
                continue;
            };
            let mut texts = split(&buffer[..end]);
            if is_long {
                texts.next();
            }
            texts.filter(|text| is_worth_a_look(text)).for_each(&mut each);
            buffer.drain(..end);
            is_long = buffer.len() > LONGEST;
            if is_long {
                buffer.clear();
            }
        }
    }
    Ok(())
}

/// What stands between zeros.
fn split(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while data.starts_with(&ZEROS) {
            data = &data[ZEROS.len()..];
        }
        if data.is_empty() {
            return None;
        }
        let end = memchr(0, data).unwrap_or(data.len());
        let text = &data[..end];
        data = data.get(end + 1..).unwrap_or_default();
        Some(text)
    })
}

/// Whether there can be a path in it or the name of a library: most data is no text at all.
fn is_worth_a_look(text: &[u8]) -> bool {
    (SHORTEST..=LONGEST).contains(&text.len()) && memchr2(b'/', b'.', text).is_some()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn texts(data: &[u8], ranges: &[Range<u64>]) -> Vec<String> {
        let mut found = Vec::new();
        let add = |text: &[u8]| found.push(String::from_utf8_lossy(text).into_owned());
        read(&mut Cursor::new(data), ranges, add).unwrap();
        found
    }

    #[test]
    fn what_stands_between_zeros_is_found() {
        let check = |data: &[u8], range: Range<u64>, expected: &[&str]| {
            assert_eq!(texts(data, &[range]), expected);
        };
        check(b"/usr\0none\0a.so", 0..15, &["/usr", "a.so"]);
        check(b"/usr\0none\0a.so", 1..4, &[]);
        check(b"/usr/x\0/etc/y", 0..10, &["/usr/x"]);
        check(b"\0\0/a/b\0\0", 0..8, &["/a/b"]);
        check(b"/usr", 0..100, &["/usr"]);
    }

    #[test]
    fn pieces_do_not_cut_texts_and_long_ones_are_left_out() {
        let mut data = vec![0; PIECE - 3];
        data.extend(b"/over/the/edge\0");
        data.extend(vec![b'/'; 3 * PIECE]);
        data.extend(b"\0/after/it\0");
        data.resize(7 * PIECE, b'.');
        let end = data.len() as u64;
        assert_eq!(texts(&data, &[0..end, 0..4]), ["/over/the/edge", "/after/it"]);
    }
}
