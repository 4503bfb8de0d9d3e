//! Folders: written whole, opened suspiciously.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bundle::{
    Bundle, BundleError, Case, Digest, Draft, Estimate, FileEntry, Limits, MANIFEST_FILE,
    MODEL_FILE, Manifest, NamedTensor, Quality, SELFTEST_FILE, SelfTest, Source, TensorSpec,
};
use serde_json::{Value, json};
use tempfile::TempDir;

type Edit = Box<dyn FnOnce(&mut Value)>;

fn tensor(name: &str, values: &[f32]) -> NamedTensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    NamedTensor { name: name.into(), dtype: "FP32".into(), dims: vec![1, values.len()], data }
}

fn selftest() -> SelfTest {
    let case = |x: f32| Case {
        inputs: vec![tensor("z/first", &[x, 2.0]), tensor("a", &[x])],
        outputs: vec![tensor("y", &[x * 2.0])],
    };
    SelfTest { cases: vec![case(1.0), case(-3.0)], rtol: 1e-3, atol: 1e-5 }
}

fn draft() -> Draft {
    let mut draft = Draft::new("magika", "1.0.0", Source::Bytes(vec![7; 100_000]));
    draft.sequence = 3;
    draft.runtime = "tract".into();
    draft.device_class = "raspberry-pi-4".into();
    draft.inputs =
        vec![TensorSpec { name: "bytes".into(), dtype: "INT32".into(), dims: vec![-1, 2048] }];
    draft.predicted.latency_p95_us =
        Some(Estimate { value: 17e3, low: 15e3, high: 20e3, quality: Quality::Modelled });
    draft.lineage.source_sha256 = Some(Digest::of(b"source"));
    draft.lineage.recipe = json!({ "ratio": 0.5 });
    draft.selftest = selftest();
    draft.report_html = Some("<h1>report</h1>".into());
    draft
}

fn written() -> (TempDir, PathBuf, Bundle) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("b");
    let bundle = draft().write(&dir).unwrap();
    (temp, dir, bundle)
}

fn open(dir: &Path) -> Result<Bundle, BundleError> {
    Bundle::open(dir, &Limits::default())
}

fn edit_manifest(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(MANIFEST_FILE);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_bundle_opens_as_it_was_written() {
    let (_temp, dir, bundle) = written();
    let opened = open(&dir).unwrap();
    assert_eq!(opened, bundle);
    assert_eq!(opened.digest, Digest::of_file(&dir.join(MANIFEST_FILE)).unwrap());
    assert_eq!(fs::read(opened.model_path()).unwrap(), vec![7; 100_000]);
    assert_eq!(opened.selftest().unwrap(), selftest());
    let on_disk: u64 =
        entries(&dir).iter().map(|name| fs::metadata(dir.join(name)).unwrap().len()).sum();
    assert_eq!(opened.size_bytes(), on_disk);
    assert!(opened.report_path().unwrap().ends_with("report.html"));
    assert!(opened.manifest.fits_runtime("tract") && !opened.manifest.fits_runtime("ort"));
    assert!(opened.manifest.fits_class("raspberry-pi-4") && !opened.manifest.fits_class("pi-5"));
}

#[test]
fn the_same_draft_gives_the_same_digest() {
    let (_a, _, first) = written();
    let (_b, _, second) = written();
    assert_eq!(first.digest, second.digest);
    let temp = tempfile::tempdir().unwrap();
    let mut other = draft();
    other.sequence += 1;
    assert_ne!(other.write(&temp.path().join("b")).unwrap().digest, first.digest);
}

#[test]
fn a_store_names_folders_by_digest_and_keeps_a_bundle_that_is_there() {
    let temp = tempfile::tempdir().unwrap();
    let store = temp.path().join("store");
    let first = draft().write_into(&store).unwrap();
    assert_eq!(first.dir, store.join(first.digest.hex()));
    assert_eq!(draft().write_into(&store).unwrap(), first);
    assert_eq!(entries(&store), [first.digest.hex()]);
}

#[test]
fn external_data_is_part_of_the_bundle() {
    let temp = tempfile::tempdir().unwrap();
    let weights = temp.path().join("weights");
    fs::write(&weights, b"weights").unwrap();
    let mut draft = draft();
    draft.external = vec![("model.onnx.data".into(), Source::Path(weights))];
    let bundle = draft.write(&temp.path().join("b")).unwrap();
    assert_eq!(bundle.manifest.files["model.onnx.data"].sha256, Digest::of(b"weights"));
}

#[test]
fn nothing_is_written_over_and_nothing_is_left_half_written() {
    let (temp, dir, _) = written();
    assert!(matches!(draft().write(&dir), Err(BundleError::AlreadyExists(_))));
    assert_eq!(entries(temp.path()), ["b"]);

    let mut small = draft();
    small.limits.model_bytes = 10;
    let error = small.write(&temp.path().join("c")).unwrap_err();
    assert!(matches!(&error, BundleError::TooLarge { limit_name: "model_bytes", .. }), "{error}");
    let mut missing = draft();
    missing.model = Source::Path(temp.path().join("no such model"));
    let error = missing.write(&temp.path().join("c")).unwrap_err();
    assert!(error.to_string().contains("no such model"), "{error}");
    let mut nan = draft();
    nan.predicted.agreement =
        Some(Estimate { value: f64::NAN, low: 0.0, high: 1.0, quality: Quality::Measured });
    let error = nan.write(&temp.path().join("c")).unwrap_err();
    assert!(error.to_string().contains("predicted.agreement"), "{error}");
    let mut taken = draft();
    taken.external = vec![(MODEL_FILE.into(), Source::Bytes(vec![]))];
    assert!(matches!(taken.write(&temp.path().join("c")), Err(BundleError::FileName { .. })));
    assert_eq!(entries(temp.path()), ["b"]);
}

#[test]
fn a_model_cut_in_half_is_found_by_its_size() {
    let (_temp, dir, _) = written();
    let model = fs::read(dir.join(MODEL_FILE)).unwrap();
    fs::write(dir.join(MODEL_FILE), &model[..model.len() / 2]).unwrap();
    let error = open(&dir).unwrap_err();
    let BundleError::WrongSize { name, wanted: 100_000, got: 50_000 } = &error else {
        panic!("{error}")
    };
    assert_eq!(name, MODEL_FILE);
}

#[test]
fn one_flipped_bit_in_any_file_is_found() {
    let (_temp, dir, bundle) = written();
    for name in bundle.manifest.files.keys() {
        let good = fs::read(dir.join(name)).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 4;
        fs::write(dir.join(name), bad).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(
            matches!(&error, BundleError::WrongDigest { name: found, .. } if found == name),
            "{error}"
        );
        fs::write(dir.join(name), good).unwrap();
    }
    assert_eq!(open(&dir).unwrap(), bundle);
}

#[test]
fn a_file_added_and_a_file_taken_away_are_found() {
    let (_temp, dir, bundle) = written();
    fs::write(dir.join("extra.bin"), b"x").unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(&error, BundleError::Unexpected { name } if name == "extra.bin"), "{error}");
    fs::remove_file(dir.join("extra.bin")).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert!(matches!(open(&dir), Err(BundleError::Unexpected { .. })));
    fs::remove_dir(dir.join("sub")).unwrap();
    for name in bundle.manifest.files.keys().map(String::as_str).chain([MANIFEST_FILE]) {
        fs::rename(dir.join(name), dir.with_extension("aside")).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(matches!(&error, BundleError::Missing { name: found } if found == name), "{error}");
        fs::rename(dir.with_extension("aside"), dir.join(name)).unwrap();
    }
}

#[test]
fn a_link_a_folder_or_a_pipe_in_place_of_a_file_is_refused_without_opening_it() {
    let (temp, dir, _) = written();
    let model = dir.join(MODEL_FILE);
    let aside = temp.path().join("aside");
    fs::rename(&model, &aside).unwrap();
    symlink(&aside, &model).unwrap();
    assert!(open(&dir).unwrap_err().to_string().contains("symbolic link"));
    fs::remove_file(&model).unwrap();
    fs::create_dir(&model).unwrap();
    assert!(open(&dir).unwrap_err().to_string().contains("a folder"));
    fs::remove_dir(&model).unwrap();
    let status = std::process::Command::new("mkfifo").arg(&model).status().unwrap();
    assert!(status.success());
    assert!(open(&dir).unwrap_err().to_string().contains("a pipe"));
    fs::remove_file(&model).unwrap();
    fs::rename(&aside, &model).unwrap();

    fs::rename(dir.join(MANIFEST_FILE), &aside).unwrap();
    symlink("/dev/zero", dir.join(MANIFEST_FILE)).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(
        matches!(&error, BundleError::NotAFile { name, .. } if name == MANIFEST_FILE),
        "{error}"
    );
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = open(Path::new("/no/such/bundle")).unwrap_err();
    assert!(error.to_string().contains("/no/such/bundle"), "{error}");
}

#[test]
fn garbage_an_unknown_version_and_a_huge_manifest_are_different_errors() {
    let (_temp, dir, _) = written();
    let path = dir.join(MANIFEST_FILE);
    let good = fs::read(&path).unwrap();
    for garbage in [
        &b""[..],
        b"{",
        b"[1]",
        b"\xff",
        &good[..good.len() / 2],
        b"{\"schema\":1}",
        b"{\"schema\":-1}",
    ] {
        fs::write(&path, garbage).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(matches!(error, BundleError::ManifestJson(_)), "{error}");
    }
    fs::write(&path, b"{\"schema\":2,\"everything\":\"else\"}").unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error, BundleError::ManifestVersion { got: 2, wanted: 1 }), "{error}");
    fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
    assert!(matches!(open(&dir), Err(BundleError::ManifestTooLarge { .. })));
}

#[test]
fn a_hostile_manifest_is_refused_with_the_field_or_the_limit() {
    let entry = |size: u64| json!({ "sha256": Digest::of(b"").to_string(), "size_bytes": size });
    let edits: Vec<(Edit, &str)> = vec![
        (Box::new(move |m| m["files"]["../../etc/passwd"] = entry(1)), "not allowed in a bundle"),
        (Box::new(move |m| m["files"]["/etc/passwd"] = entry(1)), "not allowed in a bundle"),
        (Box::new(move |m| m["files"][".."] = entry(1)), "not allowed in a bundle"),
        (Box::new(move |m| m["files"]["a\\b"] = entry(1)), "not allowed in a bundle"),
        (Box::new(move |m| m["files"]["x".repeat(101)] = entry(1)), "longer than 100"),
        (Box::new(move |m| m["files"][MANIFEST_FILE] = entry(1)), "lists itself"),
        (Box::new(move |m| m["files"][MODEL_FILE] = entry(u64::MAX)), "model_bytes"),
        (Box::new(move |m| m["files"][SELFTEST_FILE] = entry(65 << 20)), "selftest_bytes"),
        (Box::new(move |m| m["files"]["report.html"] = entry(33 << 20)), "report_bytes"),
        (
            Box::new(move |m| {
                for n in 0..3 {
                    m["files"][format!("data{n}")] = entry(2 << 30);
                }
            }),
            "total_bytes",
        ),
        (
            Box::new(move |m| {
                for n in 0..64 {
                    m["files"][format!("data{n}")] = entry(0);
                }
            }),
            "file_count",
        ),
        (
            Box::new(|m| drop(m["files"].as_object_mut().unwrap().remove(MODEL_FILE))),
            "model.onnx is not listed",
        ),
        (
            Box::new(|m| drop(m["files"].as_object_mut().unwrap().remove(SELFTEST_FILE))),
            "is not listed",
        ),
        (Box::new(|m| m["files"][MODEL_FILE]["sha256"] = json!("md5:abc")), "no digest"),
        (Box::new(|m| m["runtime"] = json!("tensorrt")), "not tract, ort or any"),
        (Box::new(|m| m["name"] = json!("../up")), "name"),
        (Box::new(|m| m["name"] = json!("..")), "name"),
        (Box::new(|m| m["version"] = json!("")), "version"),
        (Box::new(|m| m["device_class"] = json!("a\nb")), "device_class"),
        (Box::new(|m| m["inputs"][0]["dims"] = json!([-2])), "negative dimension"),
        (
            Box::new(|m| m["predicted"]["latency_p95_us"]["low"] = json!(1e9)),
            "predicted.latency_p95_us",
        ),
        (Box::new(|m| m["sequence"] = json!(-1)), "no manifest"),
    ];
    for (edit, why) in edits {
        let (_temp, dir, _) = written();
        edit_manifest(&dir, edit);
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.contains(why), "wanted {why:?}: {error}");
    }
}

#[test]
fn fields_of_a_newer_writer_are_accepted() {
    let (_temp, dir, _) = written();
    edit_manifest(&dir, |m| m["signature"] = json!("…"));
    assert_eq!(open(&dir).unwrap().manifest.name, "magika");
}

#[test]
fn a_folder_of_thousands_of_files_is_given_up_at_the_limit() {
    let (_temp, dir, _) = written();
    let limits = Limits { file_count: 4, ..Limits::default() };
    assert!(Bundle::open(&dir, &limits).is_ok());
    let limits = Limits { file_count: 3, ..Limits::default() };
    assert!(matches!(Bundle::open(&dir, &limits), Err(BundleError::TooManyFiles { .. })));
}

#[test]
fn one_file_can_be_verified_alone() {
    let (_temp, dir, bundle) = written();
    let entry = &bundle.manifest.files[MODEL_FILE];
    bundle::verify_file(&dir, MODEL_FILE, entry).unwrap();
    let shorter = FileEntry { size_bytes: entry.size_bytes - 1, ..entry.clone() };
    assert!(matches!(
        bundle::verify_file(&dir, MODEL_FILE, &shorter),
        Err(BundleError::WrongSize { .. })
    ));
    assert!(matches!(
        bundle::verify_file(&dir, "../b/model.onnx", entry),
        Err(BundleError::FileName { .. })
    ));
}

#[test]
fn a_manifest_can_be_checked_before_its_files_are_there() {
    let (_temp, dir, bundle) = written();
    let bytes = fs::read(dir.join(MANIFEST_FILE)).unwrap();
    assert_eq!(Manifest::from_bytes(&bytes, &Limits::default()).unwrap(), bundle.manifest);
    let limits = Limits { model_bytes: 99_999, ..Limits::default() };
    let error = Manifest::from_bytes(&bytes, &limits).unwrap_err().to_string();
    assert!(error.contains("model_bytes") && error.contains("100000"), "{error}");
}

#[test]
fn the_checked_in_schema_is_that_of_the_manifest() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/manifest.json");
    let schema = bundle::manifest_schema();
    if std::env::var_os("ESPALIER_BLESS").is_some() {
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&schema).unwrap())).unwrap();
    }
    let found = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    assert!(
        found == Some(schema),
        "{} differs from its type: ESPALIER_BLESS=1 rewrites it",
        path.display()
    );
}

#[test]
fn a_bundle_moves_into_a_store_once() {
    let (temp, dir, bundle) = written();
    let store = temp.path().join("store");
    let moved = bundle.move_into(&store).unwrap();
    assert!(!dir.exists());
    assert_eq!(open(&store.join(moved.digest.hex())).unwrap(), moved);
    let again = draft().write(&dir).unwrap().move_into(&store).unwrap();
    assert_eq!(again, moved);
    assert!(!dir.exists());
}

#[test]
fn a_reference_is_in_the_manifest_and_reads_back_and_a_bundle_without_has_none() {
    let (_temp, _, plain) = written();
    assert_eq!(plain.reference().unwrap(), None);
    let temp = tempfile::tempdir().unwrap();
    let feature = bundle::FeatureReference::ordered(bundle::Feature::Mean, &[1.0, 2.0, 2.0]);
    let tensor = bundle::TensorReference {
        side: bundle::Side::Input,
        name: "bytes".into(),
        batched: true,
        rows: None,
        features: vec![feature],
    };
    let version = bundle::REFERENCE_VERSION;
    let reference = bundle::Reference { version, samples: 3, tensors: vec![tensor] };
    let mut draft = draft();
    draft.reference = Some(reference.clone());
    let bundle = draft.clone().write(&temp.path().join("b")).unwrap();
    assert!(bundle.manifest.files.contains_key(bundle::REFERENCE_FILE));
    assert_eq!(bundle.reference().unwrap(), Some(reference));
    assert_ne!(bundle.digest, plain.digest);
    draft.limits.reference_bytes = 10;
    let error = draft.write(&temp.path().join("c")).unwrap_err().to_string();
    assert!(error.contains("reference_bytes"), "{error}");
}
