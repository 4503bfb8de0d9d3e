//! TLS: its keys, and a look at the files that they name.
//!
//! Reading the configuration opens none of these files: an agent whose certificate is over still serves.
//! `espalier-agent check` looks at them all.

use std::path::PathBuf;

use engine::EngineKind;

use tls::{Names, Part, Settings, Weight};

use super::layers::problem;
use super::reader::Reader;
use super::{Config, ConfigError, MqttConfig, Problem, Sources};
use crate::shell::worker_program;

/// Where systemd puts the files of `LoadCredential=`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The port of MQTT, and of MQTT over TLS.
const PORTS: (u64, u64) = (1883, 8883);

const NAMES: Names = Names {
    ca: "mqtt.tls.ca_file",
    certificate: "mqtt.tls.cert_file",
    key: "mqtt.tls.key_file",
    server_name: "mqtt.tls.server_name",
};

/// What `check` found.
#[derive(Debug)]
pub struct Checked {
    /// The configuration, or everything that is wrong with it and the files that it names.
    pub config: Result<Config, ConfigError>,
    /// What works and should still be seen to.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads and validates, looks into the files of TLS and for the engine, and asks the worker for its version. `now` is the Unix time in seconds, none
    /// where the clock was never set.
    #[must_use]
    pub fn check(sources: &Sources, now: Option<i64>) -> Checked {
        let mut warnings = Vec::new();
        let config = Self::load_with(sources, |reader, config| {
            warnings = judge(reader, config, now);
            if config.engine.kind == EngineKind::Ort {
                let library = engine::find_library(config.engine.ort_library.as_deref());
                reader.check("runtime.ort_library", library);
            }
            reader.check("worker.program", worker_program::check(&config.worker));
            warnings.extend(
                config
                    .doubts()
                    .into_iter()
                    .map(|super::Doubt { key, what }| problem(&reader.origin(&key), &key, what)),
            );
        });
        Checked { config, warnings }
    }

    /// What there is to say about connections before they are made.
    #[must_use]
    pub fn findings(&self, now: Option<i64>) -> Vec<tls::Finding> {
        let Some(mqtt) = &self.mqtt else {
            return self.download_ca().into_iter().collect();
        };
        let mut found = match &mqtt.tls {
            Some(settings) => {
                let id = Some(self.device.id.as_str()).filter(|id| !id.is_empty());
                tls::examine(settings, &mqtt.host, id, now)
            }
            None => plain(mqtt).into_iter().collect(),
        };
        found.extend(self.download_ca());
        found
    }

    /// Where CAs for downloads are named, they must be there.
    fn download_ca(&self) -> Option<tls::Finding> {
        let what = tls::certificates(self.download.ca_file.as_deref()?).err()?;
        let error = tls::FileError { part: Part::Ca, name: "download.ca_file", what };
        Some(tls::Finding { weight: Weight::Problem, error })
    }
}

/// Puts problems to the reader's, and gives back warnings.
fn judge(r: &mut Reader, config: &Config, now: Option<i64>) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for finding in config.findings(now) {
        let (key, what) = (finding.error.name, finding.error.what);
        match finding.weight {
            Weight::Problem => {
                r.check::<(), _>(key, Err(what));
            }
            Weight::Warning => warnings.push(problem(&r.origin(key), key, what)),
        }
    }
    warnings
}

/// Everybody on the way can read and change what is sent in the clear.
fn plain(mqtt: &MqttConfig) -> Option<tls::Finding> {
    let host = &mqtt.host;
    if tls::is_loopback(host) {
        return None;
    }
    let what = format!(
        "the connection to {host} is not encrypted, and whoever is on the way can read and change it; \
         set mqtt.tls.ca_file"
    );
    let error = tls::FileError { part: Part::ServerName, name: "mqtt.host", what };
    Some(tls::Finding { weight: Weight::Warning, error })
}

/// The port where none is set.
pub(super) fn default_port(tls: Option<&Settings>) -> u64 {
    if tls.is_some() { PORTS.1 } else { PORTS.0 }
}

/// `mqtt.tls.*`; TLS is on as soon as one of them is set.
pub(super) fn mqtt(r: &mut Reader) -> Option<Settings> {
    let settings = Settings {
        ca: credential(r, NAMES.ca),
        certificate: credential(r, NAMES.certificate),
        key: credential(r, NAMES.key),
        server_name: r.string(NAMES.server_name).filter(|name| !name.is_empty()),
        names: NAMES,
    };
    let none = Settings { names: NAMES, ..Settings::default() };
    (settings != none).then_some(settings)
}

/// A file that may come from systemd: a relative name is looked for where it puts credentials.
pub(super) fn credential(r: &mut Reader, key: &str) -> Option<PathBuf> {
    let path = r.path(key)?;
    Some(match r.credentials() {
        Some(folder) => folder.join(path),
        None => path,
    })
}

/// The folder of credentials, as the environment names it.
pub(super) fn folder(environment: &[(String, String)]) -> Option<PathBuf> {
    let found = environment.iter().find(|(key, value)| key == CREDENTIALS && !value.is_empty())?;
    Some(PathBuf::from(&found.1))
}
