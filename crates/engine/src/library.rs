//! Finding the ONNX Runtime library, and telling why a file cannot be it before it is loaded.
//!
//! The dynamic loader says "No such file" of a library for another machine, and mapping a
//! half-written one can end in SIGBUS. So the ELF header and the extent of its segments are read
//! first; what passes here is loaded, what does not gets an error of its own. Reading goes through
//! an ordinary file only: a pipe or a device would block for ever.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::EngineError;

/// The oldest ONNX Runtime that works.
pub const MINIMUM_VERSION: &str = "1.17";

/// The environment variable that names the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

const FILE_NAME: &str = "libonnxruntime.so";

/// The most program headers that are read of a library; real ones have about ten.
const MAX_PROGRAM_HEADERS: u16 = 256;

/// The library to load: `chosen` where given, else the one `ORT_DYLIB_PATH` names, else the first
/// usable one in `/usr/lib/espalier`, `/usr/lib/<multiarch>`, `/usr/lib`, `/usr/local/lib` and the
/// folder of the running program, as `libonnxruntime.so` or with a version behind it (the highest
/// first).
///
/// # Errors
/// The one that is named is not usable (there is no falling back from it), or none is found; the
/// text says where it looked.
pub fn find_library(chosen: Option<&Path>) -> Result<PathBuf, EngineError> {
    let variable = std::env::var_os(LIBRARY_VARIABLE);
    find(chosen, variable.as_deref(), &usual_folders())
}

/// Checks that `path` is a whole shared library for this machine, without loading it.
///
/// # Errors
/// It is missing, not readable, no regular file, no ELF file, not a shared library, for another
/// machine, or cut short.
pub fn check_library(path: &Path) -> Result<(), EngineError> {
    inspect(path).map_err(|problem| {
        EngineError::library(format!(
            "{} cannot be the ONNX Runtime library: {problem} (wanted: ONNX Runtime {MINIMUM_VERSION} or later for {})",
            path.display(),
            std::env::consts::ARCH,
        ))
    })
}

fn find(
    chosen: Option<&Path>,
    variable: Option<&OsStr>,
    folders: &[PathBuf],
) -> Result<PathBuf, EngineError> {
    if let Some(path) = chosen {
        check_library(path)?;
        return Ok(path.to_path_buf());
    }
    if let Some(value) = variable.filter(|v| !v.is_empty()) {
        let path = PathBuf::from(value);
        check_library(&path)
            .map_err(|e| EngineError::library(format!("{LIBRARY_VARIABLE} names a file: {e}")))?;
        return Ok(path);
    }
    search(folders)
}

fn search(folders: &[PathBuf]) -> Result<PathBuf, EngineError> {
    let mut unusable = None;
    for path in folders.iter().flat_map(|folder| candidates(folder)) {
        match check_library(&path) {
            Ok(()) => return Ok(path),
            Err(error) => unusable = unusable.or(Some(error)),
        }
    }
    Err(unusable.unwrap_or_else(|| {
        let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        EngineError::library(format!(
            "no ONNX Runtime library ({FILE_NAME}, {MINIMUM_VERSION} or later): looked in {}; name one in the configuration or in {LIBRARY_VARIABLE}",
            looked.join(", ")
        ))
    }))
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib/espalier")];
    folders.extend(multiarch().map(|triple| Path::new("/usr/lib").join(triple)));
    folders.extend([PathBuf::from("/usr/lib"), PathBuf::from("/usr/local/lib")]);
    let program = std::env::current_exe().ok();
    folders.extend(program.as_deref().and_then(Path::parent).map(Path::to_path_buf));
    folders
}

/// Debian's name for this machine.
const fn multiarch() -> Option<&'static str> {
    if cfg!(target_arch = "x86_64") {
        Some("x86_64-linux-gnu")
    } else if cfg!(target_arch = "aarch64") {
        Some("aarch64-linux-gnu")
    } else if cfg!(target_arch = "arm") {
        Some("arm-linux-gnueabihf")
    } else if cfg!(target_arch = "riscv64") {
        Some("riscv64-linux-gnu")
    } else {
        None
    }
}

/// The files in `folder` that bear the library's name: without a version first, then the highest.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((version_of(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    found.sort_by(|(a, _), (b, _)| a.is_empty().cmp(&b.is_empty()).then(a.cmp(b)).reverse());
    found.into_iter().map(|(_, path)| path).collect()
}

/// The numbers behind the library's name; empty where there are none, `None` for another file.
fn version_of(file_name: &str) -> Option<Vec<u32>> {
    let rest = file_name.strip_prefix(FILE_NAME)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    rest.strip_prefix('.')?.split('.').map(|number| number.parse().ok()).collect()
}

fn inspect(path: &Path) -> Result<(), String> {
    // Metadata first: opening a named pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(|e| format!("it cannot be read: {e}"))?;
    if metadata.is_dir() {
        return Err("it is a directory".into());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut file = File::open(path).map_err(|e| format!("it cannot be read: {e}"))?;
    if cfg!(not(target_os = "linux")) {
        return Ok(());
    }
    let header = read_header(&mut file)?;
    header.check()?;
    let needed = extent(&mut file, &header)?;
    if needed > metadata.len() {
        return Err(format!(
            "it is cut short: it has {} bytes and its segments reach to {needed}",
            metadata.len()
        ));
    }
    Ok(())
}

/// The parts of an ELF header that decide whether the loader would take the file.
struct ElfHeader {
    wide: bool,
    little_endian: bool,
    kind: u16,
    machine: u16,
    program_headers: u64,
    program_header_size: u16,
    program_header_count: u16,
}

const SHARED_OBJECT: u16 = 3;
const LOADABLE_SEGMENT: u32 = 1;

fn read_header(file: &mut File) -> Result<ElfHeader, String> {
    let mut start = Vec::with_capacity(64);
    file.take(64).read_to_end(&mut start).map_err(|e| format!("it cannot be read: {e}"))?;
    if start.is_empty() {
        return Err("it is empty".into());
    }
    if !start.starts_with(b"\x7fELF") {
        return Err("it is not an ELF file".into());
    }
    let wide = start.get(4) == Some(&2);
    if start.len() < if wide { 64 } else { 52 } {
        return Err("it is cut short inside its ELF header".into());
    }
    let little_endian = start[5] == 1;
    let field = Fields { bytes: &start, little_endian };
    let (table, sizes) = if wide { (field.u64(32), 54) } else { (u64::from(field.u32(28)), 42) };
    Ok(ElfHeader {
        wide,
        little_endian,
        kind: field.u16(16),
        machine: field.u16(18),
        program_headers: table,
        program_header_size: field.u16(sizes),
        program_header_count: field.u16(sizes + 2),
    })
}

impl ElfHeader {
    fn check(&self) -> Result<(), String> {
        let here = this_machine();
        let name = machine_name(self.machine);
        if here.is_some_and(|machine| machine != self.machine) {
            return Err(format!("it is an ELF file for {name}, not for this machine"));
        }
        if self.wide != cfg!(target_pointer_width = "64")
            || self.little_endian != cfg!(target_endian = "little")
        {
            return Err(format!(
                "it is a {}-bit {}-endian ELF file, which this machine does not run",
                if self.wide { 64 } else { 32 },
                if self.little_endian { "little" } else { "big" },
            ));
        }
        if self.kind != SHARED_OBJECT {
            return Err(format!("it is an ELF file but not a shared library (type {})", self.kind));
        }
        let smallest = if self.wide { 56 } else { 32 };
        if self.program_header_count == 0
            || self.program_header_count > MAX_PROGRAM_HEADERS
            || self.program_header_size < smallest
        {
            return Err("its ELF program headers are damaged".into());
        }
        Ok(())
    }
}

/// The length a file must have to hold all of its loadable segments.
fn extent(file: &mut File, header: &ElfHeader) -> Result<u64, String> {
    let size = usize::from(header.program_header_size);
    let mut table = vec![0; size * usize::from(header.program_header_count)];
    file.seek(SeekFrom::Start(header.program_headers))
        .and_then(|_| file.read_exact(&mut table))
        .map_err(|_| "it is cut short inside its ELF program headers".to_owned())?;
    let mut needed = 0;
    for bytes in table.chunks_exact(size) {
        let field = Fields { bytes, little_endian: header.little_endian };
        if field.u32(0) != LOADABLE_SEGMENT {
            continue;
        }
        let (offset, length) = if header.wide {
            (field.u64(8), field.u64(32))
        } else {
            (u64::from(field.u32(4)), u64::from(field.u32(16)))
        };
        needed = needed.max(offset.saturating_add(length));
    }
    Ok(needed)
}

/// Numbers inside a structure whose length was checked; beyond its end they read as 0.
struct Fields<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        if let Some(bytes) = self.bytes.get(at..at + N) {
            field.copy_from_slice(bytes);
        }
        if !self.little_endian {
            field.reverse();
        }
        field
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// `e_machine` of this program; `None` where it is not known here.
const fn this_machine() -> Option<u16> {
    if cfg!(target_arch = "x86_64") {
        Some(62)
    } else if cfg!(target_arch = "aarch64") {
        Some(183)
    } else if cfg!(target_arch = "arm") {
        Some(40)
    } else if cfg!(target_arch = "x86") {
        Some(3)
    } else if cfg!(target_arch = "riscv64") {
        Some(243)
    } else {
        None
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        other => format!("machine number {other}"),
    }
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A shared library as far as its headers tell: one loadable segment of `segment` bytes.
    fn elf(machine: u16, kind: u16, segment: u64) -> Vec<u8> {
        let mut bytes = vec![0_u8; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&1_u32.to_le_bytes());
        bytes[64 + 32..64 + 40].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    fn here() -> u16 {
        this_machine().unwrap()
    }

    fn elsewhere() -> u16 {
        if here() == 183 { 62 } else { 183 }
    }

    fn problem(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, bytes).unwrap();
        let text = check_library(&path).unwrap_err().to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("ONNX Runtime 1.17 or later"), "{text}");
        text
    }

    #[test]
    fn each_unusable_file_gets_an_error_of_its_own() {
        assert!(problem(b"").contains("it is empty"));
        assert!(problem(b"#!/bin/sh\n").contains("not an ELF file"));
        assert!(problem(&elf(here(), 3, 0)[..40]).contains("cut short inside its ELF header"));
        assert!(problem(&elf(here(), 3, 0)[..100]).contains("cut short inside its ELF program"));
        assert!(problem(&elf(here(), 2, 0)).contains("not a shared library"));
        assert!(problem(&elf(elsewhere(), 3, 0)).contains("not for this machine"));
        assert!(problem(&elf(40, 3, 0)).contains("for arm, not for this machine"));
        assert!(problem(&elf(here(), 3, 1 << 20)).contains("segments reach to 1048576"));
        assert!(problem(&elf(here(), 3, u64::MAX)).contains("cut short"));
    }

    #[test]
    fn a_damaged_header_is_told_not_followed() {
        let mut no_table = elf(here(), 3, 0);
        no_table[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(problem(&no_table).contains("cut short"));
        let mut many = elf(here(), 3, 0);
        many[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(problem(&many).contains("damaged"));
        let mut tiny = elf(here(), 3, 0);
        tiny[54..56].copy_from_slice(&1_u16.to_le_bytes());
        assert!(problem(&tiny).contains("damaged"));
        let mut narrow = elf(here(), 3, 0);
        narrow[4] = 1;
        assert!(problem(&narrow).contains("32-bit"));
    }

    #[test]
    fn a_folder_a_pipe_and_nothing_at_all_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let text = check_library(folder.path()).unwrap_err().to_string();
        assert!(text.contains("it is a directory"), "{text}");
        let text = check_library(&folder.path().join("none.so")).unwrap_err().to_string();
        assert!(text.contains("No such file"), "{text}");
        let text = check_library(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(text.contains("not a regular file"), "{text}");
    }

    #[test]
    fn the_named_library_wins_and_there_is_no_falling_back_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join(FILE_NAME);
        std::fs::write(&good, elf(here(), 3, 0)).unwrap();
        let missing = folder.path().join("missing.so");
        let folders = [folder.path().to_path_buf()];
        assert_eq!(find(Some(&good), None, &[]).unwrap(), good);
        assert_eq!(find(None, Some(good.as_os_str()), &[]).unwrap(), good);
        assert!(find(Some(&missing), Some(good.as_os_str()), &folders).is_err());
        let text = find(None, Some(missing.as_os_str()), &folders).unwrap_err().to_string();
        assert!(text.starts_with("ORT_DYLIB_PATH names a file: "), "{text}");
        assert_eq!(find(None, Some(OsStr::new("")), &folders).unwrap(), good);
    }

    #[test]
    fn a_search_takes_the_highest_version_that_is_usable() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        let folders = [PathBuf::from("/nonexistent"), folder.path().to_path_buf()];
        let text = search(&folders).unwrap_err().to_string();
        assert!(text.contains("looked in /nonexistent, "), "{text}");
        assert!(text.contains("ORT_DYLIB_PATH"), "{text}");

        write("libonnxruntime.so.1.26.0", b"text");
        write("libonnxruntime.so.txt", &elf(here(), 3, 0));
        let text = search(&folders).unwrap_err().to_string();
        assert!(text.contains("so.1.26.0 cannot be"), "{text}");

        write("libonnxruntime.so.1.9.1", &elf(here(), 3, 0));
        write("libonnxruntime.so.1.23", &elf(here(), 3, 0));
        assert_eq!(search(&folders).unwrap(), folder.path().join("libonnxruntime.so.1.23"));
        write("libonnxruntime.so", &elf(here(), 3, 0));
        assert_eq!(search(&folders).unwrap(), folder.path().join(FILE_NAME));
    }
}
