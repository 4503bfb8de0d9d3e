//! Sound files: WAV of integers up to 32 bits or of 32-bit floats, mixed down to one channel.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use hound::{SampleFormat, WavReader};

/// The most samples of one file, all channels together.
pub(crate) const MAX_SOUND_SAMPLES: usize = 128 << 20;
/// The highest sample rate, in Hz.
pub(crate) const MAX_SAMPLE_RATE: u32 = 768_000;
/// Zero crossings of the resampling filter on each side of its centre.
const CROSSINGS: f64 = 16.0;
/// Share of the band that the resampling filter leaves as it is.
const PASSED: f64 = 0.95;

/// A mono sound from −1 to 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sound {
    pub(crate) rate: u32,
    pub(crate) samples: Vec<f32>,
}

/// Reads a sound.
///
/// # Errors
/// It cannot be read, is no WAV that is read, is over a limit, or is damaged or cut short.
pub(crate) fn read(path: &Path) -> Result<Sound, String> {
    let mut reader = open(path)?;
    let spec = reader.spec();
    let channels = usize::from(spec.channels);
    let total = reader.len() as usize;
    let damaged = |e: hound::Error| format!("is damaged or cut short: {e}");
    let values: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => {
            reader.samples::<f32>().collect::<Result<_, _>>().map_err(damaged)?
        }
        SampleFormat::Int => {
            let full = f64::from(spec.bits_per_sample - 1).exp2();
            let scaled = |v: i32| (f64::from(v) / full) as f32;
            let samples = reader.samples::<i32>().map(|v| v.map(scaled));
            samples.collect::<Result<_, _>>().map_err(damaged)?
        }
    };
    if values.len() != total {
        return Err(format!("is cut short: {} of {total} samples are there", values.len()));
    }
    let mixed = |frame: &[f32]| frame.iter().sum::<f32>() / channels as f32;
    Ok(Sound {
        rate: spec.sample_rate,
        samples: values.chunks_exact(channels).map(mixed).collect(),
    })
}

/// Looks at a sound's header, and gives its sample rate.
///
/// # Errors
/// As [`read`], but for damage to its samples.
pub(crate) fn check(path: &Path) -> Result<u32, String> {
    Ok(open(path)?.spec().sample_rate)
}

fn open(path: &Path) -> Result<WavReader<BufReader<File>>, String> {
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is no regular file".into());
    }
    let reader = WavReader::new(BufReader::new(file))
        .map_err(|e| format!("is no WAV that is read, or is damaged: {e}"))?;
    let spec = reader.spec();
    if spec.channels == 0 || !(1..=32).contains(&spec.bits_per_sample) {
        return Err(format!(
            "has {} channels of {} bits, which are not read",
            spec.channels, spec.bits_per_sample
        ));
    }
    if spec.sample_rate == 0 || spec.sample_rate > MAX_SAMPLE_RATE {
        return Err(format!(
            "has a sample rate of {} Hz; 1 to MAX_SAMPLE_RATE = {MAX_SAMPLE_RATE} are read",
            spec.sample_rate
        ));
    }
    if reader.len() as usize > MAX_SOUND_SAMPLES {
        return Err(format!(
            "has {} samples, more than MAX_SOUND_SAMPLES = {MAX_SOUND_SAMPLES}",
            reader.len()
        ));
    }
    if reader.len() == 0 {
        return Err("holds no sound".into());
    }
    Ok(reader)
}

impl Sound {
    /// The sound at another rate, by a sinc of 16 zero crossings under a Hann window, cut off at the
    /// lower of both bands so that nothing folds back.
    pub(crate) fn resampled(&self, rate: u32) -> Self {
        if rate == self.rate {
            return self.clone();
        }
        let step = f64::from(self.rate) / f64::from(rate);
        // In cycles per sample of the source, times two.
        let cutoff = PASSED * (1.0f64).min(1.0 / step);
        let reach = CROSSINGS / cutoff;
        let length = (self.samples.len() as f64 / step).round().max(1.0) as usize;
        let samples = (0..length)
            .map(|at| {
                let centre = at as f64 * step;
                let first = (centre - reach).ceil().max(0.0) as usize;
                let last = ((centre + reach).floor() as usize).min(self.samples.len() - 1);
                let near = self.samples.get(first..=last).unwrap_or(&[]).iter().enumerate();
                near.map(|(i, v)| {
                    let distance = (first + i) as f64 - centre;
                    f64::from(*v) * cutoff * sinc(cutoff * distance) * hann(distance / reach)
                })
                .sum::<f64>() as f32
            })
            .collect();
        Self { rate, samples }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x.abs() < 1e-9 { 1.0 } else { x.sin() / x }
}

fn hann(x: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * x.clamp(-1.0, 1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hertz: f64, length: usize) -> Sound {
        let angle = |i: usize| 2.0 * std::f64::consts::PI * hertz * i as f64 / f64::from(rate);
        Sound { rate, samples: (0..length).map(|i| angle(i).sin() as f32).collect() }
    }

    #[test]
    fn a_tone_below_both_bands_keeps_its_shape() {
        for (from, to) in [(44_100, 16_000), (8_000, 16_000)] {
            let got = tone(from, 1_000.0, from as usize / 4).resampled(to);
            let wanted = tone(to, 1_000.0, to as usize / 4);
            assert_eq!((got.rate, got.samples.len()), (to, wanted.samples.len()));
            let inner = 200..got.samples.len() - 200;
            for (g, w) in got.samples[inner.clone()].iter().zip(&wanted.samples[inner]) {
                assert!((g - w).abs() < 5e-3, "{g} {w}");
            }
        }
    }

    #[test]
    fn a_tone_above_the_new_band_does_not_fold_back() {
        let got = tone(44_100, 12_000.0, 11_025).resampled(16_000);
        let loudest = got.samples[200..3_800].iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(loudest < 1e-2, "{loudest}");
    }
}
