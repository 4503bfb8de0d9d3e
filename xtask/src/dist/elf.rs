//! What a program needs to run: its machine and its C library.

use anyhow::{Context, Result, bail, ensure};

/// What was found out about a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Debian's name of the architecture.
    pub(super) architecture: &'static str,
    /// Debian packages that hold the libraries it is linked to, as in `Depends`.
    pub(super) packages: Vec<String>,
}

/// Machines by `e_machine` of the ELF header, and what Debian calls them.
const MACHINES: &[(u16, &str)] = &[(62, "amd64"), (183, "arm64"), (40, "armhf")];

/// Reads a program's header and the names in it.
///
/// # Errors
/// What is no little-endian ELF file of a machine that is packaged for.
pub(super) fn needs(program: &[u8]) -> Result<Needs> {
    let header = program.get(..20).context("it is too short for a program")?;
    ensure!(header.starts_with(b"\x7fELF") && header[5] == 1, "it is no little-endian ELF file");
    let machine = u16::from_le_bytes([header[18], header[19]]);
    let Some(&(_, architecture)) = MACHINES.iter().find(|(number, _)| *number == machine) else {
        bail!("it is for machine {machine} (e_machine), which is not packaged for");
    };
    let minor = glibc_minor(program).context("it names no version of the C library")?;
    let mut packages = vec![format!("libc6 (>= 2.{minor})")];
    if contains(program, b"\0libgcc_s.so.1\0") {
        packages.push("libgcc-s1".to_owned());
    }
    Ok(Needs { architecture, packages })
}

/// The first glibc that packed relocations can be loaded by, which no symbol asks for.
const PACKED_MINOR: u32 = 36;

/// The newest `GLIBC_2.N` that a symbol of the program asks for, or its relocations.
fn glibc_minor(program: &[u8]) -> Option<u32> {
    const PREFIX: &[u8] = b"\0GLIBC_2.";
    let mut newest = contains(program, b"\0GLIBC_ABI_DT_RELR\0").then_some(PACKED_MINOR);
    let mut rest = program;
    while let Some(at) = find(rest, PREFIX) {
        rest = &rest[at + PREFIX.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let minor = std::str::from_utf8(&rest[..digits]).ok().and_then(|text| text.parse().ok());
        newest = newest.max(minor);
    }
    newest
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    find(bytes, wanted).is_some()
}

/// Looks for the rare first byte with `memchr`'s speed: programs have tens of megabytes.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    // Every pattern here begins with a zero byte, and its second byte tells more.
    let second = wanted[1];
    let mut from = 1;
    while let Some(at) = bytes.get(from..)?.iter().position(|&byte| byte == second) {
        let start = from + at - 1;
        if bytes[start..].starts_with(wanted) {
            return Some(start);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn program(machine: u16, names: &str) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes.extend_from_slice(names.as_bytes());
        bytes
    }

    #[test]
    fn the_newest_version_of_the_c_library_is_what_is_needed() {
        let names = "\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0libgcc_s.so.1\0";
        let needs = needs(&program(62, names)).unwrap();
        assert_eq!(needs.architecture, "amd64");
        assert_eq!(needs.packages, ["libc6 (>= 2.34)", "libgcc-s1"]);
        let packed = super::needs(&program(62, "\0GLIBC_2.34\0GLIBC_ABI_DT_RELR\0")).unwrap();
        assert_eq!(packed.packages, ["libc6 (>= 2.36)"]);
        let alone = super::needs(&program(183, "\0GLIBC_2.17\0")).unwrap();
        assert_eq!((alone.architecture, alone.packages.len()), ("arm64", 1));
    }

    #[test]
    fn what_is_no_program_for_a_device_says_what_it_is() {
        let error = |bytes: &[u8]| needs(bytes).unwrap_err().to_string();
        assert!(error(b"#!/bin/sh\necho hello world\n").contains("ELF"));
        assert!(error(&program(243, "\0GLIBC_2.34\0")).contains("machine 243"));
        assert!(error(&program(62, "")).contains("C library"));
        assert!(error(b"").contains("too short"));
    }

    #[test]
    fn this_test_s_own_program_can_be_read() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needs(&own).unwrap().packages[0].starts_with("libc6 (>= 2."));
    }
}
