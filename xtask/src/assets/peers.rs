//! What the pruning benchmark needs and nothing else does: its peers, and samples for the models.
//!
//! Two Python environments: `onnxsim` lives beside the tests' own packages; `torch-pruning` needs PyTorch, which is
//! Debian's, because the wheels of the package index bring gigabytes for graphics processors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::catalogue::{DebianData, PYTHON_PACKAGES, Pinned};
use super::{debian, python};
use crate::paths;

/// What the pruning benchmark needs from outside.
pub(crate) struct PeerAssets {
    /// The assets folder, with [`PEER_DATA`] in it.
    pub(crate) folder: PathBuf,
    pub(crate) onnxruntime: PathBuf,
    /// With `onnxsim`, `onnxruntime` and `Pillow`.
    pub(crate) onnxsim_python: PathBuf,
    /// With `torch-pruning`, `onnx2torch` and PyTorch.
    pub(crate) torch_python: PathBuf,
}

/// Folders of samples below the assets folder, in the order in which the script that makes inputs takes them.
pub(crate) const PEER_DATA: [&str; 3] = [FASHION.to, SPEECH.to, FONTS.to];

const FASHION: DebianData = DebianData {
    package: "dataset-fashion-mnist",
    version: "0.0~git20200523.55506a9",
    from: "usr/share/datasets/fashion-mnist",
    to: "fashion-mnist",
    extension: "gz",
    counts: &[("", 4)],
};

/// Prompts in English by one speaker, 8 kHz.
const SPEECH: DebianData = DebianData {
    package: "asterisk-core-sounds-en-wav",
    version: "1.6.1",
    from: "usr/share/asterisk/sounds/en_US_f_Allison",
    to: "speech",
    extension: "wav",
    counts: &[("", 568)],
};

const FONTS: DebianData = DebianData {
    package: "fonts-dejavu-core",
    version: "2.37",
    from: "usr/share/fonts/truetype/dejavu",
    to: "fonts",
    extension: "ttf",
    counts: &[("", 6)],
};

/// Debian's PyTorch for the system's own Python.
const TORCH_PACKAGE: &str = "python3-torch";
/// The Python that Debian's packages are for.
const DEBIAN_PYTHON: &str = "/usr/bin/python3";

/// Beside [`PYTHON_PACKAGES`].
pub(super) const ONNXSIM_PACKAGES: &[Pinned] = &[
    Pinned {
        requirement: "onnxsim==0.8.1",
        sha256: &[
            "8092d1de8a138a0f2f6da0e577b17f62ffcc6d74602d56f454bf8c38ae8d3365",
            "7b2fa45921e57d959ac31ed55e66b5d53f867092f26190c66d89bda49d1bc102",
            "61ba4b7c4174b16d720ce57c1fd4d16fbd951ece2d4f89f3aee3d41628ad8c24",
            "eaff55bf7a238548cf79b18a539859870029b431a0b2aa67d4425c03183a2281",
        ],
    },
    Pinned {
        requirement: "pillow==13.0.0",
        sha256: &[
            "7c88c10dd432f3b39ccdafc9ed81d0c21b8fd634502574da76d1bfa4fe2c76d0",
            "a625df9a2a5597fa5e5266e01aefc82604bb85d291e3547981e863560d75da6c",
            "8bf295fe459343bc6093c8e5e0df60bfa189e0fcb775a22e2c2488fdeccc6c0d",
            "42d63be3af4f9b951b199b0a9d23365d37ab14687e6d77b74940432c8515c4ca",
            "19b66ca0a4d25cc0200b381ce824c7ea090db61427315e73cfb05dbf1b35c369",
            "5f56499c1a74d2b862beb0c33b8016f99d095858455df9d21583bbbc1c15b582",
            "5933fcea5a5ba64c686f55c886a115cbfd92f2900460784a1e79909fdbafd7b6",
            "e91c2b1cbeae768c98752e67e717e283d68dae45717b41f2d91eaee648e37b7d",
        ],
    },
];

/// Beside what Debian's PyTorch brings. The versions of `onnx`, `protobuf` and `typing_extensions` are the tests'.
pub(super) const TORCH_PACKAGES: &[Pinned] = &[
    Pinned {
        requirement: "torch-pruning==1.6.1",
        sha256: &["5cb619e55bb4d1b7ce71be9782865ad4977bfe99c148fdce9c3822eab08a9c08"],
    },
    Pinned {
        requirement: "onnx2torch==1.5.15",
        sha256: &["123258e0f147e07b259cf845c8113c5634b8260e52c5fb26b7d507226732d9e5"],
    },
    // Works with the NumPy that Debian's PyTorch was built for.
    Pinned {
        requirement: "ml_dtypes==0.5.4",
        sha256: &[
            "bc11d7e8c44a65115d05e2ab9989d1e045125d7be8e05a071a48bc76eb6d6040",
            "19b9a53598f21e453ea2fbda8aa783c20faff8e1eeb0d7ab899309a0053f1483",
            "a7f7c643e8b1320fd958bf098aa7ecf70623a42ec5154e3be3be673f4c34d900",
            "9ad459e99793fa6e13bd5b7e6792c8f9190b4e5a1b45c63aba14a4d0a7f1d5ff",
            "ce756d3a10d0c4067172804c9cc276ba9cc0ff47af9078ad439b075d1abdc29b",
            "533ce891ba774eabf607172254f2e7260ba5f57bdd64030c9a4fcfbd99815d0d",
            "805cef3a38f4eafae3a5bf9ebdcdb741d0bcfd9e1bd90eb54abd24f928cd2465",
            "14a4fd3228af936461db66faccef6e4f41c1d82fcc30e9f8d58a08916b1d811f",
        ],
    },
];
const TORCH_SHARED: [&str; 3] = ["onnx==", "protobuf==", "typing_extensions=="];

/// Fetches everything that the pruning benchmark needs.
pub(super) fn fetch(folder: PathBuf, onnxruntime: PathBuf) -> Result<PeerAssets> {
    for data in [&FASHION, &SPEECH, &FONTS] {
        debian::data(data, &folder)?;
    }
    let (onnxsim_python, torch_python) = (onnxsim_environment()?, torch_environment()?);
    Ok(PeerAssets { folder, onnxruntime, onnxsim_python, torch_python })
}

fn onnxsim_environment() -> Result<PathBuf> {
    let wanted = python::requirements(&[PYTHON_PACKAGES, ONNXSIM_PACKAGES]);
    let folder = paths::target()?.join("venv-onnxsim");
    python::make_environment("onnxsim", &folder, &wanted, python::system_python, &[])
}

fn torch_environment() -> Result<PathBuf> {
    let shared = PYTHON_PACKAGES
        .iter()
        .filter(|package| TORCH_SHARED.iter().any(|name| package.requirement.starts_with(name)));
    let wanted: String =
        shared.map(|package| python::requirements(&[std::slice::from_ref(package)])).collect();
    let wanted = python::requirements(&[TORCH_PACKAGES]) + &wanted;
    let folder = paths::target()?.join("venv-torch");
    let system = || {
        debian::install(TORCH_PACKAGE)
            .context("torch-pruning needs PyTorch, which is taken from Debian")?;
        Ok(Path::new(DEBIAN_PYTHON).to_path_buf())
    };
    python::make_environment("torch-pruning", &folder, &wanted, system, &["--system-site-packages"])
}
