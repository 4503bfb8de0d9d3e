//! The models that are pruned, and what is said about the answers they are judged by.

/// A model, and how it is judged.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Relative to the assets folder, or to the workspace where it is a fixture.
    pub(super) file: &'static str,
    pub(super) place: Place,
    /// What a quality of 1 is.
    pub(super) quality: &'static str,
    /// What the samples are.
    pub(super) samples: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Assets,
    Workspace,
}

pub(super) const SUBJECTS: &[Subject] = &[
    Subject {
        name: "rec",
        title: "PP-OCRv4 rec",
        file: "models/ppocr_rec.onnx",
        place: Place::Assets,
        quality: "1 less the character error rate against what the original reads (greedy CTC)",
        samples: "96 rendered lines of text for calibration, 96 of other texts held out, 48 x 320",
    },
    Subject {
        name: "det",
        title: "PP-OCRv4 det",
        file: "models/ppocr_det.onnx",
        place: Place::Assets,
        quality: "F1 of the pixels called text (over 0.3) against the original's",
        samples: "24 rendered pages for calibration, 16 of other texts held out, 320 x 320",
    },
    Subject {
        name: "cls",
        title: "PP-OCRv4 cls",
        file: "models/ppocr_cls.onnx",
        place: Place::Assets,
        quality: "share of lines for which it says the same direction as the original (chance: 0.5)",
        samples: "256 rendered lines for calibration, half of them upside down, 512 of other texts held out",
    },
    Subject {
        name: "silero",
        title: "silero-vad",
        file: "models/silero_vad.onnx",
        place: Place::Assets,
        quality: "share of frames called speech or not (over 0.5) as the original does, each stream through its own \
                  state (calling everything speech: 0.6)",
        samples: "512 frames with the original's states for calibration, 12 streams of 8 s held out: other recordings \
                  with pauses and noise",
    },
    Subject {
        name: "magika",
        title: "magika",
        file: "magika.onnx",
        place: Place::Assets,
        quality: "share of files given the original's file type",
        samples: "512 files of this machine for calibration, 512 of other packages held out",
    },
    Subject {
        name: "fashion",
        title: "Fashion-MNIST net",
        file: "compressor/tests/fixtures/fashion.onnx",
        place: Place::Workspace,
        quality: "true accuracy on the test images",
        samples: "512 training images without labels for calibration, all 10 000 test images held out",
    },
];

pub(super) fn by_name(name: &str) -> Result<&'static Subject, String> {
    SUBJECTS.iter().find(|subject| subject.name == name).ok_or_else(|| {
        let names: Vec<_> = SUBJECTS.iter().map(|subject| subject.name).collect();
        format!("there are {}", names.join(", "))
    })
}
