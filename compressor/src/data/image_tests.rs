use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images").join(name)
}

/// The fixtures were written by Pillow from these pixels, three wide and two high.
const RGB: [f32; 18] = [
    255.0, 0.0, 0.0, 0.0, 255.0, 0.0, 0.0, 0.0, 255.0, 10.0, 20.0, 30.0, 128.0, 128.0, 128.0,
    255.0, 255.0, 255.0,
];
const GRAY: [f32; 6] = [0.0, 100.0, 200.0, 50.0, 150.0, 250.0];

#[test]
fn every_kind_of_png_and_bmp_gives_its_pixels() {
    for name in ["rgb.png", "rgba.png", "palette.png", "rgb.bmp"] {
        let picture = read(&fixture(name), Channels::Rgb).unwrap();
        assert_eq!((picture.height, picture.width, picture.channels), (2, 3, 3), "{name}");
        assert_eq!(picture.pixels, RGB, "{name}");
    }
    for name in ["gray.png", "gray16.png"] {
        assert_eq!(read(&fixture(name), Channels::Gray).unwrap().pixels, GRAY, "{name}");
        let rgb = read(&fixture(name), Channels::Rgb).unwrap();
        assert_eq!(rgb.pixels[3..6], [100.0; 3], "{name}");
    }
}

#[test]
fn channels_are_ordered_and_mixed_as_asked() {
    let bgr = read(&fixture("rgb.png"), Channels::Bgr).unwrap();
    assert_eq!(bgr.pixels[9..12], [30.0, 20.0, 10.0]);
    let gray = read(&fixture("rgb.png"), Channels::Gray).unwrap();
    // Pillow's convert("L"), which rounds.
    for (got, pillow) in gray.pixels.iter().zip([76.0, 150.0, 29.0, 18.0, 128.0, 255.0]) {
        assert!((got - pillow).abs() <= 0.51, "{:?}", gray.pixels);
    }
}

/// Far from the edge between its halves a JPEG has the values that Pillow decodes.
#[test]
fn jpegs_are_decoded_as_by_others() {
    for name in ["halves.jpg", "progressive.jpg"] {
        let picture = read(&fixture(name), Channels::Rgb).unwrap();
        assert_eq!((picture.height, picture.width), (16, 24), "{name}");
        for (x, pillow) in [(2, [199.0, 30.0, 59.0]), (20, [20.0, 180.0, 90.0])] {
            let at = (8 * 24 + x) * 3;
            let near = |(a, b): (&f32, f32)| (a - b).abs() <= 2.0;
            assert!(picture.pixels[at..at + 3].iter().zip(pillow).all(near), "{name} {x}");
        }
    }
    let gray = read(&fixture("gray.jpg"), Channels::Gray).unwrap();
    assert!((gray.pixels[8 * 24 + 2] - 200.0).abs() <= 2.0, "{:?}", &gray.pixels[..4]);
}

fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.png");
    std::fs::write(&path, bytes).unwrap();
    let looked = check(&path);
    let error = read(&path, Channels::Rgb).unwrap_err();
    assert!(looked.is_ok() || looked == Err(error.clone()));
    error
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let mut png = std::fs::read(fixture("rgb.png")).unwrap();
    png[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(refused(&png).contains("MAX_IMAGE_SIDE"));
    png[16..20].copy_from_slice(&16_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&16_000u32.to_be_bytes());
    assert!(refused(&png).contains("MAX_IMAGE_PIXELS"));
    png[16..20].copy_from_slice(&0u32.to_be_bytes());
    assert!(refused(&png).contains("empty image"));
    let mut bmp = std::fs::read(fixture("rgb.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&2_000_000_000i32.to_le_bytes());
    refused(&bmp);
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    assert!(refused(b"hello").contains("no PNG, JPEG or BMP"));
    assert!(refused(b"").contains("no PNG, JPEG or BMP"));
    assert!(check(Path::new("/dev/zero")).unwrap_err().contains("no regular file"));
    assert!(check(Path::new("/no/such.png")).unwrap_err().contains("cannot be read"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to a file, reading it ends in a picture or an error.
    #[test]
    fn damage_never_panics(
        kind in 0usize..4,
        cut in 0usize..1000,
        changes in prop::collection::vec((0usize..1000, any::<u8>()), 0..6)
    ) {
        let name = ["rgb.png", "halves.jpg", "progressive.jpg", "rgb.bmp"][kind];
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.max(1));
        // What a damaged header claims within the limit is decoded: small here, for time.
        if let Ok(picture) = decoded(&bytes, Channels::Rgb, 1 << 16) {
            prop_assert_eq!(picture.pixels.len(), picture.height * picture.width * 3);
        }
    }
}
