//! Archives: what we pack unpacks, what an enemy packs does not.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use bundle::{
    Bundle, BundleError, Case, Digest, Draft, Limits, MODEL_FILE, NamedTensor, SelfTest, Source,
    pack, unpack,
};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

struct Fixture {
    temp: TempDir,
    dir: PathBuf,
    bundle: Bundle,
    tar: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("b");
        let mut draft =
            Draft::new("m", "1", Source::Bytes((0..9000u32).map(|n| n as u8).collect()));
        draft.selftest = selftest();
        draft.report_html = Some("<p>".into());
        draft.write(&dir).unwrap();
        let mut tar = Vec::new();
        let bundle = pack(&dir, &mut tar).unwrap();
        Self { temp, dir, bundle, tar }
    }

    fn dest(&self) -> PathBuf {
        self.temp.path().join("out")
    }

    /// Unpacks; on an error nothing may be left behind.
    fn unpack(&self, tar: &[u8]) -> Result<Bundle, BundleError> {
        let limits = Limits { model_bytes: 1 << 20, ..Limits::default() };
        let result = unpack(tar, &self.dest(), &limits);
        let left = fs::read_dir(self.temp.path()).unwrap().count();
        assert_eq!(left, 1 + usize::from(result.is_ok()), "something was left behind");
        result
    }

    /// The good archive's entries, then whatever `more` adds.
    fn with(&self, more: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for name in ["manifest.json", MODEL_FILE] {
            add(&mut builder, name, &fs::read(self.dir.join(name)).unwrap());
        }
        more(&mut builder);
        builder.into_inner().unwrap()
    }
}

fn selftest() -> SelfTest {
    let output =
        NamedTensor { name: "y".into(), dtype: "UINT8".into(), dims: vec![1], data: vec![7] };
    let case = Case { inputs: Vec::new(), outputs: vec![output] };
    SelfTest { cases: vec![case], ..SelfTest::default() }
}

/// A header whose name is written as it is, however hostile.
fn raw_header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn add(builder: &mut Builder<Vec<u8>>, name: &str, data: &[u8]) {
    builder.append(&raw_header(name, EntryType::Regular, data.len() as u64), data).unwrap();
}

#[test]
fn what_was_packed_unpacks_to_the_same_bundle() {
    let f = Fixture::new();
    let unpacked = f.unpack(&f.tar).unwrap();
    assert_eq!((unpacked.digest, &unpacked.manifest), (f.bundle.digest, &f.bundle.manifest));
    assert_eq!(
        Digest::of_file(&unpacked.model_path()).unwrap(),
        Digest::of_file(&f.bundle.model_path()).unwrap()
    );
    let mut again = Vec::new();
    pack(&unpacked.dir, &mut again).unwrap();
    assert!(again == f.tar, "packing is not deterministic");
}

#[test]
fn an_existing_destination_is_left_alone() {
    let f = Fixture::new();
    assert!(matches!(
        unpack(f.tar.as_slice(), &f.dir, &Limits::default()),
        Err(BundleError::AlreadyExists(_))
    ));
    assert!(Bundle::open(&f.dir, &Limits::default()).is_ok());
}

#[test]
fn a_damaged_bundle_is_not_packed() {
    let f = Fixture::new();
    fs::write(f.dir.join(MODEL_FILE), b"x").unwrap();
    let mut tar = Vec::new();
    assert!(matches!(pack(&f.dir, &mut tar), Err(BundleError::WrongSize { .. })));
    assert!(tar.is_empty());
}

#[test]
fn links_devices_folders_and_extension_headers_are_refused_each_by_name() {
    let f = Fixture::new();
    for (kind, why) in [
        (EntryType::Symlink, "symbolic link"),
        (EntryType::Link, "hard link"),
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a pipe"),
        (EntryType::Directory, "a folder"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::XHeader, "an extension header"),
        (EntryType::XGlobalHeader, "an extension header"),
        (EntryType::GNULongName, "an extension header"),
        (EntryType::new(b'Z'), "of an unknown kind"),
    ] {
        let tar = f.with(|builder| {
            let mut header = raw_header("report.html", kind, 0);
            header.set_link_name("/etc/passwd").unwrap();
            header.set_cksum();
            builder.append(&header, std::io::empty()).unwrap();
        });
        let error = f.unpack(&tar).unwrap_err();
        let expected = match kind {
            EntryType::Symlink | EntryType::Link => {
                matches!(error, BundleError::ArchiveLink { .. })
            }
            _ => matches!(error, BundleError::ArchiveKind { .. }),
        };
        assert!(expected && error.to_string().contains(why), "{error}");
    }
}

#[test]
fn absolute_paths_climbing_paths_and_odd_names_are_refused() {
    let f = Fixture::new();
    let attempt = |name: &str| f.unpack(&f.with(|builder| add(builder, name, b"<p>"))).unwrap_err();
    assert!(matches!(attempt("/tmp/escaped"), BundleError::ArchiveAbsolute { .. }));
    for name in ["../escaped", "a/../../escaped", "..", "report.html/.."] {
        assert!(matches!(attempt(name), BundleError::ArchiveParent { .. }), "{name}");
    }
    for name in ["./report.html", "sub/report.html", ".hidden", "caf\u{e9}", "a b", "C:\\x", ""] {
        let error = attempt(name);
        assert!(matches!(error, BundleError::FileName { .. }), "{name}: {error}");
    }
    assert!(!f.temp.path().parent().unwrap().join("escaped").exists());
}

#[test]
fn a_name_given_twice_is_refused() {
    let f = Fixture::new();
    let model = fs::read(f.dir.join(MODEL_FILE)).unwrap();
    let error = f.unpack(&f.with(|builder| add(builder, MODEL_FILE, &model))).unwrap_err();
    assert!(
        matches!(&error, BundleError::ArchiveDuplicate { name } if name == MODEL_FILE),
        "{error}"
    );
    let error = f.unpack(&f.with(|builder| add(builder, "manifest.json", b"{}"))).unwrap_err();
    assert!(matches!(error, BundleError::ArchiveDuplicate { .. }), "{error}");
}

#[test]
fn a_file_that_the_manifest_does_not_list_is_refused() {
    let f = Fixture::new();
    let error = f.unpack(&f.with(|builder| add(builder, "setup.sh", b"#!/bin/sh"))).unwrap_err();
    assert!(matches!(&error, BundleError::Unexpected { name } if name == "setup.sh"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let f = Fixture::new();
    let error = f.unpack(&f.with(|_| ())).unwrap_err();
    assert!(matches!(error, BundleError::Missing { .. }), "{error}");
    let error = f.unpack(&[0; 1024]).unwrap_err();
    assert!(matches!(&error, BundleError::Missing { name } if name == "manifest.json"), "{error}");
}

#[test]
fn the_manifest_must_come_first() {
    let f = Fixture::new();
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, MODEL_FILE, b"model");
    let error = f.unpack(&builder.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, BundleError::ArchiveOrder { .. }), "{error}");
}

#[test]
fn a_header_that_claims_more_than_the_limit_is_refused_before_any_byte_is_read() {
    let f = Fixture::new();
    for claim in [(1 << 20) + 1, 1 << 40, u64::MAX >> 1] {
        let mut tar = f.with(|_| ());
        tar.truncate(tar.len() - 1024);
        tar.extend_from_slice(raw_header("other.data", EntryType::Regular, claim).as_bytes());
        let error = f.unpack(&tar).unwrap_err();
        let by_name = matches!(&error, BundleError::TooLarge { limit_name: "model_bytes", bytes, .. } if *bytes == claim);
        assert!(by_name, "{error}");
    }
}

#[test]
fn a_size_other_than_the_manifests_is_refused() {
    let f = Fixture::new();
    let error = f.unpack(&f.with(|builder| add(builder, "report.html", b"<p>longer"))).unwrap_err();
    assert!(
        matches!(&error, BundleError::WrongSize { name, .. } if name == "report.html"),
        "{error}"
    );
}

#[test]
fn too_many_entries_are_refused() {
    let f = Fixture::new();
    let limits = Limits { file_count: 3, ..Limits::default() };
    assert!(matches!(
        unpack(f.tar.as_slice(), &f.dest(), &limits),
        Err(BundleError::TooManyFiles { .. })
    ));
    assert!(!f.dest().exists());
}

#[test]
fn a_manifest_over_its_limit_is_refused() {
    let f = Fixture::new();
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, "manifest.json", &vec![b' '; 2 << 20]);
    let error = f.unpack(&builder.into_inner().unwrap()).unwrap_err();
    assert!(error.to_string().contains("manifest_bytes"), "{error}");
}

#[test]
fn an_archive_cut_anywhere_before_its_end_is_refused() {
    let f = Fixture::new();
    let content = f.tar.len() - 1024;
    let mut truncated = 0;
    for length in (0..content).step_by(241).chain([content - 512, content - 1]) {
        let error = match f.unpack(&f.tar[..length]) {
            Ok(_) => panic!("cut at {length} of {content} was taken"),
            Err(error) => error,
        };
        let named = matches!(
            error,
            BundleError::ArchiveTruncated { .. }
                | BundleError::Missing { .. }
                | BundleError::ArchiveGarbage(_)
        );
        assert!(named, "cut at {length}: {error}");
        truncated += usize::from(matches!(error, BundleError::ArchiveTruncated { .. }));
    }
    assert!(truncated > 10, "only {truncated} cuts were recognised as cuts");
}

#[test]
fn one_flipped_bit_anywhere_is_refused_or_changes_the_digest_or_does_no_harm() {
    let f = Fixture::new();
    for position in (0..f.tar.len()).step_by(97) {
        let mut tar = f.tar.clone();
        tar[position] ^= 1;
        if let Ok(bundle) = f.unpack(&tar) {
            // Padding and the end marker can change without a trace; white space in the manifest
            // cannot: it is part of what names the bundle.
            if bundle.digest == f.bundle.digest {
                assert_eq!(bundle.manifest, f.bundle.manifest, "{position}");
            }
            assert_eq!(
                fs::read(bundle.model_path()).unwrap(),
                fs::read(f.bundle.model_path()).unwrap()
            );
            fs::remove_dir_all(f.dest()).unwrap();
        }
    }
}

#[test]
fn random_bytes_are_no_archive() {
    let f = Fixture::new();
    let noise: Vec<u8> =
        (0..10_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let error = f.unpack(&noise).unwrap_err();
    assert!(matches!(error, BundleError::ArchiveGarbage(_)), "{error}");
}

#[test]
fn an_endless_archive_is_given_up() {
    let f = Fixture::new();
    let endless = std::io::repeat(b'a');
    assert!(unpack(endless, &f.dest(), &Limits::default()).is_err());
    let tar = f.with(|_| ());
    let zeros = tar.as_slice().chain(std::io::repeat(0).take(10 << 20));
    assert!(matches!(
        unpack(zeros, &f.dest(), &Limits::default()),
        Err(BundleError::Missing { .. })
    ));
}
