use std::fs;

use super::*;
use crate::data::Dataset;

fn spec(name: &str, dtype: ElementType, dims: &[Option<usize>]) -> IoSpec {
    IoSpec { name: name.into(), dtype, dims: dims.to_vec() }
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    fs::read(folder.join(name)).unwrap()
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

    fn load(&self, data: &str, preprocess: &str, specs: &[IoSpec]) -> Result<Dataset, String> {
        let file = self.file("p.toml", preprocess);
        let data = self.0.path().join(data);
        Dataset::load_prepared(&data, &file, specs).map_err(|e| e.to_string())
    }
}

fn images() -> Folder {
    let folder = Folder::new();
    folder.file("set/dog/2.png", fixture("rgb.png"));
    folder.file("set/cat/1.bmp", fixture("rgb.bmp"));
    folder.file("set/dog/10.png", fixture("palette.png"));
    folder.file("set/.hidden", "x");
    folder
}

fn nchw() -> Vec<IoSpec> {
    vec![spec("img", ElementType::F32, &[None, Some(3), Some(2), Some(3)])]
}

#[test]
fn a_folder_of_classes_becomes_labelled_batches() {
    let prep = "[input.img]\nkind = \"image\"\nmean = [0.5, 0, 0]\nstd = [0.5, 1, 2]\n";
    let folder = images();
    let data = folder.load("set", prep, &nchw()).unwrap();
    assert_eq!((data.len(), data.labels().unwrap()), (3, &[0i64, 1, 1][..]));
    let batch = data.batch(&[0, 2]).unwrap();
    assert_eq!(batch[0].1.shape, [2, 3, 2, 3]);
    let values = batch[0].1.to_f32().unwrap();
    // Red, the first plane: (255, 0, 0, 10, 128, 255) / 255, then (r − 0.5) / 0.5.
    let red = [1.0f32, -1.0, -1.0, 10.0 / 127.5 - 1.0, 128.0 / 127.5 - 1.0, 1.0];
    assert!(values.iter().zip(red).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?}");
    // Blue, the third: halves.
    assert!((values[14] - 0.5).abs() < 1e-6 && (values[15] - 15.0 / 255.0).abs() < 1e-6);
}

#[test]
fn a_preprocessing_file_that_names_its_data_is_data() {
    let folder = images();
    let file = folder.file("cats.toml", "data = \"set\"\n[input.img]\nkind = \"image\"\n");
    let data = Dataset::load(&file, &nchw()).unwrap();
    assert_eq!((data.len(), data.file()), (3, folder.0.path().join("set").as_path()));
    let file = folder.file("none.toml", "[input.img]\nkind = \"image\"\n");
    let error = Dataset::load(&file, &nchw()).unwrap_err().to_string();
    assert!(error.contains("none.toml") && error.contains("names no data"), "{error}");
    let file = folder.file("gone.toml", "data = \"gone\"\n[input.img]\nkind = \"image\"\n");
    let error = Dataset::load(&file, &nchw()).unwrap_err().to_string();
    assert!(error.contains("gone: cannot be read"), "{error}");
}

#[test]
fn classes_can_be_named_in_the_models_order() {
    let labels = "[labels]\nclasses = [\"dog\", \"cat\"]\n[input.img]\nkind = \"image\"\n";
    assert_eq!(images().load("set", labels, &nchw()).unwrap().labels().unwrap(), [1, 0, 0]);
    let fewer = "[labels]\nclasses = [\"dog\"]\n[input.img]\nkind = \"image\"\n";
    assert!(images().load("set", fewer, &nchw()).unwrap_err().contains("\"cat\" is none"));
}

#[test]
fn pictures_are_resized_cropped_and_laid_out() {
    let prep = "[input.img]\nkind = \"image\"\nscale = 1\nchannels = \"gray\"\nlayout = \"nhwc\"\n\
                resize = { shorter = 4, filter = \"nearest\" }\ncrop = [4, 2]\n";
    let specs = [spec("img", ElementType::F32, &[None, Some(4), Some(2), Some(1)])];
    let folder = images();
    let data = folder.load("set", prep, &specs).unwrap();
    let values = data.batch(&[1]).unwrap()[0].1.to_f32().unwrap();
    // Six wide, of which the middle two are the second and third pixel's halves: 150 and 128 are.
    assert!(values[..4].iter().all(|v| (v - 149.685).abs() < 1e-3), "{values:?}");
    assert!(values[4..].iter().all(|v| (v - 128.0).abs() < 1e-3), "{values:?}");
    let bytes = [spec("img", ElementType::U8, &[None, Some(2), Some(3), Some(3)])];
    let prep = "[input.img]\nkind = \"image\"\nscale = 1\nlayout = \"nhwc\"\ndtype = \"u8\"\n";
    let data = folder.load("set", prep, &bytes).unwrap();
    assert_eq!(data.batch(&[0]).unwrap()[0].1.data[..6], [255, 0, 0, 0, 255, 0]);
}

#[test]
fn pictures_that_do_not_fit_are_named_with_their_file() {
    let folder = images();
    folder.file("set/dog/9.jpg", fixture("halves.jpg"));
    let plain = "[input.img]\nkind = \"image\"\n";
    let data = folder.load("set", plain, &nchw()).unwrap();
    let error = data.batch(&[3]).unwrap_err().to_string();
    assert!(error.contains("9.jpg") && error.contains("[3, 16, 24]"), "{error}");
    let wanted = [spec("img", ElementType::F32, &[None, Some(3), Some(8), Some(8)])];
    let error = folder.load("set", plain, &wanted).unwrap_err();
    assert!(error.contains("[4, 3, 2, 3]") && error.contains("[?, 3, 8, 8]"), "{error}");
    folder.file("set/dog/9.jpg", "no image at all");
    let error = folder.load("set", plain, &nchw()).unwrap_err();
    assert!(error.contains("sample 3") && error.contains("9.jpg"), "{error}");
    folder.file("set/dog/notes.txt", "x");
    assert!(folder.load("set", plain, &nchw()).unwrap_err().contains("notes.txt"));
}

#[test]
fn folders_that_are_no_set_are_refused() {
    let plain = "[input.img]\nkind = \"image\"\n";
    let folder = images();
    folder.file("set/loose.png", fixture("rgb.png"));
    assert!(folder.load("set", plain, &nchw()).unwrap_err().contains("both folders and files"));
    let folder = images();
    folder.file("set/cat/more/1.png", fixture("rgb.png"));
    assert!(folder.load("set", plain, &nchw()).unwrap_err().contains("within a class folder"));
    let folder = Folder::new();
    fs::create_dir(folder.0.path().join("set")).unwrap();
    assert!(folder.load("set", plain, &nchw()).unwrap_err().contains("no samples"));
}

#[test]
fn a_table_can_name_files_and_texts() {
    let folder = images();
    folder.file("t.csv", "image,class,words\nset/dog/2.png,dog,a b\nset/cat/1.bmp,cat,c\n");
    let prep = "[labels]\nsource = \"class\"\nclasses = [\"cat\", \"dog\"]\n\
                [texts]\nsource = \"words\"\n[input.img]\nkind = \"image\"\nsource = \"image\"\n";
    let data = folder.load("t.csv", prep, &nchw()).unwrap();
    assert_eq!(data.labels().unwrap(), [1, 0]);
    assert_eq!(data.texts().unwrap(), ["a b", "c"]);
    let digest = data.digest();
    folder.file("set/dog/2.png", fixture("rgba.png"));
    assert_ne!(folder.load("t.csv", prep, &nchw()).unwrap().digest(), digest);
    folder.file("t.csv", "image,class,words\nset/dog/gone.png,dog,a\n");
    let error = folder.load("t.csv", prep, &nchw()).unwrap_err();
    assert!(error.contains("gone.png") && error.contains("cannot be read"), "{error}");
}

#[test]
fn columns_are_put_side_by_side_and_normalised() {
    let folder = Folder::new();
    folder.file("t.csv", "labels,a,b\n7,1,10\n8,3,30\n");
    let specs = [spec("x", ElementType::F32, &[None, Some(2)])];
    let prep = "[input.x]\nkind = \"numbers\"\ncolumns = [\"*\"]\nmean = [1, 10]\nstd = [2, 10]\n";
    let data = folder.load("t.csv", prep, &specs).unwrap();
    assert_eq!(data.labels().unwrap(), [7, 8]);
    assert_eq!(data.batch(&[0, 1]).unwrap()[0].1.to_f32().unwrap(), [0.0, 0.0, 1.0, 2.0]);
    let error = folder.load("t.csv", &prep.replace("\"*\"", "\"a\", \"c\""), &specs).unwrap_err();
    assert!(error.contains("no \"c\"") && error.contains("labels, a, b"), "{error}");
    let error = folder.load("t.csv", &prep.replace("[2, 10]", "[2, 0]"), &specs).unwrap_err();
    assert!(error.contains("cannot be 0"), "{error}");
    let error = folder.load("t.csv", &prep.replace("[2, 10]", "[2, 1, 3]"), &specs).unwrap_err();
    assert!(error.contains("std has 3 numbers"), "{error}");
}

#[test]
fn lists_are_padded_reshaped_and_cast() {
    let folder = Folder::new();
    folder.file("t.jsonl", "{\"v\": [1, 2, 3]}\n{\"v\": [4]}\n");
    let specs = [spec("x", ElementType::I32, &[None, Some(2)])];
    let prep = "[input.x]\nkind = \"numbers\"\nsource = \"v\"\nlength = 2\npad = -1\n";
    let data = folder.load("t.jsonl", prep, &specs).unwrap();
    assert_eq!(data.batch(&[0, 1]).unwrap()[0].1.to_i32().unwrap(), [1, 2, 4, -1]);
    let shaped = [spec("x", ElementType::F32, &[None, Some(1), Some(3)])];
    let prep = "[input.x]\nkind = \"numbers\"\nsource = \"v\"\nshape = [1, 3]\n";
    let error = folder.load("t.jsonl", prep, &shaped).unwrap_err();
    assert!(error.contains("sample 1") && error.contains("1 numbers"), "{error}");
    let halves = prep.replace("shape = [1, 3]", "length = 2\nscale = 2");
    let error = folder.load("t.jsonl", &halves, &specs).unwrap_err();
    assert!(error.contains("0.5") && error.contains("INT32"), "{error}");
}

#[test]
fn arrays_can_be_prepared_too() {
    use ndarray_npy::WriteNpyExt;
    let folder = Folder::new();
    let mut bytes = Vec::new();
    ndarray::Array3::from_shape_fn((2, 2, 3), |(i, r, c)| (i * 100 + r * 10 + c) as u8)
        .write_npy(&mut bytes)
        .unwrap();
    folder.file("a.npy", bytes);
    let specs = [spec("x", ElementType::F32, &[None, Some(1), Some(2), Some(3)])];
    let prep = "[input.x]\nkind = \"image\"\nchannels = \"gray\"\nscale = 1\n";
    let data = folder.load("a.npy", prep, &specs).unwrap();
    assert_eq!(
        data.batch(&[1]).unwrap()[0].1.to_f32().unwrap(),
        [100., 101., 102., 110., 111., 112.]
    );
}

fn wav(folder: &Folder, name: &str, rate: u32, channels: u16, frames: usize) {
    let spec = hound::WavSpec {
        channels,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let path = folder.file(name, "");
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for frame in 0..frames {
        for channel in 0..channels {
            writer.write_sample(if channel == 0 { 16_384 + frame as i16 } else { 0 }).unwrap();
        }
    }
    writer.finalize().unwrap();
}

#[test]
fn sound_is_mixed_padded_and_of_the_right_rate() {
    let folder = Folder::new();
    wav(&folder, "s/a/1.wav", 16_000, 1, 6);
    wav(&folder, "s/b/2.wav", 16_000, 2, 2);
    let specs = [spec("w", ElementType::F32, &[None, Some(4)])];
    let prep = "[input.w]\nkind = \"audio\"\nsample_rate = 16000\nlength = 4\n";
    let data = folder.load("s", prep, &specs).unwrap();
    let values = data.batch(&[0, 1]).unwrap()[0].1.to_f32().unwrap();
    assert_eq!(values[..2], [0.5, 16_385.0 / 32_768.0]);
    assert_eq!(values[4..], [0.25, 16_385.0 / 65_536.0, 0.0, 0.0]);
    wav(&folder, "s/b/3.wav", 8_000, 1, 4);
    let error = folder.load("s", prep, &specs).unwrap_err();
    assert!(error.contains("3.wav") && error.contains("8000 Hz"), "{error}");
    let converted = format!("{prep}resample = true\n");
    assert_eq!(folder.load("s", &converted, &specs).unwrap().labels().unwrap(), [0, 1, 1]);
    let alone = folder.load("s/a/1.wav", prep, &specs).unwrap();
    assert_eq!((alone.len(), alone.labels()), (1, None));
}

#[test]
fn damaged_sound_is_named() {
    let folder = Folder::new();
    wav(&folder, "s/1.wav", 16_000, 1, 100);
    let specs = [spec("w", ElementType::F32, &[None, None])];
    let prep = "[input.w]\nkind = \"audio\"\nsample_rate = 16000\n";
    let path = folder.0.path().join("s/1.wav");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let error = folder.load("s", prep, &specs).unwrap_err();
    assert!(error.contains("1.wav") && error.contains("cut short"), "{error}");
    fs::write(&path, &whole[..10]).unwrap();
    assert!(folder.load("s", prep, &specs).unwrap_err().contains("1.wav"));
}

#[test]
fn texts_are_tokenized_by_a_vocabulary_beside_the_file() {
    let folder = Folder::new();
    folder.file("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\n");
    folder.file("t.jsonl", "{\"text\": \"Hello world\"}\n{\"text\": \"other\"}\n");
    let specs = ["ids", "mask", "types"].map(|n| spec(n, ElementType::I64, &[None, None]));
    let prep: String = specs
        .iter()
        .map(|s| {
            format!(
                "[input.{0}]\nkind = \"text\"\nsource = \"text\"\nvocabulary = \"vocab.txt\"\n\
                 length = 5\npart = \"{0}\"\n",
                s.name
            )
        })
        .collect();
    let data = folder.load("t.jsonl", &prep, &specs).unwrap();
    let batch = data.batch(&[0, 1]).unwrap();
    assert_eq!(batch[0].1.to_i64().unwrap(), [2, 4, 5, 3, 0, 2, 1, 3, 0, 0]);
    assert_eq!(batch[1].1.to_i64().unwrap(), [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]);
    assert_eq!(batch[2].1.to_i64().unwrap(), [0; 10]);
    let error = folder.load("t.jsonl", &prep.replace("vocab.txt", "gone.txt"), &specs).unwrap_err();
    assert!(error.contains("gone.txt") && error.contains("p.toml"), "{error}");
}

#[test]
fn a_preprocessing_file_that_makes_no_sense_is_refused_by_name() {
    let folder = images();
    let of = |text: &str| {
        let error = folder.load("set", text, &nchw()).unwrap_err();
        assert!(error.contains("p.toml"), "{error}");
        error
    };
    assert!(of("[input.img]\nkind = \"image\"\nresizee = 3\n").contains("resizee"));
    assert!(of("[input.img]\nkind = \"video\"\n").contains("video"));
    assert!(of("[input.other]\nkind = \"image\"\n").contains("its inputs are img"));
    assert!(of("not toml at all").contains("p.toml"));
    assert!(of("[input.img]\nkind = \"image\"\nresize = {}\n").contains("shorter"));
    assert!(of("[input.img]\nkind = \"image\"\ncrop = [0, 3]\n").contains("MAX_IMAGE_SIDE"));
    assert!(of("[input.img]\nkind = \"image\"\ndtype = \"u8\"\n").contains("UINT8"));
    assert!(of("[input.img]\nkind = \"audio\"\nsample_rate = 0\n").contains("MAX_SAMPLE_RATE"));
    let error = folder.load("set", "", &nchw()).unwrap_err();
    assert!(error.contains("no array for the model's input \"img\""), "{error}");
    folder.file("p.toml", "#".repeat(MAX_PREPROCESS_BYTES as usize + 1));
    let file = folder.0.path().join("p.toml");
    let set = folder.0.path().join("set");
    let error = Dataset::load_prepared(&set, &file, &nchw()).unwrap_err().to_string();
    assert!(error.contains("MAX_PREPROCESS_BYTES"), "{error}");
}
