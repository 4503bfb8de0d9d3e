//! Generates `compressor/graph/src/proto/onnx.rs` from the official `onnx-ml.proto` (proto2), without `protoc`.
//!
//! ```sh
//! cargo run --manifest-path xtask/codegen/Cargo.toml -- .../site-packages/onnx/onnx-ml.proto compressor/graph/src/proto
//! ```
//!
//! Take the newest definition: prost drops fields that it does not know when a model is written again.

#![forbid(unsafe_code)]

use std::{env, fs, path::PathBuf};

use anyhow::{Context, ensure};

fn main() -> anyhow::Result<()> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: codegen PROTO OUT_DIR";
    let (proto, out_dir) = (args.next().context(usage)?, args.next().context(usage)?);
    ensure!(args.next().is_none(), usage);

    let folder = proto.parent().context("the proto file has no folder")?;
    let descriptors = protox::compile([&proto], [folder])?;
    fs::create_dir_all(&out_dir)?;
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(&out_dir)
        .compile_fds(descriptors)?;
    println!("wrote {}", out_dir.join("onnx.rs").display());
    Ok(())
}
