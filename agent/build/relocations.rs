//! Packed relative relocations (`DT_RELR`): the table that the loader reads through at each start, and that
//! stays in the process's memory, becomes some fifty times smaller. See `docs/adr/0016`.

use std::env;
use std::process::Command;

/// The first glibc that reads them; an older one refuses such a program by name (`GLIBC_ABI_DT_RELR`).
const FIRST_GLIBC: (u32, u32) = (2, 36);

/// Packs the relocations of this package's programs, where they run on such a C library: built for the machine
/// that builds them, whose version is known.
pub(crate) fn pack() {
    println!("cargo:rerun-if-changed=build.rs");
    let told = |name: &str| env::var(name).unwrap_or_default();
    let native = told("HOST") == told("TARGET");
    let glibc = told("CARGO_CFG_TARGET_OS") == "linux" && told("CARGO_CFG_TARGET_ENV") == "gnu";
    if native && glibc && glibc_version().is_some_and(|version| version >= FIRST_GLIBC) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// As `glibc 2.36`.
fn glibc_version() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
