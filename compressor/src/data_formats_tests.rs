use std::fs;
use std::path::PathBuf;

use ndarray::{Array1, Array2};
use ndarray_npy::WriteNpyExt;
use proptest::prelude::*;

use super::*;

fn spec(name: &str, dtype: ElementType, dims: &[Option<usize>]) -> IoSpec {
    IoSpec { name: name.into(), dtype, dims: dims.to_vec() }
}

fn x() -> Vec<IoSpec> {
    vec![spec("x", ElementType::F32, &[None, Some(2)])]
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn load(name: &str, bytes: impl AsRef<[u8]>, specs: &[IoSpec]) -> Result<Dataset, DataError> {
    let folder = Folder::new();
    Dataset::load(&folder.file(name, bytes), specs)
}

fn error(name: &str, bytes: impl AsRef<[u8]>, specs: &[IoSpec]) -> String {
    let text = load(name, bytes, specs).unwrap_err().to_string();
    assert!(text.contains(name), "{text}");
    text
}

fn npy(rows: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let array = Array2::from_shape_fn((rows, 2), |(i, j)| (i * 2 + j) as f32);
    array.write_npy(&mut bytes).unwrap();
    bytes
}

fn floats(data: &Dataset, sample: usize) -> Vec<f32> {
    data.batch(&[sample]).unwrap()[0].1.to_f32().unwrap()
}

#[test]
fn an_npy_is_the_only_input_and_is_read_from_the_file() {
    let data = load("a.npy", npy(5), &x()).unwrap();
    assert_eq!((data.len(), floats(&data, 3)), (5, vec![6.0, 7.0]));
    let (others, heldout) = data.hold_out(2).unwrap();
    assert_eq!((floats(&others, 2), floats(&heldout, 1)), (vec![8.0, 9.0], vec![6.0, 7.0]));
    let two = [x().remove(0), spec("y", ElementType::F32, &[None, Some(2)])];
    let text = error("a.npy", npy(5), &two);
    assert!(text.contains("\"x\"") && text.contains("\"array\""), "{text}");
}

#[test]
fn a_damaged_npy_is_refused() {
    let whole = npy(5);
    assert!(error("a.npy", &whole[..whole.len() - 1], &x()).contains("claims shape"));
    let long = [whole.as_slice(), &[0]].concat();
    assert!(error("a.npy", long, &x()).contains("more elements"));
    let mut array = Array2::<f32>::zeros((400_000, 2));
    array[(399_999, 1)] = f32::NAN;
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    assert!(error("a.npy", bytes, &x()).contains("NaN in sample 399999"));
}

#[test]
fn a_file_that_shrinks_is_an_error_when_it_is_read() {
    let folder = Folder::new();
    let path = folder.file("a.npy", npy(5));
    let data = Dataset::load(&path, &x()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = data.batch(&[4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("a.npy"), "{error}");
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

const TENSORS: &str = r#"{"__metadata__":{"by":"me"},
    "labels":{"dtype":"U8","shape":[3],"data_offsets":[24,27]},
    "x":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#;

#[test]
fn safetensors_are_named_arrays() {
    let bytes = [f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), vec![2, 1, 0]].concat();
    let data = load("a.safetensors", safetensors(TENSORS, &bytes), &x()).unwrap();
    assert_eq!(data.labels().unwrap(), [2, 1, 0]);
    assert_eq!(floats(&data, 2), [4.0, 5.0]);
    // The crate of the format's authors writes the same.
    let view = safetensors_view(&[7.0, 8.0]);
    let data = load("b.safetensors", view, &x()).unwrap();
    assert_eq!(floats(&data, 0), [7.0, 8.0]);
}

/// One `[1, 2]` tensor "x", header padded with blanks as the reference writer does.
fn safetensors_view(values: &[f32]) -> Vec<u8> {
    let header = r#"{"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    safetensors(&format!("{header:<64}"), &f32s(values))
}

#[test]
fn damaged_safetensors_are_refused_by_name() {
    let of = |header: &str, bytes: &[u8]| error("a.safetensors", safetensors(header, bytes), &x());
    assert!(of(TENSORS, &[0; 20]).contains("claims shape"));
    let entry = |shape: &str, offsets: &str| {
        let header =
            format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        of(&header, &[0; 24])
    };
    assert!(entry("[3,2]", "[8,4]").contains("array \"x\""));
    assert!(entry("[3,3]", "[0,24]").contains("claims shape [3, 3]"));
    assert!(entry("[18446744073709551615,9]", "[0,24]").contains("claims"));
    assert!(entry("[-1]", "[0,24]").contains("damaged header"));
    assert!(
        of(r#"{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#, &[0]).contains("F8")
    );
    assert!(of("{", &[]).contains("header"));
    let text = error("a.safetensors", u64::MAX.to_le_bytes(), &x());
    assert!(text.contains("MAX_SAFETENSORS_HEADER_BYTES"), "{text}");
    assert!(error("a.safetensors", [1, 2], &x()).contains("cut short"));
}

#[test]
fn fields_of_json_lines_are_inputs() {
    let lines = "{\"x\": [1, 2], \"labels\": 1}\n\n{\"x\": [3, 4.5], \"labels\": 0}\n";
    let data = load("a.jsonl", lines, &x()).unwrap();
    assert_eq!(data.labels().unwrap(), [1, 0]);
    assert_eq!(floats(&data, 1), [3.0, 4.5]);
}

#[test]
fn damaged_json_lines_are_refused_with_their_line() {
    let of = |second: &str| error("a.jsonl", format!("{{\"x\": [1, 2]}}\n{second}\n"), &x());
    assert!(of("{").contains("line 2"));
    assert!(of("[1]").contains("line 2"));
    assert!(of("{\"y\": 1}").contains("no field \"x\" in line 2"));
    assert!(of("{\"x\": null}").contains("is null"));
    assert!(of("{\"x\": [[1], [1, 2]]}").contains("different lengths"));
    assert!(of("{\"x\": [1, 2, 3]}").contains("[3] where the first sample has [2]"));
    assert!(of("{\"x\": [1, 1e39]}").contains("too large for FP32"));
    assert!(of(&format!("{{\"x\": {}", "[".repeat(10_000))).contains("line 2"));
    assert!(error("a.jsonl", "\n\n", &x()).contains("no samples"));
    let text = error("a.jsonl", "{\"image\": [1, 2]}", &x());
    assert!(text.contains("input \"x\"") && text.contains("\"image\""), "{text}");
}

fn scalars() -> Vec<IoSpec> {
    vec![spec("a", ElementType::F32, &[None]), spec("b", ElementType::I64, &[None, Some(1)])]
}

#[test]
fn columns_of_a_csv_are_scalar_inputs() {
    let data = load("t.csv", "a,b,labels\n0.5,3,1\n\"-1\",4,0\n", &scalars()).unwrap();
    assert_eq!(data.labels().unwrap(), [1, 0]);
    let batch = data.batch(&[1, 0]).unwrap();
    assert_eq!(batch[0].1.to_f32().unwrap(), [-1.0, 0.5]);
    assert_eq!((batch[1].1.shape.clone(), batch[1].1.to_i64().unwrap()), (vec![2, 1], vec![4, 3]));
}

#[test]
fn damaged_csvs_are_refused() {
    let of = |text: &str| error("t.csv", text, &scalars());
    assert!(of("a,b\n1,2\n3\n").contains("line: 3"));
    assert!(of("a,b\n1,x\n").contains("\"x\" is no number"));
    assert!(of("a,b\n1,0.5\n").contains("0.5"));
    assert!(of("a,b\nnan,1\n").contains("NaN"));
    assert!(of("a,b\n1,2\n,2\n").contains("sample 1"));
    assert!(of("a,b\n").contains("no samples"));
    assert!(of("a,a,b\n1,1,1\n").contains("two columns \"a\""));
    assert!(of("a,c\n1,2\n").contains("no array for the model's input \"b\""));
    assert!(of("").contains("no samples"));
}

/// A quote that is never closed makes the rest of the file one record.
#[test]
fn a_record_without_end_is_cut_off() {
    let mut text = b"a,b\n\"".to_vec();
    text.resize(table::MAX_RECORD_BYTES as usize + (1 << 20), b'x');
    assert!(error("t.csv", text, &scalars()).contains("MAX_RECORD_BYTES"));
}

#[test]
fn folders_need_to_be_told_what_the_model_takes() {
    let folder = Folder::new();
    folder.file("cat/1.png", "");
    let specs = [spec("img", ElementType::F32, &[None, Some(3), Some(32), Some(48)])];
    let text = Dataset::load(folder.0.path(), &specs).unwrap_err().to_string();
    assert!(text.contains("data = ") && text.contains("to = [32, 48]"), "{text}");
}

#[test]
fn other_formats_are_refused_by_name() {
    let folder = Folder::new();
    let prep = folder.file("p.toml", "");
    let path = folder.file("a.parquet", "PAR1");
    let text = Dataset::load_prepared(&path, &prep, &x()).unwrap_err().to_string();
    assert!(text.contains(".safetensors") && text.contains("a.parquet"), "{text}");
}

/// Half a megabyte that unpacks to more than the limit is refused before it is unpacked.
#[test]
fn a_zip_bomb_is_refused_by_what_it_claims() {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    for name in ["x.npy", "y.npy"] {
        zip.start_file(name, options).unwrap();
        zip.write_all(&vec![0u8; 1 << 20]).unwrap();
    }
    let mut bytes = zip.finish().unwrap().into_inner();
    // Both central records claim just under 4 GiB unpacked; the field lies 24 bytes in.
    let marks: Vec<usize> =
        (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"PK\x01\x02").collect();
    assert_eq!(marks.len(), 2);
    for at in marks {
        bytes[at + 24..at + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    }
    assert!(error("bomb.npz", bytes, &x()).contains("MAX_DATA_BYTES"));
}

#[test]
fn bools_that_are_none_are_refused() {
    let specs = [spec("m", ElementType::Bool, &[None])];
    let mut bytes = Vec::new();
    Array1::from(vec![true, false, true]).write_npy(&mut bytes).unwrap();
    assert_eq!(load("m.npy", &bytes, &specs).unwrap().len(), 3);
    let last = bytes.len() - 1;
    bytes[last] = 2;
    assert!(error("m.npy", bytes, &specs).contains("no bool"));
}

proptest! {
    #[test]
    fn no_bytes_make_opening_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..6) {
        let name = ["a.npz", "a.npy", "a.safetensors", "a.csv", "a.jsonl", "a.wav"][kind];
        let _ = load(name, bytes, &x());
    }

    #[test]
    fn no_header_makes_safetensors_panic(header in ".{0,120}", data in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = load("a.safetensors", safetensors(&header, &data), &x());
    }

    /// Rows come back as they went in, whatever their order.
    #[test]
    fn csv_rows_are_found_again(rows in prop::collection::vec((-1000i32..1000, -1000i64..1000), 1..30), pick in any::<prop::sample::Index>()) {
        let body: String = rows.iter().map(|(a, b)| format!("{a},\"{b}\"\r\n")).collect();
        let data = load("t.csv", format!("a,b\r\n{body}"), &scalars());
        // The folder is gone, the open file is not.
        let data = data.unwrap();
        let at = pick.index(rows.len());
        let batch = data.batch(&[at]).unwrap();
        prop_assert_eq!(batch[0].1.to_f32().unwrap(), vec![rows[at].0 as f32]);
        prop_assert_eq!(batch[1].1.to_i64().unwrap(), vec![rows[at].1]);
    }
}
