//! Tars put together by hand, and what is read of them.

use tar::Header;

use super::{BLOCK, FilePiece, TarEntry, TarError, TarReader};

/// A tar's blocks, written by hand so that they can be wrong.
#[derive(Default)]
pub(super) struct Blocks(pub(super) Vec<u8>);

impl Blocks {
    pub(super) fn header(
        mut self,
        kind: u8,
        path: &str,
        size: u64,
        change: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_size(size);
        header.as_mut_bytes()[156] = kind;
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.header(b'0', path, data.len() as u64, |_| {}).data(data)
    }

    pub(super) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            text.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        self.header(b'x', "pax", text.len() as u64, |_| {}).data(&text)
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }
}

pub(super) fn blocks() -> Blocks {
    Blocks::default()
}

/// All entries with their bytes.
pub(super) fn read(tar: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let (mut data, mut buffer) = (Vec::new(), [0; 100]);
        loop {
            match reader.read_piece(&mut buffer)? {
                FilePiece::Data(length) => data.extend_from_slice(&buffer[..length]),
                FilePiece::Hole(length) => {
                    data.resize(data.len() + usize::try_from(length).unwrap(), 0);
                }
                FilePiece::End => break,
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

pub(super) fn paths(tar: &[u8]) -> Vec<String> {
    let path = |(entry, _): (TarEntry, Vec<u8>)| String::from_utf8(entry.path).unwrap();
    read(tar).unwrap().into_iter().map(path).collect()
}

pub(super) fn refused(tar: &[u8], message: &str) {
    let error = read(tar).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}
