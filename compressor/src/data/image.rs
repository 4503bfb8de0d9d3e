//! Image files: PNG, JPEG and BMP, by their first bytes. Transparency is dropped; orientation and colour
//! profiles are not applied.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use zune_bmp::BmpDecoder;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_png::PngDecoder;

use super::resize::Picture;

/// The longest image file.
pub(crate) const MAX_IMAGE_FILE_BYTES: u64 = 64 << 20;
/// The longest side of an image, in pixels.
pub(crate) const MAX_IMAGE_SIDE: usize = 16_384;
/// The most pixels of an image.
pub(crate) const MAX_IMAGE_PIXELS: usize = 32 << 20;

/// Which channels a model sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Luma: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
    Gray,
}

/// A decoder that has read an image's header.
enum Opened<'a> {
    Png(Box<PngDecoder<ZCursor<&'a [u8]>>>),
    Jpeg(Box<JpegDecoder<ZCursor<&'a [u8]>>>),
    Bmp(Box<BmpDecoder<ZCursor<&'a [u8]>>>),
}

/// Reads an image.
///
/// # Errors
/// It cannot be read, is of no known format, is over a limit, or is damaged.
pub(crate) fn read(path: &Path, channels: Channels) -> Result<Picture, String> {
    decoded(&bytes(path)?, channels, MAX_IMAGE_PIXELS)
}

fn decoded(bytes: &[u8], channels: Channels, most: usize) -> Result<Picture, String> {
    guarded(|| {
        let (mut decoder, height, width) = open(bytes, most)?;
        let (pixels, colours) = decode(&mut decoder)?;
        picture(&pixels, colours, (height, width), channels)
    })
}

/// Looks at an image's header.
///
/// # Errors
/// As [`read`], but for damage to its pixels.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let bytes = bytes(path)?;
    guarded(|| open(&bytes, MAX_IMAGE_PIXELS).map(|_| ()))
}

/// The elements of an array of bytes, `[height, width]` or `[height, width, channels]`, as a picture.
///
/// # Errors
/// The shape is no picture's.
pub(crate) fn of_array(
    shape: &[usize],
    pixels: &[u8],
    channels: Channels,
) -> Result<Picture, String> {
    let (height, width, colours) = match *shape {
        [height, width] => (height, width, 1),
        [height, width, colours @ 1..=4] => (height, width, colours),
        _ => return Err(format!("has shape {shape:?}, which is no [height, width, channels]")),
    };
    within_limits(height, width, MAX_IMAGE_PIXELS)?;
    picture(pixels, colours, (height, width), channels)
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is no regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_IMAGE_FILE_BYTES {
        return Err(format!("is longer than MAX_IMAGE_FILE_BYTES = {MAX_IMAGE_FILE_BYTES}"));
    }
    Ok(bytes)
}

/// A decoder that panics on a damaged file is one more way to say that it is damaged.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("is damaged in a way that its decoder does not expect".into()))
}

/// A decoder that has read the header of an image of at most `most` pixels, and the image's height and width.
fn open(bytes: &[u8], most: usize) -> Result<(Opened<'_>, usize, usize), String> {
    let options = DecoderOptions::new_safe()
        .set_max_width(MAX_IMAGE_SIDE)
        .set_max_height(MAX_IMAGE_SIDE)
        .png_set_strip_to_8bit(true)
        .inflate_set_limit(most.saturating_mul(8))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let cursor = ZCursor::new(bytes);
    let damaged = |e: String| format!("is a damaged or unsupported image: {e}");
    let (opened, size) = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png_size(bytes, most)?;
        let mut decoder = PngDecoder::new_with_options(cursor, options);
        decoder.decode_headers().map_err(|e| damaged(format!("{e:?}")))?;
        let size = decoder.dimensions();
        (Opened::Png(Box::new(decoder)), size)
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        let mut decoder = JpegDecoder::new_with_options(cursor, options);
        decoder.decode_headers().map_err(|e| damaged(format!("{e:?}")))?;
        let size = decoder.dimensions();
        (Opened::Jpeg(Box::new(decoder)), size)
    } else if bytes.starts_with(b"BM") {
        let mut decoder = BmpDecoder::new_with_options(cursor, options);
        decoder.decode_headers().map_err(|e| damaged(format!("{e:?}")))?;
        let size = decoder.dimensions();
        (Opened::Bmp(Box::new(decoder)), size)
    } else {
        return Err("is no PNG, JPEG or BMP by its first bytes".into());
    };
    let (width, height) = size.ok_or_else(|| damaged("it has no size".into()))?;
    within_limits(height, width, most)?;
    Ok((opened, height, width))
}

/// The size in a PNG's first chunk, before the decoder takes memory for it.
fn png_size(bytes: &[u8], most: usize) -> Result<(), String> {
    let side = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        four.map(|b| u32::from_be_bytes(b) as usize)
    };
    let (Some(width), Some(height)) = (side(16), side(20)) else {
        return Err("is a damaged image: it ends within its header".into());
    };
    within_limits(height, width, most)
}

fn within_limits(height: usize, width: usize, most: usize) -> Result<(), String> {
    if height == 0 || width == 0 {
        return Err(format!("is {width} by {height} pixels, an empty image"));
    }
    if height.max(width) > MAX_IMAGE_SIDE {
        return Err(format!(
            "is {width} by {height} pixels, more than MAX_IMAGE_SIDE = {MAX_IMAGE_SIDE}"
        ));
    }
    if height.saturating_mul(width) > most {
        return Err(format!("is {width} by {height} pixels, more than MAX_IMAGE_PIXELS = {most}"));
    }
    Ok(())
}

/// Bytes of the pixels, and how many channels each has.
fn decode(decoder: &mut Opened<'_>) -> Result<(Vec<u8>, usize), String> {
    let damaged = |e: String| format!("is a damaged image: {e}");
    let (pixels, colours) = match decoder {
        Opened::Png(png) => {
            let pixels = png.decode_raw().map_err(|e| damaged(format!("{e:?}")))?;
            (pixels, png.colorspace())
        }
        Opened::Jpeg(jpeg) => {
            let pixels = jpeg.decode().map_err(|e| damaged(format!("{e:?}")))?;
            (pixels, jpeg.output_colorspace())
        }
        Opened::Bmp(bmp) => {
            let pixels = bmp.decode().map_err(|e| damaged(format!("{e:?}")))?;
            (pixels, bmp.colorspace())
        }
    };
    let colours = match colours {
        Some(ColorSpace::Luma) => 1,
        Some(ColorSpace::LumaA) => 2,
        Some(ColorSpace::RGB) => 3,
        Some(ColorSpace::RGBA) => 4,
        other => return Err(format!("has colours {other:?}, which are not read")),
    };
    Ok((pixels, colours))
}

/// Interleaved bytes (1 gray, 2 gray and alpha, 3 red green blue, 4 with alpha) as wanted.
fn picture(
    bytes: &[u8],
    colours: usize,
    (height, width): (usize, usize),
    channels: Channels,
) -> Result<Picture, String> {
    if bytes.len() != height * width * colours {
        return Err(format!(
            "has {} bytes of pixels where {width} by {height} of {colours} channels are {}",
            bytes.len(),
            height * width * colours
        ));
    }
    let rgb = |pixel: &[u8]| -> [f32; 3] {
        match *pixel {
            [red, green, blue, ..] => [red, green, blue].map(f32::from),
            [gray, ..] => [f32::from(gray); 3],
            [] => [0.0; 3],
        }
    };
    let pixels = bytes.chunks_exact(colours).map(rgb);
    let pixels = match channels {
        Channels::Rgb => pixels.flatten().collect(),
        Channels::Bgr => pixels.flat_map(|[red, green, blue]| [blue, green, red]).collect(),
        Channels::Gray if colours < 3 => pixels.map(|[gray, ..]| gray).collect(),
        Channels::Gray => {
            pixels.map(|[red, green, blue]| 0.299 * red + 0.587 * green + 0.114 * blue).collect()
        }
    };
    let channels = if channels == Channels::Gray { 1 } else { 3 };
    Ok(Picture { height, width, channels, pixels })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "image_tests.rs"]
mod tests;
