use std::io::Write;

use ndarray::{Array1, Array2, Array3, ArrayD, Dimension};
use ndarray_npy::{WritableElement, WriteNpyExt};
use proptest::prelude::*;

use super::npy::read_npy;
use super::*;

fn npy<T: WritableElement + Clone, D: Dimension>(array: &ndarray::Array<T, D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    bytes
}

/// Writes an `.npz` of these arrays, compressed, and loads it against `specs`.
fn load(arrays: &[(&str, Vec<u8>)], specs: &[IoSpec]) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    std::fs::write(&path, zip_of(arrays)).unwrap();
    Dataset::load(&path, specs)
}

fn zip_of(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn spec(name: &str, dtype: ElementType, dims: &[Option<usize>]) -> IoSpec {
    IoSpec { name: name.into(), dtype, dims: dims.to_vec() }
}

fn bytes_spec() -> Vec<IoSpec> {
    vec![spec("bytes", ElementType::I32, &[None, Some(4)])]
}

fn error(arrays: &[(&str, Vec<u8>)], specs: &[IoSpec]) -> String {
    load(arrays, specs).unwrap_err().to_string()
}

#[test]
fn every_fourth_sample_is_held_out_and_none_is_on_both_sides() {
    let array = Array2::from_shape_fn((9, 4), |(i, _)| i as i32);
    let labels = Array1::from((0..9i64).collect::<Vec<_>>());
    let data = load(&[("bytes", npy(&array)), ("labels", npy(&labels))], &bytes_spec()).unwrap();
    let (others, heldout) = data.hold_out(4).unwrap();
    assert_eq!(heldout.labels().unwrap(), [3, 7]);
    assert_eq!(others.labels().unwrap(), [0, 1, 2, 4, 5, 6, 8]);
    assert_eq!(heldout.batch(&[1]).unwrap()[0].1.to_i32().unwrap(), [7; 4]);
    assert_eq!(others.batch(&[6]).unwrap()[0].1.to_i32().unwrap(), [8; 4]);
}

#[test]
fn too_few_samples_to_hold_some_out_is_an_error() {
    let array = Array2::from_shape_fn((3, 4), |(i, _)| i as i32);
    let error = load(&[("bytes", npy(&array))], &bytes_spec()).unwrap().hold_out(4).unwrap_err();
    assert!(error.to_string().contains("has 3 samples; at least 4"), "{error}");
}

#[test]
fn samples_come_back_batch_by_batch() {
    let array = Array2::from_shape_fn((5, 4), |(i, j)| (i * 10 + j) as i32);
    let labels = Array1::from(vec![0i64, 1, 2, 3, 4]);
    let data = load(&[("bytes", npy(&array)), ("labels", npy(&labels))], &bytes_spec()).unwrap();
    assert_eq!((data.len(), data.labels().unwrap()[3]), (5, 3));
    assert_eq!(data.batches(0..5, 2), vec![vec![0, 1], vec![2, 3], vec![4]]);
    let batch = data.batch(&[1, 4]).unwrap();
    assert_eq!(batch[0].1.shape, vec![2, 4]);
    assert_eq!(batch[0].1.to_i32().unwrap(), vec![10, 11, 12, 13, 40, 41, 42, 43]);
}

#[test]
fn an_input_whose_shape_is_fixed_takes_one_sample_at_a_time() {
    let state = Array3::<f32>::zeros((3, 2, 5));
    let specs = [spec("state", ElementType::F32, &[Some(2), Some(5)])];
    let data = load(&[("state", npy(&state))], &specs).unwrap();
    assert!(!data.batchable());
    assert_eq!(data.batches(0..3, 8).len(), 3);
    assert_eq!(data.batch(&[2]).unwrap()[0].1.shape, vec![2, 5]);
    let single = [spec("x", ElementType::F32, &[Some(1), Some(2), Some(5)])];
    let data = load(&[("x", npy(&state))], &single).unwrap();
    assert!(!data.batchable());
    assert_eq!(data.batch(&[0]).unwrap()[0].1.shape, vec![1, 2, 5]);
}

#[test]
fn a_missing_input_is_named_with_what_there_is() {
    let text = error(&[("image", npy(&Array2::<i32>::zeros((2, 4))))], &bytes_spec());
    assert!(text.contains("data.npz"), "{text}");
    assert!(text.contains("no array for the model's input \"bytes\""), "{text}");
    assert!(text.contains("\"image\""), "{text}");
}

#[test]
fn a_wrong_type_names_both() {
    let text = error(&[("bytes", npy(&Array2::<f64>::zeros((2, 4))))], &bytes_spec());
    assert!(text.contains("FP64") && text.contains("INT32"), "{text}");
}

#[test]
fn a_wrong_shape_names_both() {
    let text = error(&[("bytes", npy(&Array2::<i32>::zeros((2, 5))))], &bytes_spec());
    assert!(text.contains("[2, 5]") && text.contains("[?, 4]"), "{text}");
    let scalar = ArrayD::<i32>::zeros(ndarray::IxDyn(&[]));
    let text = error(&[("bytes", npy(&scalar))], &bytes_spec());
    assert!(text.contains("shape []"), "{text}");
}

#[test]
fn numbers_that_are_not_finite_are_named_with_their_sample() {
    let specs = [spec("x", ElementType::F32, &[None, Some(2)])];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut array = Array2::<f32>::zeros((3, 2));
        array[(2, 0)] = bad;
        let text = error(&[("x", npy(&array))], &specs);
        assert!(text.contains("sample 2") && text.contains("\"x\""), "{text}");
    }
}

#[test]
fn an_empty_set_is_refused() {
    let text = error(&[("bytes", npy(&Array2::<i32>::zeros((0, 4))))], &bytes_spec());
    assert!(text.contains("holds no samples"), "{text}");
    let text = error(&[], &bytes_spec());
    assert!(text.contains("no arrays at all"), "{text}");
}

#[test]
fn different_sample_counts_are_refused() {
    let specs = [
        spec("a", ElementType::F32, &[None, Some(1)]),
        spec("b", ElementType::F32, &[None, Some(1)]),
    ];
    let (a, b) = (Array2::<f32>::zeros((3, 1)), Array2::<f32>::zeros((2, 1)));
    let text = error(&[("a", npy(&a)), ("b", npy(&b))], &specs);
    assert!(text.contains("\"b\" has 2 samples where \"a\" has 3"), "{text}");
    let labels = Array1::<i64>::zeros(4);
    let text = error(
        &[("bytes", npy(&Array2::<i32>::zeros((2, 4)))), ("labels", npy(&labels))],
        &bytes_spec(),
    );
    assert!(text.contains("\"labels\" has 4 samples"), "{text}");
}

#[test]
fn labels_that_are_no_class_indices_are_refused() {
    let bytes = npy(&Array2::<i32>::zeros((2, 4)));
    let text = error(
        &[("bytes", bytes.clone()), ("labels", npy(&Array1::<f32>::zeros(2)))],
        &bytes_spec(),
    );
    assert!(text.contains("integer type"), "{text}");
    let text =
        error(&[("bytes", bytes), ("labels", npy(&Array2::<i64>::zeros((2, 1))))], &bytes_spec());
    assert!(text.contains("single axis"), "{text}");
}

#[test]
fn a_file_cut_short_is_named_and_so_is_one_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.npz");
    let whole = zip_of(&[("bytes", npy(&Array2::<i32>::zeros((200, 4))))]);
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let text = Dataset::load(&path, &bytes_spec()).unwrap_err().to_string();
    assert!(text.contains("cut short") && text.contains("cut.npz"), "{text}");
    let gone = dir.path().join("gone.npz");
    let text = Dataset::load(&gone, &bytes_spec()).unwrap_err().to_string();
    assert!(text.contains("gone.npz: cannot be read"), "{text}");
}

/// A header that claims far more than the entry holds must not be believed before it is checked.
#[test]
fn an_array_that_claims_more_than_it_has_is_refused_before_memory_is_taken() {
    let mut bytes = npy(&Array2::<i32>::zeros((2, 4)));
    let header = String::from_utf8_lossy(&bytes).replacen("(2, 4)", "(9007199254740991, 4)", 1);
    assert!(header.contains("9007199254740991"));
    let at = bytes.windows(6).position(|w| w == b"(2, 4)").unwrap();
    let long = b"(9007199254740991, 4)";
    // The header is padded with spaces, so the longer shape fits in its place.
    bytes.splice(at..at + long.len(), long.iter().copied());
    let text = error(&[("bytes", bytes)], &bytes_spec());
    assert!(text.contains("claims shape") || text.contains("header"), "{text}");
}

#[test]
fn an_array_that_ends_early_or_late_is_refused() {
    let whole = npy(&Array2::<i32>::zeros((2, 4)));
    let text = error(&[("bytes", whole[..whole.len() - 1].to_vec())], &bytes_spec());
    assert!(text.contains("claims shape") || text.contains("cut short"), "{text}");
    let mut long = whole;
    long.push(0);
    let text = error(&[("bytes", long)], &bytes_spec());
    assert!(text.contains("more elements than its shape"), "{text}");
}

#[test]
fn fortran_order_and_foreign_files_are_refused_with_what_to_do() {
    let array = Array2::from_shape_fn((3, 4), |(i, j)| (i * 4 + j) as i32);
    let fortran = array.reversed_axes().as_standard_layout().to_owned().reversed_axes();
    let text = error(&[("bytes", npy(&fortran))], &bytes_spec());
    assert!(text.contains("ascontiguousarray"), "{text}");
    let text = error(&[("bytes", b"hello, I am no array".to_vec())], &bytes_spec());
    assert!(text.contains("NumPy magic"), "{text}");
}

#[test]
fn limits_are_named() {
    let problem = limit("size of the arrays in bytes", 5, "MAX_DATA_BYTES", 4).unwrap_err();
    assert_eq!(
        problem.to_string(),
        "size of the arrays in bytes is 5, more than MAX_DATA_BYTES = 4"
    );
}

proptest! {
    /// Whatever stands in a header, reading ends in an array or an error.
    #[test]
    fn no_header_makes_reading_panic(header in ".{0,120}", version in 0u8..5, tail in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(tail);
        let size = bytes.len() as u64;
        let _ = read_npy(bytes.as_slice(), size);
    }

    #[test]
    fn what_another_writer_wrote_is_read_back(rows in 1usize..6, columns in 1usize..5, seed in any::<i16>()) {
        let array = Array2::from_shape_fn((rows, columns), |(i, j)| i64::from(seed) * (i + 2 * j) as i64);
        let bytes = npy(&array);
        let read = read_npy(bytes.as_slice(), bytes.len() as u64).unwrap();
        prop_assert_eq!(&read.shape, &vec![rows, columns]);
        let values: Vec<i64> = read.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        prop_assert_eq!(values, array.into_raw_vec_and_offset().0);
    }
}
