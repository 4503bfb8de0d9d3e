//! Files that are not a usable ONNX Runtime: each is an error of its own that names the path and
//! the version wanted, and none takes the process down.
#![cfg(feature = "ort")]
#![allow(clippy::unwrap_used)]

#[path = "support/harness.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use runtime::{EngineError, EngineKind, EngineOptions, ErrorKind, open};

fn refused(path: &Path) -> String {
    let options = EngineOptions {
        ort_library: Some(path.to_path_buf()),
        ..EngineOptions::new(EngineKind::Ort)
    };
    let error: EngineError = open(&options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Library, "{error}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(text.contains("1.17"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A shared library made of `source`, for this machine.
fn build(folder: &Path, name: &str, source: &str) -> PathBuf {
    let code = folder.join(format!("{name}.rs"));
    let library = folder.join(format!("lib{name}.so"));
    std::fs::write(&code, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition", "2021", "--crate-type", "cdylib", "-C", "panic=abort", "-o"])
        .args([&library, &code])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    library
}

/// A library that says it is ONNX Runtime `version` and has no API to give.
fn impostor(version: &str) -> String {
    format!(
        r#"
        #[repr(C)]
        pub struct Base {{
            api: extern "C" fn(u32) -> *const u8,
            version: extern "C" fn() -> *const u8,
        }}
        extern "C" fn api(_: u32) -> *const u8 {{ std::ptr::null() }}
        extern "C" fn version() -> *const u8 {{ b"{version}\0".as_ptr() }}
        static BASE: Base = Base {{ api, version }};
        #[no_mangle]
        pub extern "C" fn OrtGetApiBase() -> *const Base {{ &BASE }}
        "#
    )
}

#[test]
fn a_missing_library_is_told() {
    let text = refused(Path::new("/nonexistent/libonnxruntime.so"));
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn a_text_file_is_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    std::fs::write(&path, "INPUT(libonnxruntime.so.1)\n").unwrap();
    assert!(refused(&path).contains("not an ELF file"));
}

#[test]
fn a_folder_is_no_library() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refused(folder.path()).contains("is a directory"));
}

#[test]
fn a_library_for_another_machine_is_told_by_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    let (number, name) =
        if cfg!(target_arch = "aarch64") { (62_u16, "x86_64") } else { (183_u16, "aarch64") };
    let mut bytes = vec![0_u8; 4096];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16] = 3;
    bytes[18..20].copy_from_slice(&number.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let text = refused(&path);
    assert!(text.contains(&format!("ELF file for {name}, not for this machine")), "{text}");
}

#[test]
fn half_of_the_real_library_is_told_before_it_is_mapped() {
    let whole = std::fs::read(harness::variable("ORT_DYLIB_PATH")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for part in [1000, whole.len() / 2, whole.len() * 9 / 10] {
        let path = folder.path().join("libonnxruntime.so");
        std::fs::write(&path, &whole[..part]).unwrap();
        assert!(refused(&path).contains("cut short"), "{part} bytes");
    }
}

#[test]
fn another_library_is_not_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let path = build(folder.path(), "other", "");
    let text = refused(&path);
    assert!(text.contains("does not export OrtGetApiBase"), "{text}");
}

#[test]
fn an_old_library_is_told_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = build(folder.path(), "old", &impostor("1.16.3"));
    let text = refused(&path);
    assert!(text.contains("1.16.3"), "{text}");
    assert!(text.contains("too old"), "{text}");
}

#[test]
fn a_library_without_the_api_is_refused_whatever_version_it_claims() {
    let folder = tempfile::tempdir().unwrap();
    let claims = build(folder.path(), "claims", &impostor("1.99.0"));
    assert!(refused(&claims).contains("does not speak API 17"));
    let nothing = build(
        folder.path(),
        "nothing",
        "#[no_mangle] pub extern \"C\" fn OrtGetApiBase() -> *const u8 { std::ptr::null() }",
    );
    assert!(refused(&nothing).contains("gives nothing"));
}

#[test]
fn one_process_keeps_the_library_it_has() {
    let real = PathBuf::from(harness::variable("ORT_DYLIB_PATH"));
    let with = |path: Option<&Path>| {
        open(&EngineOptions {
            ort_library: path.map(Path::to_path_buf),
            ..EngineOptions::new(EngineKind::Ort)
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link.so");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let copy = folder.path().join("copy.so");
    std::fs::copy(&real, &copy).unwrap();

    // In a process of its own: the other tests here want one that has loaded nothing.
    if std::env::var_os("ESPALIER_TEST_CHILD").is_none() {
        let program = std::env::current_exe().unwrap();
        let status = Command::new(program)
            .args(["--exact", "one_process_keeps_the_library_it_has", "--nocapture"])
            .env("ESPALIER_TEST_CHILD", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    // A failed attempt does not take the one place there is.
    assert!(with(Some(Path::new("/nonexistent.so"))).is_err());
    let version = with(Some(&real)).unwrap().version();
    assert_eq!(with(None).unwrap().version(), version);
    assert_eq!(with(Some(&link)).unwrap().version(), version);
    let error = with(Some(&copy)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Library);
    let text = error.to_string();
    assert!(text.contains("already runs"), "{text}");
    assert!(text.contains(copy.to_str().unwrap()), "{text}");
}
