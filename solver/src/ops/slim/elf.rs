//! What an ELF file says of what it needs: loader, libraries, where to look for them, functions
//! that need files of their own, names and paths among its data.
//!
//! The files are the image's: nothing here trusts a length or an offset, and a file that is a hole
//! of gigabytes takes no memory. What is read of its data is up to `texts`.

mod texts;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader, Sym};
use object::read::{ReadCache, ReadCacheOps, ReadRef};

/// What the file begins with.
pub(super) const MAGIC: &[u8; 4] = b"\x7fELF";

/// The longest text in a program's data that is taken for a path or the name of a library.
const TEXT_MAX: usize = 255;

/// The most bytes of headers, symbols and names that are read of a file; those of the largest
/// browsers have a tenth of it.
const TABLES_MOST: u64 = 128 << 20;
/// The most bytes of its data that are looked through.
const DATA_MOST: u64 = 1 << 30;
/// The most names that are taken from it.
const NAMES_MOST: usize = 100_000;

/// For which machine code is: libraries of others are never loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    /// `e_machine`
    pub(super) machine: u16,
    /// Whether addresses have 64 bits.
    pub(super) is_64: bool,
}

/// What an ELF file says of what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// For which machine.
    pub(super) machine: Machine,
    /// The program that loads it.
    pub(super) interpreter: Option<String>,
    /// The libraries that are linked, in order.
    pub(super) needed: Vec<String>,
    /// Where to look for them: `DT_RUNPATH`, or `DT_RPATH` where there is none.
    pub(super) library_path: Vec<String>,
    /// Functions of others that need files: those of [`FUNCTIONS`].
    pub(super) imports: BTreeSet<&'static str>,
    /// Names of libraries among its data.
    pub(super) library_names: BTreeSet<String>,
    /// Absolute paths among its data.
    pub(super) paths: BTreeSet<String>,
    /// Not all of its data was looked through.
    pub(super) is_cut: bool,
}

/// Functions that need files which nothing else names.
pub(super) const FUNCTIONS: &[&str] = &[
    "SSL_CTX_set_default_verify_paths",
    "X509_STORE_set_default_paths",
    "dlmopen",
    "dlopen",
    "getaddrinfo",
    "getgrgid",
    "getgrgid_r",
    "getgrnam",
    "getgrnam_r",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "gethostbyname",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyname_r",
    "getnameinfo",
    "getprotobyname",
    "getpwnam",
    "getpwnam_r",
    "getpwuid",
    "getpwuid_r",
    "getservbyname",
    "iconv_open",
    "initscr",
    "newlocale",
    "newterm",
    "pam_start",
    "setlocale",
    "setupterm",
    "tgetent",
];

/// Why an ELF file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    /// It is damaged, or larger than such files are.
    #[error("it is no whole ELF file: {0}")]
    Broken(String),
    /// The system refused.
    #[error("cannot read it")]
    Io(#[source] io::Error),
}

impl From<object::read::Error> for ElfError {
    fn from(error: object::read::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Reads an ELF file: its tables, and its data piece by piece. Its code is not read.
pub(super) fn parse(file: &mut dyn ReadSeek) -> Result<Elf, ElfError> {
    let failed = Cell::new(None);
    let cache = ReadCache::new(Source { file: &mut *file, failed: &failed });
    let spent = Cell::new(0);
    let tables = Tables { cache: &cache, spent: &spent };
    let start = tables.read_bytes_at(0, 5).map_err(|()| broken("it is shorter than any"));
    let told = start.and_then(|start| match start[4] {
        elf::ELFCLASS32 => read::<elf::FileHeader32<Endianness>>(tables, false),
        elf::ELFCLASS64 => read::<elf::FileHeader64<Endianness>>(tables, true),
        _ => Err(broken("its class is unknown")),
    });
    drop(cache);
    // A fault of the disk says nothing of the file.
    if let Some(error) = failed.take() {
        return Err(ElfError::Io(error));
    }
    let (mut found, data) = told?;
    texts::read(file, &data, |text| found.add_text(text)).map_err(ElfError::Io)?;
    Ok(found)
}

fn broken(reason: &str) -> ElfError {
    ElfError::Broken(reason.to_owned())
}

/// The tables of a file, of which no more than [`TABLES_MOST`] bytes are read.
#[derive(Clone, Copy)]
struct Tables<'a, 'f> {
    cache: &'a ReadCache<Source<'f>>,
    spent: &'a Cell<u64>,
}

impl<'a> ReadRef<'a> for Tables<'a, '_> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        let spent = self.spent.get().checked_add(size).filter(|spent| *spent <= TABLES_MOST);
        self.spent.set(spent.ok_or(())?);
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

/// What can be read from anywhere.
pub(super) trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// A file that remembers why it could not be read: `object` does not tell.
struct Source<'a> {
    file: &'a mut dyn ReadSeek,
    failed: &'a Cell<Option<io::Error>>,
}

impl Source<'_> {
    fn said<T>(&self, result: io::Result<T>) -> Result<T, ()> {
        result.map_err(|error| {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                self.failed.set(Some(error));
            }
        })
    }
}

impl ReadCacheOps for Source<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        let end = self.file.seek(SeekFrom::End(0));
        self.said(end)
    }

    fn seek(&mut self, position: u64) -> Result<u64, ()> {
        let sought = self.file.seek(SeekFrom::Start(position));
        self.said(sought)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let read = self.file.read(buffer);
        self.said(read)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        let read = self.file.read_exact(buffer);
        self.said(read)
    }
}

/// For which machine the ELF file is that begins with `start`; `None` when it is none.
pub(super) fn machine(start: &[u8]) -> Option<Machine> {
    let head = start.get(..20)?;
    if !head.starts_with(MAGIC) {
        return None;
    }
    let bytes = [head[18], head[19]];
    let machine = if head[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    Some(Machine { machine, is_64: head[4] == elf::ELFCLASS64 })
}

/// What the tables say, and where the data are.
fn read<H: FileHeader<Endian = Endianness>>(
    tables: Tables<'_, '_>,
    is_64: bool,
) -> Result<(Elf, Vec<Range<u64>>), ElfError> {
    let header = H::parse(tables)?;
    let endian = header.endian()?;
    let mut found = Elf {
        machine: Machine { machine: header.e_machine(endian), is_64 },
        interpreter: None,
        needed: Vec::new(),
        library_path: Vec::new(),
        imports: BTreeSet::new(),
        library_names: BTreeSet::new(),
        paths: BTreeSet::new(),
        is_cut: false,
    };
    let segments = header.program_headers(endian, tables)?;
    for segment in segments {
        if let Some(interpreter) = segment.interpreter(endian, tables)? {
            found.interpreter = Some(text(interpreter));
        }
    }
    let file = Loaded::<H> { tables, endian, segments };
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(endian, tables).transpose());
    if let Some(entries) = dynamic {
        found.read_dynamic(&file, entries?)?;
    }
    let length = tables.len().map_err(|()| broken("it has no length"))?;
    let mut data = Vec::new();
    // What has no list of sections is read as a whole: better a name too many.
    let sections = header.sections(endian, tables).ok().filter(|sections| !sections.is_empty());
    let Some(sections) = sections else {
        data.push(0..length.min(DATA_MOST));
        found.is_cut = length > DATA_MOST;
        return Ok((found, data));
    };
    // Texts of Go programs are not separated from each other, and it opens what `base` keeps.
    let is_go = sections.section_by_name(endian, b".go.buildinfo").is_some();
    let mut left = DATA_MOST;
    for (_, section) in sections.enumerate() {
        let flags: u64 = section.sh_flags(endian).into();
        let is_data = section.sh_type(endian) == elf::SHT_PROGBITS
            && flags & u64::from(elf::SHF_ALLOC) != 0
            && flags & u64::from(elf::SHF_EXECINSTR) == 0;
        if !is_data || is_go {
            continue;
        }
        let (start, size) = (section.sh_offset(endian).into(), section.sh_size(endian).into());
        let end = start.checked_add(size).filter(|end| *end <= length);
        let end = end.ok_or_else(|| broken("a section is outside of it"))?;
        found.is_cut |= size > left;
        data.push(start..end.min(start + left));
        left -= size.min(left);
    }
    Ok((found, data))
}

/// A file, and where its addresses are in it.
struct Loaded<'a, 'f, H: FileHeader<Endian = Endianness>> {
    tables: Tables<'a, 'f>,
    endian: Endianness,
    segments: &'a [H::ProgramHeader],
}

impl<'a, H: FileHeader<Endian = Endianness>> Loaded<'a, '_, H> {
    /// The bytes from `address` on: `size` of them, or less if what is loaded with it ends before.
    fn at(&self, address: u64, size: u64) -> Result<Option<&'a [u8]>, ElfError> {
        let place = self.segments.iter().find_map(|segment| {
            if segment.p_type(self.endian) != elf::PT_LOAD {
                return None;
            }
            let start: u64 = segment.p_vaddr(self.endian).into();
            let (offset, loaded) = segment.file_range(self.endian);
            let inside = address.checked_sub(start).filter(|inside| *inside < loaded)?;
            Some((offset.checked_add(inside)?, (loaded - inside).min(size)))
        });
        let Some((offset, size)) = place else { return Ok(None) };
        // What is loaded may be said to end behind the file.
        let length = self.tables.len().unwrap_or(0);
        let size = size.min(length.saturating_sub(offset));
        let bytes = self.tables.read_bytes_at(offset, size);
        bytes.map(Some).map_err(|()| broken("its tables are larger than those of any program"))
    }
}

impl Elf {
    fn read_dynamic<H: FileHeader<Endian = Endianness>>(
        &mut self,
        file: &Loaded<'_, '_, H>,
        entries: &[H::Dyn],
    ) -> Result<(), ElfError> {
        let value = |tag: i64| {
            let entry = entries.iter().find(|entry| entry.tag(file.endian) == tag)?;
            Some(entry.val(file.endian))
        };
        let Some(address) = value(elf::DT_STRTAB) else { return Ok(()) };
        let size = value(elf::DT_STRSZ).unwrap_or(u64::MAX);
        let Some(strings) = file.at(address, size)? else { return Ok(()) };
        let string = |offset: u64| -> Result<String, ElfError> {
            let start = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..));
            let start = start.ok_or_else(|| broken("a name is outside of it"))?;
            Ok(text(start.split(|byte| *byte == 0).next().unwrap_or_default()))
        };
        let (mut run_path, mut old_path) = (None, None);
        for entry in entries {
            let tag = entry.tag(file.endian);
            if tag == elf::DT_NULL {
                break;
            }
            let value = entry.val(file.endian);
            if tag == elf::DT_NEEDED {
                self.needed.push(string(value)?);
            } else if tag == elf::DT_RUNPATH {
                run_path = Some(string(value)?);
            } else if tag == elf::DT_RPATH {
                old_path = Some(string(value)?);
            }
        }
        let path = run_path.or(old_path).unwrap_or_default();
        self.library_path =
            path.split(':').filter(|one| !one.is_empty()).map(str::to_owned).collect();
        if let Some(symbols) = value(elf::DT_SYMTAB) {
            // The table has no length of its own; linkers put the names behind it.
            let size = address.checked_sub(symbols).unwrap_or(u64::MAX);
            let symbols = file.at(symbols, size)?.unwrap_or_default();
            self.read_imports::<H>(symbols, strings, file.endian);
        }
        Ok(())
    }

    fn read_imports<H: FileHeader<Endian = Endianness>>(
        &mut self,
        symbols: &[u8],
        strings: &[u8],
        endian: Endianness,
    ) {
        let count = symbols.len() / size_of::<H::Sym>();
        let Ok((symbols, _)) = object::pod::slice_from_bytes::<H::Sym>(symbols, count) else {
            return;
        };
        for symbol in symbols {
            if symbol.st_shndx(endian) != elf::SHN_UNDEF {
                continue;
            }
            let name = usize::try_from(symbol.st_name(endian)).ok();
            let Some(name) = name.and_then(|offset| strings.get(offset..)) else { continue };
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if let Ok(known) = FUNCTIONS.binary_search_by(|known| known.as_bytes().cmp(name)) {
                self.imports.insert(FUNCTIONS[known]);
            }
        }
    }

    /// Takes names of libraries and absolute paths from a text among its data.
    fn add_text(&mut self, found: &[u8]) {
        let Ok(found) = std::str::from_utf8(found) else { return };
        for word in found.split([':', ';', ',', ' ', '"', '\'', '=', '\n']) {
            if !(4..=TEXT_MAX).contains(&word.len()) {
                continue;
            }
            let names = if word.starts_with('/') && word.bytes().all(is_of_path) {
                &mut self.paths
            } else if is_library_name(word) {
                &mut self.library_names
            } else {
                continue;
            };
            let word = word.trim_end_matches('/');
            if names.len() < NAMES_MOST {
                names.insert(word.to_owned());
            } else if !names.contains(word) {
                self.is_cut = true;
            }
        }
    }
}

/// Whether `name` is what shared libraries are called: `libssl.so.3`.
fn is_library_name(name: &str) -> bool {
    let Some((stem, version)) = name.split_once(".so") else { return false };
    stem.starts_with("lib")
        && !name.contains('/')
        && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte))
        && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

fn is_of_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/._-+@~".contains(&byte)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A small ELF file for x86-64: a header, one segment that loads all of it, what is dynamic in
    /// it, and no list of sections.
    #[derive(Clone, Copy, Debug, Default)]
    pub(in crate::ops::slim) struct Program<'a> {
        pub(in crate::ops::slim) interpreter: &'a str,
        pub(in crate::ops::slim) needed: &'a [&'a str],
        pub(in crate::ops::slim) run_path: &'a str,
        pub(in crate::ops::slim) imports: &'a [&'a str],
        /// Texts among its data.
        pub(in crate::ops::slim) data: &'a [&'a str],
    }

    impl Program<'_> {
        pub(in crate::ops::slim) fn bytes(&self) -> Vec<u8> {
            let mut strings = vec![0];
            let mut string = |text: &str| {
                let at = strings.len() as u64;
                strings.extend(text.as_bytes());
                strings.push(0);
                at
            };
            let needed: Vec<u64> = self.needed.iter().map(|name| string(name)).collect();
            let imports: Vec<u64> = self.imports.iter().map(|name| string(name)).collect();
            let run_path = (!self.run_path.is_empty()).then(|| string(self.run_path));
            let count = 2 + usize::from(!self.interpreter.is_empty());
            let interpreter_at = 64 + 56 * count as u64;
            let dynamic_at = interpreter_at + self.interpreter.len() as u64 + 1;
            let entries = needed.len() + usize::from(run_path.is_some()) + 3;
            let symbols_at = dynamic_at + 16 * entries as u64;
            let strings_at = symbols_at + 24 * (imports.len() as u64 + 1);
            let mut body = self.interpreter.as_bytes().to_vec();
            body.push(0);
            let mut entry = |tag: i64, value: u64| {
                body.extend(tag.to_le_bytes());
                body.extend(value.to_le_bytes());
            };
            for at in &needed {
                entry(elf::DT_NEEDED, *at);
            }
            if let Some(at) = &run_path {
                entry(elf::DT_RUNPATH, *at);
            }
            entry(elf::DT_STRTAB, strings_at);
            entry(elf::DT_SYMTAB, symbols_at);
            entry(elf::DT_NULL, 0);
            body.extend([0; 24]);
            for name in imports {
                body.extend(u32::try_from(name).unwrap().to_le_bytes());
                body.extend([0x12, 0, 0, 0]);
                body.extend([0; 16]);
            }
            body.extend(&strings);
            for text in self.data {
                body.extend(text.as_bytes());
                body.push(0);
            }
            let size = interpreter_at + body.len() as u64;
            let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
            bytes.extend([3, 0, 62, 0, 1, 0, 0, 0]);
            for number in [0_u64, 64, 0] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend([0; 4]);
            let count = u16::try_from(count).unwrap();
            for number in [64_u16, 56, count, 0, 0, 0] {
                bytes.extend(number.to_le_bytes());
            }
            let mut segment = |kind: u32, at: u64, size: u64| {
                bytes.extend(kind.to_le_bytes());
                bytes.extend(4_u32.to_le_bytes());
                for number in [at, at, at, size, size, 1] {
                    bytes.extend(number.to_le_bytes());
                }
            };
            segment(1, 0, size);
            segment(2, dynamic_at, 16 * entries as u64);
            if !self.interpreter.is_empty() {
                segment(3, interpreter_at, self.interpreter.len() as u64 + 1);
            }
            bytes.extend(body);
            bytes
        }
    }

    fn parse(bytes: &[u8]) -> Result<Elf, ElfError> {
        super::parse(&mut io::Cursor::new(bytes))
    }

    #[test]
    fn a_program_that_is_mostly_a_hole_takes_no_memory() {
        let mut file = tempfile::tempfile().unwrap();
        let program =
            Program { needed: &["libc.so.6"], data: &["/opt/data"], ..Program::default() };
        io::Write::write_all(&mut file, &program.bytes()).unwrap();
        file.set_len(200 << 30).unwrap();
        let elf = super::parse(&mut file).unwrap();
        assert_eq!((&*elf.needed, elf.is_cut), (&["libc.so.6".to_owned()][..], true));
        assert!(elf.paths.contains("/opt/data"));
        // Symbols that fill the hole.
        let mut bytes = program.bytes();
        let size = 64 + 32;
        bytes[size..size + 8].copy_from_slice(&(150_u64 << 30).to_le_bytes());
        let symbols = bytes.windows(8).position(|w| w == elf::DT_STRTAB.to_le_bytes()).unwrap() + 8;
        bytes[symbols..symbols + 8].copy_from_slice(&(100_u64 << 30).to_le_bytes());
        io::Seek::rewind(&mut file).unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let error = super::parse(&mut file).unwrap_err().to_string();
        assert!(error.contains("larger than those of any program"), "{error}");
    }

    #[test]
    fn a_faulty_disk_is_not_a_broken_file() {
        struct Faulty(io::Cursor<Vec<u8>>);
        impl Read for Faulty {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0.position() >= 64 {
                    return Err(io::Error::other("fault"));
                }
                Read::read(&mut self.0, buffer)
            }
        }
        impl Seek for Faulty {
            fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
                Seek::seek(&mut self.0, to)
            }
        }
        let mut faulty = Faulty(io::Cursor::new(Program::default().bytes()));
        assert!(matches!(super::parse(&mut faulty), Err(ElfError::Io(_))));
    }

    #[test]
    fn a_small_program_says_what_it_needs() {
        let program = Program {
            interpreter: "/lib64/ld-linux-x86-64.so.2",
            needed: &["libssl.so.3", "libc.so.6"],
            run_path: "$ORIGIN/../lib:/opt/lib",
            imports: &["iconv_open", "printf"],
            data: &["/usr/lib/ssl", "libidn2.so.0", "PATH=/a:/b/c"],
        };
        let elf = parse(&program.bytes()).unwrap();
        assert_eq!(elf.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(elf.needed, ["libssl.so.3", "libc.so.6"]);
        assert_eq!(elf.library_path, ["$ORIGIN/../lib", "/opt/lib"]);
        assert_eq!(elf.imports, BTreeSet::from(["iconv_open"]));
        assert!(elf.paths.contains("/usr/lib/ssl") && elf.paths.contains("/b/c"));
        assert!(elf.library_names.contains("libidn2.so.0"));
    }

    #[test]
    fn the_functions_are_sorted() {
        assert!(FUNCTIONS.is_sorted());
    }

    #[test]
    fn this_test_says_what_it_needs() {
        let own = fs_err::read(std::env::current_exe().unwrap()).unwrap();
        let elf = parse(&own).unwrap();
        assert!(elf.needed.iter().any(|name| name.starts_with("libc.so")), "{:?}", elf.needed);
        assert!(elf.interpreter.unwrap().contains("/ld-"));
        assert!(elf.imports.contains("getaddrinfo") || elf.imports.contains("getpwuid_r"));
        assert_eq!(machine(&own), Some(elf.machine));
        assert!(elf.paths.contains("/etc/ssl/certs/for-this-test"), "{}", marker());
    }

    /// A path among the data of this program.
    fn marker() -> &'static str {
        std::hint::black_box("\0/etc/ssl/certs/for-this-test\0")
    }

    #[test]
    fn a_broken_file_is_an_error_and_never_a_panic() {
        let own = fs_err::read(std::env::current_exe().unwrap()).unwrap();
        for length in [0, 3, 4, 5, 16, 20, 63, 64, 100, 1000, 4096] {
            let _ = parse(&own[..length.min(own.len())]);
        }
        assert!(parse(b"\x7fELF").is_err());
        assert!(parse(&own[..64]).is_err());
        for position in 0..512 {
            let mut damaged = own[..own.len().min(1 << 16)].to_vec();
            damaged[position] ^= 0xff;
            let _ = parse(&damaged);
        }
    }

    #[test]
    fn names_of_libraries() {
        let check = |name: &str, expected: bool| assert_eq!(is_library_name(name), expected);
        check("libssl.so.3", true);
        check("libnss_%s.so", false);
        check("libidn2.so.0", true);
        check("libstdc++.so.6", true);
        check("/usr/lib/libc.so.6", false);
        check("libfoo.sources", false);
    }
}
