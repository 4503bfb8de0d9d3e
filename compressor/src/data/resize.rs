//! Pictures in memory, and their change of size.

use serde::Deserialize;

/// Pixels in rows of interleaved channels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// `height · width · channels` values.
    pub(crate) pixels: Vec<f32>,
}

/// How a pixel of the new size is made of the old ones. Pixel centres lie at half-integers in both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The pixel under its centre.
    Nearest,
    /// The two neighbours in each direction by distance, without smoothing when shrinking.
    #[default]
    Bilinear,
    /// The mean of what it covers: smooth when shrinking, blocks when growing.
    Area,
}

impl Picture {
    /// The picture at another size; both extents at least 1.
    pub(crate) fn resized(&self, height: usize, width: usize, filter: Filter) -> Self {
        if (height, width) == (self.height, self.width) {
            return self.clone();
        }
        self.squeezed(width, filter).transposed().squeezed(height, filter).transposed()
    }

    /// Another width, row by row.
    fn squeezed(&self, width: usize, filter: Filter) -> Self {
        if width == self.width {
            return self.clone();
        }
        let taps = taps(self.width, width, filter);
        let channels = self.channels;
        let mut pixels = Vec::with_capacity(self.height * width * channels);
        for row in self.pixels.chunks_exact((self.width * channels).max(1)) {
            for (start, weights) in &taps {
                for channel in 0..channels {
                    let old = row[start * channels + channel..].iter().step_by(channels);
                    pixels.push(weights.iter().zip(old).map(|(w, p)| w * p).sum());
                }
            }
        }
        Self { width, pixels, ..*self }
    }

    fn transposed(&self) -> Self {
        let (height, width, channels) = (self.width, self.height, self.channels);
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for row in 0..height {
            for column in 0..width {
                let at = (column * self.width + row) * channels;
                pixels.extend_from_slice(&self.pixels[at..at + channels]);
            }
        }
        Self { height, width, channels, pixels }
    }

    /// The middle of the picture; `None` if it is smaller than that.
    pub(crate) fn cropped(&self, height: usize, width: usize) -> Option<Self> {
        let (down, right) =
            (self.height.checked_sub(height)? / 2, self.width.checked_sub(width)? / 2);
        let channels = self.channels;
        let rows = self.pixels.chunks_exact((self.width * channels).max(1));
        let pixels = rows
            .skip(down)
            .take(height)
            .flat_map(|row| &row[right * channels..(right + width) * channels])
            .copied()
            .collect();
        Some(Self { height, width, channels, pixels })
    }
}

/// For each new position, the first old one and the weights from there on; they add up to 1.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let last = from.saturating_sub(1);
    (0..to)
        .map(|at| match filter {
            Filter::Nearest => {
                let centre = (at as f64 + 0.5) * scale;
                ((centre as usize).min(last), vec![1.0])
            }
            Filter::Bilinear => {
                let centre = ((at as f64 + 0.5) * scale - 0.5).clamp(0.0, last as f64);
                let start = centre as usize;
                let part = (centre - start as f64) as f32;
                if start == last { (start, vec![1.0]) } else { (start, vec![1.0 - part, part]) }
            }
            Filter::Area => covered(at as f64 * scale, (at as f64 + 1.0) * scale, last),
        })
        .collect()
}

fn covered(begin: f64, end: f64, last: usize) -> (usize, Vec<f32>) {
    let start = (begin as usize).min(last);
    // An end that rounding put just past a pixel's edge does not cover the next one.
    let stop = ((end - 1e-9).max(begin) as usize).min(last);
    let share = |pixel: usize| {
        let (low, high) = (begin.max(pixel as f64), end.min(pixel as f64 + 1.0));
        (high - low).max(0.0)
    };
    let total: f64 = (start..=stop).map(share).sum();
    (start, (start..=stop).map(|pixel| (share(pixel) / total) as f32).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(pixels: &[f32]) -> Picture {
        Picture { height: 1, width: pixels.len(), channels: 1, pixels: pixels.to_vec() }
    }

    #[test]
    fn one_row_by_hand() {
        let four = row(&[0.0, 10.0, 20.0, 30.0]);
        // Centres at 0.5 and 2.5 of the old pixels' indices.
        assert_eq!(four.resized(1, 2, Filter::Bilinear).pixels, [5.0, 25.0]);
        assert_eq!(four.resized(1, 2, Filter::Area).pixels, [5.0, 25.0]);
        assert_eq!(four.resized(1, 2, Filter::Nearest).pixels, [10.0, 30.0]);
        // Thirds of four: 1 + 1/3 pixels each.
        let thirds = four.resized(1, 3, Filter::Area).pixels;
        for (got, wanted) in thirds.iter().zip([2.5, 15.0, 27.5]) {
            assert!((got - wanted).abs() < 1e-5, "{thirds:?}");
        }
        let two = row(&[0.0, 8.0]);
        assert_eq!(two.resized(1, 4, Filter::Bilinear).pixels, [0.0, 2.0, 6.0, 8.0]);
        assert_eq!(two.resized(1, 4, Filter::Nearest).pixels, [0.0, 0.0, 8.0, 8.0]);
    }

    #[test]
    fn height_and_width_are_not_exchanged() {
        let pixels = (0..12).map(|v| v as f32).collect();
        let picture = Picture { height: 2, width: 3, channels: 2, pixels };
        let taller = picture.resized(4, 3, Filter::Nearest);
        assert_eq!((taller.height, taller.width), (4, 3));
        assert_eq!(taller.pixels[..6], taller.pixels[6..12]);
        assert_eq!(taller.pixels[12..18], picture.pixels[6..]);
    }

    #[test]
    fn the_middle_is_cropped() {
        let picture = Picture {
            height: 3,
            width: 4,
            channels: 1,
            pixels: (0..12).map(|v| v as f32).collect(),
        };
        assert_eq!(picture.cropped(1, 2).unwrap().pixels, [5.0, 6.0]);
        assert!(picture.cropped(4, 1).is_none());
    }

    proptest! {
        #[test]
        fn weights_add_up_to_one_and_stay_inside(
            from in 1usize..60, to in 1usize..60, kind in 0usize..3
        ) {
            let filter = [Filter::Nearest, Filter::Bilinear, Filter::Area][kind];
            for (start, weights) in taps(from, to, filter) {
                prop_assert!(start + weights.len() <= from);
                prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                prop_assert!(weights.iter().all(|w| *w >= 0.0));
            }
        }
    }
}
