//! Sparse files, of which only pieces are stored, in the four forms that GNU tar has written (GNU tar
//! manual, "Storing Sparse Files").

use std::io::Read;

use tar::Header;

use super::field::{decimal, number};
use super::pax::SparseRecords;
use super::{BLOCK, MAX_EXTENSION, Piece, TarError, TarReader};

/// All holes of one tar together are no larger, in bytes: they cost nothing to send, and hours to
/// hash.
const MAX_HOLES: u64 = 16 << 30;

impl<R: Read> TarReader<R> {
    /// GNU's first format: the map begins in the header and goes on in blocks behind it.
    pub(super) fn old_sparse(&mut self, header: &Header, stored: u64) -> Result<u64, TarError> {
        let gnu = header.as_gnu().ok_or(TarError::Sparse("in a header that is not GNU's"))?;
        let mut numbers = Vec::new();
        let mut add = |offset: &[u8], length: &[u8]| -> Result<(), TarError> {
            if offset[0] != 0 || length[0] != 0 {
                numbers.push(number(offset, "sparse offset")?);
                numbers.push(number(length, "sparse length")?);
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(|piece| add(&piece.offset, &piece.numbytes))?;
        let mut more = gnu.is_extended();
        let mut blocks = 0;
        while more {
            let block = self.block()?.ok_or(TarError::Truncated)?;
            block[..504].chunks(24).try_for_each(|piece| add(&piece[..12], &piece[12..]))?;
            more = block[504] != 0;
            blocks += BLOCK as u64;
            if blocks > MAX_EXTENSION {
                return Err(TarError::TooLarge { what: "a sparse map", limit: MAX_EXTENSION });
            }
        }
        let size = number(&gnu.realsize, "real size")?;
        self.begin_sparse(&numbers, size, stored, stored)
    }

    /// GNU's last format: the map is the first of the entry's data, in decimal lines.
    pub(super) fn sparse_in_data(
        &mut self,
        sparse: &SparseRecords,
        stored: u64,
    ) -> Result<u64, TarError> {
        let mut text = Vec::new();
        let mut lines = 0;
        let mut wanted = 1;
        let mut numbers = Vec::new();
        let mut line_start = 0;
        while lines < wanted {
            if text.len() as u64 >= MAX_EXTENSION {
                return Err(TarError::TooLarge { what: "a sparse map", limit: MAX_EXTENSION });
            }
            if (text.len() as u64) >= stored {
                return Err(TarError::Sparse("without an end"));
            }
            text.extend_from_slice(&self.block()?.ok_or(TarError::Truncated)?);
            while lines < wanted
                && let Some(length) = text[line_start..].iter().position(|byte| *byte == b'\n')
            {
                let value = decimal(&text[line_start..line_start + length])
                    .ok_or(TarError::Sparse("that is not of numbers"))?;
                line_start += length + 1;
                if lines == 0 {
                    wanted = value
                        .checked_mul(2)
                        .and_then(|n| n.checked_add(1))
                        .ok_or(TarError::Sparse("that is endless"))?;
                } else {
                    numbers.push(value);
                }
                lines += 1;
            }
        }
        let size = sparse.size.ok_or(TarError::Sparse("without a size"))?;
        let map = text.len() as u64;
        let rest = stored.checked_sub(map).ok_or(TarError::Sparse("longer than its entry"))?;
        self.begin_sparse(&numbers, size, rest, rest)
    }

    /// Begins a file of which only pieces are stored; returns its whole size.
    pub(super) fn begin_sparse(
        &mut self,
        numbers: &[u64],
        size: u64,
        stored: u64,
        in_stream: u64,
    ) -> Result<u64, TarError> {
        if numbers.len() % 2 == 1 {
            return Err(TarError::Sparse("that ends in an offset"));
        }
        let (mut pieces, mut position, mut data, mut holes) = (Vec::new(), 0_u64, 0_u64, 0_u64);
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            let hole = offset.checked_sub(position).ok_or(TarError::Sparse("that overlaps"))?;
            let end = offset.checked_add(length).filter(|end| *end <= size);
            position = end.ok_or(TarError::Sparse("that reaches over the file's end"))?;
            holes += hole;
            data += length;
            pieces.extend([Piece::Hole(hole), Piece::Data(length)]);
        }
        if data != stored {
            return Err(TarError::Sparse("of another size than its data"));
        }
        pieces.push(Piece::Hole(size - position));
        holes += size - position;
        self.holes = self.holes.saturating_add(holes);
        if self.holes > MAX_HOLES {
            return Err(TarError::TooLarge { what: "holes", limit: MAX_HOLES });
        }
        self.begin(in_stream, pieces);
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{blocks, refused};

    #[test]
    fn wrong_maps_are_refused() {
        let check = |map: &str, message: &str| {
            let records = [("GNU.sparse.size", "10"), ("GNU.sparse.map", map)];
            refused(&blocks().pax(&records).file("a", b"xx").end(), message);
        };
        check("0", "ends in an offset");
        check("0,1,0,1", "overlaps");
        check("9,2", "over the file's end");
        check("0,1", "another size");
        check("0,x", "not of numbers");
    }
}
