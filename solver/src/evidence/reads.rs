//! Which paths a step read, and a short digest of what each was: kept beside the tree that came of
//! it, for who wants to know which of them changed. Nothing is decided by it.

/// Paths and short digests, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    paths: Vec<(Vec<u8>, Short)>,
}

/// The beginning of a digest: enough to tell two versions of a file apart.
type Short = [u8; 8];

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Changed,
    Added,
    Removed,
}

/// What begins the file: a name and the version of what follows.
const MAGIC: &[u8; 16] = b"rbuild reads 1\n\0";

impl Reads {
    /// Takes paths in any order; of two equal ones, one is kept.
    pub fn new(mut paths: Vec<(Vec<u8>, Short)>) -> Self {
        paths.sort_unstable();
        paths.dedup_by(|a, b| a.0 == b.0);
        Self { paths }
    }

    /// What both read.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.paths.append(&mut other.paths);
        Self::new(self.paths)
    }

    /// Reads what [`Reads::encoded`] wrote; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut paths = Vec::new();
        while !rest.is_empty() {
            let (short, after) = rest.split_first_chunk::<8>()?;
            let (length, after) = after.split_first_chunk::<2>()?;
            let (path, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
            paths.push((path.to_vec(), *short));
            rest = after;
        }
        Some(Self { paths })
    }

    /// All of it as bytes. Paths that are longer than Linux allows are left out.
    pub fn encoded(&self) -> Vec<u8> {
        let length = self.paths.iter().map(|(path, _)| path.len() + 10).sum::<usize>();
        let mut bytes = Vec::with_capacity(MAGIC.len() + length);
        bytes.extend(MAGIC);
        for (path, short) in &self.paths {
            let Ok(length) = u16::try_from(path.len()) else { continue };
            bytes.extend(short);
            bytes.extend(length.to_le_bytes());
            bytes.extend(path);
        }
        bytes
    }

    /// What became of the paths since `old`, sorted by path.
    pub(super) fn since(&self, old: &Self) -> Vec<(String, Change)> {
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let mut changes = Vec::new();
        let (mut before, mut now) = (old.paths.iter().peekable(), self.paths.iter().peekable());
        loop {
            match (before.peek(), now.peek()) {
                (Some((a, x)), Some((b, y))) if a == b => {
                    if x != y {
                        changes.push((shown(a), Change::Changed));
                    }
                    before.next();
                    now.next();
                }
                (Some((a, _)), Some((b, _))) if a < b => {
                    changes.push((shown(a), Change::Removed));
                    before.next();
                }
                (_, Some((b, _))) => {
                    changes.push((shown(b), Change::Added));
                    now.next();
                }
                (Some((a, _)), None) => {
                    changes.push((shown(a), Change::Removed));
                    before.next();
                }
                (None, None) => return changes,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(paths: &[(&str, u8)]) -> Reads {
        Reads::new(paths.iter().map(|(path, n)| (path.as_bytes().to_vec(), [*n; 8])).collect())
    }

    #[test]
    fn what_became_of_each_path() {
        let old = reads(&[("b", 1), ("a", 1), ("c", 1)]);
        let new = reads(&[("a", 1), ("b", 2), ("d", 1)]);
        let expected = [("b", Change::Changed), ("c", Change::Removed), ("d", Change::Added)];
        let expected = expected.map(|(path, change)| (path.to_owned(), change));
        assert_eq!(new.since(&old), expected);
        assert_eq!(new.since(&new), []);
        assert_eq!(Reads::default().since(&old).len(), 3);
    }

    #[test]
    fn what_was_written_is_read() {
        let some = reads(&[("a", 1), ("dir/b", 2)]);
        assert_eq!(Reads::parse(&some.encoded()), Some(some.clone()));
        assert_eq!(Reads::parse(b""), None);
        assert_eq!(Reads::parse(&some.encoded()[..30]), None);
    }
}
