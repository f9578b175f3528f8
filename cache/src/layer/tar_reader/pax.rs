//! Records of PAX headers (POSIX.1-2017, pax, "pax Extended Header Keywords"), GNU's of sparse files
//! among them.

use super::TarError;
use super::field::decimal;

/// PAX records that mean something here.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// Those about a sparse file, of which only pieces are stored.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offset and length, alternating.
    pub(super) numbers: Vec<u64>,
}

impl Records {
    /// Adds the records in `bytes`: `LENGTH KEY=VALUE\n`, one after the other.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        // Each header's own list of pieces begins anew.
        self.sparse.numbers.clear();
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .take(8)
                .position(|byte| *byte == b' ')
                .ok_or(TarError::Pax("a record without a length"))?;
            let length = decimal(&bytes[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length > space + 1 && *length <= bytes.len())
                .ok_or(TarError::Pax("a record with a wrong length"))?;
            let (record, rest) = bytes.split_at(length);
            let record = record[space + 1..]
                .strip_suffix(b"\n")
                .ok_or(TarError::Pax("a record that does not end its line"))?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .filter(|equals| *equals > 0)
                .ok_or(TarError::Pax("a record without a key"))?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let wrong = |what| TarError::Pax(what);
        let name = |value: &[u8]| match value {
            [] => Ok(None),
            _ if value.contains(&0) => Err(wrong("a name with a zero byte")),
            _ => Ok(Some(value.to_vec())),
        };
        let count = |value: &[u8]| match value {
            [] => Ok(None),
            _ => decimal(value).map(Some).ok_or(wrong("a value that is not a number")),
        };
        let id = |value: &[u8]| -> Result<Option<u32>, TarError> {
            let id = count(value)?;
            id.map(|id| u32::try_from(id).map_err(|_| wrong("an owner out of range"))).transpose()
        };
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = count(value)?,
            b"uid" => self.uid = id(value)?,
            b"gid" => self.gid = id(value)?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse.version.0 = count(value)?,
            b"GNU.sparse.minor" => self.sparse.version.1 = count(value)?,
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = count(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != self.sparse.numbers.len().is_multiple_of(2) {
                    return Err(TarError::Sparse("that is out of order"));
                }
                self.sparse.numbers.extend(count(value)?);
            }
            b"GNU.sparse.map" => {
                self.sparse.numbers = value
                    .split(|byte| *byte == b',')
                    .map(|number| decimal(number).ok_or(TarError::Sparse("that is not of numbers")))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err(wrong("an extended attribute without a name"));
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `[-]SECONDS[.FRACTION]`
fn time(value: &[u8]) -> Result<Option<(i64, u32)>, TarError> {
    let wrong = || TarError::Pax("a time that is not a number");
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let seconds = decimal(whole).and_then(|n| i64::try_from(n).ok()).ok_or_else(wrong)?;
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    Ok(Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{blocks, read, refused};

    #[test]
    fn malformed_records_are_refused() {
        let check = |records: &[u8], message: &str| {
            let header = blocks().header(b'x', "pax", records.len() as u64, |_| {}).data(records);
            refused(&header.file("a", b"").end(), message);
        };
        check(b"path=a\n", "without a length");
        check(b"99 path=a\n", "wrong length");
        check(b"3 path=a\n", "does not end its line");
        check(b"10 path=ab", "does not end its line");
        check(b"8 =path\n", "without a key");
        check(b"11 size=-1\n", "not a number");
        check(b"30 size=99999999999999999999\n\n", "not a number");
        check(b"13 path=a\0b\n\n", "zero byte");
        check(b"18446744073709551616 path=a\n", "without a length");
    }

    #[test]
    fn xattrs_keep_any_bytes() {
        let tar = blocks().pax(&[("SCHILY.xattr.user.a", "b=c\nd")]).file("a", b"").end();
        let entries = read(&tar).unwrap();
        assert_eq!(entries[0].0.xattrs, [(b"user.a".to_vec(), b"b=c\nd".to_vec())]);
    }
}
