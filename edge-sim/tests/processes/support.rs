//! Stand-ins for the agent's and the service's programs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use edge_sim::live::{Binaries, StackOptions};

/// A service that says that it is ready and does nothing.
pub(crate) const READY: &str =
    "echo '{\"ready\":true,\"http\":\"-\"}'; echo serving >&2; exec sleep 1000";

/// A folder with two scripts as programs and data that can be read.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new(service: &str, agent: &str) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        rig.script("espalier", service);
        rig.script("espalier-agent", agent);
        rig.held_out_data();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn held_out_data(&self) {
        let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }\n";
        let mut npy = b"\x93NUMPY\x01\x00".to_vec();
        npy.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        npy.extend(header.as_bytes());
        npy.extend([0; 8]);
        let mut zip = zip::ZipWriter::new(fs::File::create(self.path("heldout.npz")).unwrap());
        zip.start_file("bytes.npy", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&npy).unwrap();
        zip.finish().unwrap();
    }

    pub(crate) fn options(&self) -> StackOptions {
        let binaries = Binaries {
            espalier: self.path("espalier"),
            agent: self.path("espalier-agent"),
            edge_sim: PathBuf::from(env!("CARGO_BIN_EXE_edge-sim")),
        };
        StackOptions::new(binaries, self.dir.path(), &self.path("run"))
    }
}
