//! What the service is told at its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use runtime::EngineKind;

/// Arguments of `espalier serve`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct ServeArgs {
    /// Topic root.
    #[arg(long, default_value = wire::DEFAULT_ROOT)]
    pub root: String,
    /// MQTT broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    pub broker: String,
    /// TLS to the broker, whose certificate one of the CAs in this PEM file signed.
    #[arg(long, value_name = "FILE")]
    pub mqtt_ca: Option<PathBuf>,
    /// This service's certificate for the broker, in PEM, read anew for each connection. Without
    /// --mqtt-ca, the system's CAs vouch for the broker.
    #[arg(long, value_name = "FILE", requires = "mqtt_key")]
    pub mqtt_cert: Option<PathBuf>,
    /// The key of --mqtt-cert.
    #[arg(long, value_name = "FILE", requires = "mqtt_cert")]
    pub mqtt_key: Option<PathBuf>,
    /// The name that the broker's certificate must bear, where that is not the host of --broker.
    #[arg(long, value_name = "NAME")]
    pub mqtt_server_name: Option<String>,
    /// MQTT client id; by default one is made up once per store.
    #[arg(long, value_name = "ID")]
    pub client_id: Option<String>,
    /// Address of the HTTP server; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8480")]
    pub listen: SocketAddr,
    /// How devices reach the HTTP server; by default the address of --listen, which must then be one
    /// that they can reach.
    #[arg(long, value_name = "URL")]
    pub http_url: Option<String>,
    /// Folder of jobs and bundles.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// An original model; may be repeated.
    #[arg(long, value_name = "NAME=MODEL.onnx", required = true)]
    pub model: Vec<String>,
    /// Calibration data of a model.
    #[arg(long, value_name = "NAME=DATA.npz")]
    pub calibration: Vec<String>,
    /// Held-out data of a model.
    #[arg(long, value_name = "NAME=DATA.npz")]
    pub heldout: Vec<String>,
    /// Engine of bundles deployed by hand; a request names its device's own.
    #[arg(long, value_name = "tract|ort", default_value = "tract")]
    pub runtime: String,
    /// The ONNX Runtime library.
    #[arg(long, value_name = "PATH")]
    pub ort_library: Option<PathBuf>,
    /// Agreement with the original that is asked for where the device names none, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    pub agreement_min: f64,
    /// Confidence with which a candidate must be shown to keep that agreement; without it what held-out samples show
    /// decides, and reports say how sure that is.
    #[arg(long, value_name = "SHARE")]
    pub confidence: Option<f64>,
    /// Seed of everything random in a compression.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A trust repository (`espalier trust init`) with the keys of targets, snapshot and timestamp at hand: bundles
    /// become its targets before they are offered, and it is served under /trust.
    #[arg(long, value_name = "DIR")]
    pub trust: Option<PathBuf>,
}

const NAMES: tls::Names = tls::Names {
    ca: "--mqtt-ca",
    certificate: "--mqtt-cert",
    key: "--mqtt-key",
    server_name: "--mqtt-server-name",
};

const EXAMPLE: &str = "Example:
  espalier serve --broker 127.0.0.1:1883 --listen 0.0.0.0:8480 --http-url http://host:8480 --store jobs \\
    --model magika=model.onnx --calibration magika=calib.npz --heldout magika=heldout.npz";

/// Where one original model and its data are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The model.
    pub source: PathBuf,
    /// Calibration data.
    pub calibration: PathBuf,
    /// Held-out data.
    pub heldout: PathBuf,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// Topic root.
    pub root: String,
    /// MQTT broker's host and port.
    pub broker: (String, u16),
    /// What the connection to the broker is secured with, if it is.
    pub tls: Option<tls::Settings>,
    /// MQTT client id; without it, one that the store remembers.
    pub client_id: Option<String>,
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// How devices reach the HTTP server; without it, its own address.
    pub http_url: Option<String>,
    /// Folder of jobs and bundles.
    pub store: PathBuf,
    /// Original models by name.
    pub models: BTreeMap<String, ModelFiles>,
    /// Engine of bundles deployed by hand.
    pub runtime: EngineKind,
    /// The ONNX Runtime library.
    pub ort_library: Option<PathBuf>,
    /// Agreement that is asked for where the device names none.
    pub agreement_min: f64,
    /// Confidence with which a candidate must be shown to keep it, if any is asked for.
    pub confidence: Option<f64>,
    /// Seed of everything random in a compression.
    pub seed: u64,
    /// The trust repository that bundles become targets of.
    pub trust: Option<PathBuf>,
}

impl ServeArgs {
    /// Checks the arguments and says everything that is wrong with them.
    pub fn into_config(self) -> Result<ServeConfig, Vec<String>> {
        let mut errors = Vec::new();
        let mut sources = pairs("--model", &self.model, &mut errors);
        let mut calibration = pairs("--calibration", &self.calibration, &mut errors);
        let mut heldout = pairs("--heldout", &self.heldout, &mut errors);
        let mut models = BTreeMap::new();
        while let Some((name, source)) = sources.pop_first() {
            match (calibration.remove(&name), heldout.remove(&name)) {
                (Some(calibration), Some(heldout)) => {
                    models.insert(name, ModelFiles { source, calibration, heldout });
                }
                _ => errors.push(format!(
                    "model {name} needs --calibration {name}=… and --heldout {name}=…"
                )),
            }
        }
        for (name, _) in calibration.into_iter().chain(heldout) {
            errors.push(format!("there is data for {name}, but no --model {name}=…"));
        }
        let runtime = self
            .runtime
            .parse::<EngineKind>()
            .map_err(|error| errors.push(format!("--runtime: {error}")));
        let broker = parse_broker(&self.broker).map_err(|error| errors.push(error));
        let tls = self.tls();
        if let (Some(settings), Ok((host, _))) = (&tls, &broker) {
            errors.extend(unusable(settings, host));
        }
        if let Err(error) = wire::requests_filter(&self.root) {
            errors.push(format!("--root: {error}"));
        }
        if let Err(error) = check_url(self.http_url.as_deref(), self.listen) {
            errors.push(error);
        }
        if !(0.0..=1.0).contains(&self.agreement_min) {
            errors.push(format!("--agreement-min {} is not between 0 and 1", self.agreement_min));
        }
        if let Some(confidence) = self.confidence.filter(|c| !(*c > 0.5 && *c < 1.0)) {
            errors.push(format!("--confidence {confidence} is not between 0.5 and 1"));
        }
        match (runtime, broker) {
            (Ok(runtime), Ok(broker)) if errors.is_empty() => Ok(ServeConfig {
                root: self.root,
                broker,
                tls,
                client_id: self.client_id,
                listen: self.listen,
                http_url: self.http_url,
                store: self.store,
                models,
                runtime,
                ort_library: self.ort_library,
                agreement_min: self.agreement_min,
                confidence: self.confidence,
                seed: self.seed,
                trust: self.trust,
            }),
            _ => Err(errors),
        }
    }
}

impl ServeArgs {
    /// What secures the connection to the broker; any of its options turns it on.
    fn tls(&self) -> Option<tls::Settings> {
        let settings = tls::Settings {
            ca: self.mqtt_ca.clone(),
            certificate: self.mqtt_cert.clone(),
            key: self.mqtt_key.clone(),
            server_name: self.mqtt_server_name.clone(),
            names: NAMES,
        };
        let none = tls::Settings { names: NAMES, ..tls::Settings::default() };
        (settings != none).then_some(settings)
    }
}

/// Why no connection could be made with these settings, whatever the broker says.
fn unusable(settings: &tls::Settings, host: &str) -> Vec<String> {
    let name = settings.name(host).err().into_iter();
    name.chain(settings.client().err()).map(|error| error.to_string()).collect()
}

fn pairs(flag: &str, given: &[String], errors: &mut Vec<String>) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for text in given {
        let Some((name, path)) = text.split_once('=').filter(|(_, path)| !path.is_empty()) else {
            errors.push(format!("{flag} {text}: wanted NAME=PATH"));
            continue;
        };
        if let Err(error) = wire::check_name("model", name) {
            errors.push(format!("{flag} {text}: {error}"));
        } else if found.insert(name.to_owned(), PathBuf::from(path)).is_some() {
            errors.push(format!("{flag} {name}=… is given twice"));
        }
    }
    found
}

/// Whether devices can be told this address. Without `--http-url` they are told the one listened on.
fn check_url(url: Option<&str>, listen: SocketAddr) -> Result<(), String> {
    let Some(url) = url else {
        return if listen.ip().is_unspecified() {
            Err(format!(
                "--listen {listen} is no address that devices can reach: say how they do with --http-url http://HOST:{}",
                listen.port()
            ))
        } else {
            Ok(())
        };
    };
    let host = host(url).ok_or_else(|| {
        format!("--http-url {url}: wanted http://HOST or https://HOST, with a port where it is not the usual one")
    })?;
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => {
            Err(format!("--http-url {url}: devices cannot reach {address}"))
        }
        _ => Ok(()),
    }
}

/// The host that an HTTP address names.
fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let authority = rest.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split_once(']')?.0,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

/// Whether only programs on this machine can follow the address.
pub(super) fn is_local(url: &str) -> bool {
    host(url).is_some_and(|host| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

fn parse_broker(text: &str) -> Result<(String, u16), String> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parsed {
        Some((host, port)) if !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(format!("--broker {text}: wanted HOST:PORT")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(more: &[&str]) -> Result<ServeConfig, Vec<String>> {
        let base = ["serve", "--store", "s"];
        Wrapper::try_parse_from(base.iter().chain(more)).unwrap().args.into_config()
    }

    #[test]
    fn a_model_with_its_data_is_a_configuration() {
        let config = parse(&[
            "--model",
            "m=a=b.onnx",
            "--calibration",
            "m=c.npz",
            "--heldout",
            "m=h.npz",
            "--broker",
            "[::1]:1884",
        ])
        .unwrap();
        assert_eq!(config.models["m"].source, PathBuf::from("a=b.onnx"));
        assert_eq!(config.broker, ("[::1]".to_owned(), 1884));
        assert_eq!(config.runtime, EngineKind::Tract);
    }

    const MODEL: [&str; 6] = ["--model", "m=a", "--calibration", "m=c", "--heldout", "m=h"];

    #[test]
    fn an_address_that_no_device_can_reach_is_refused() {
        let with = |more: &[&str]| parse(&[&MODEL, more].concat());
        for listen in ["0.0.0.0:8480", "[::]:8480"] {
            let errors = with(&["--listen", listen]).unwrap_err().join("\n");
            assert!(errors.contains("--http-url http://HOST:8480"), "{errors}");
            let url = ["--listen", listen, "--http-url", "http://host:8480/"];
            assert!(with(&url).is_ok());
        }
        for url in
            ["host:8480", "http://", "http:///x", "ftp://host", "http://0.0.0.0:1", "http://[::]/"]
        {
            let errors = with(&["--http-url", url]).unwrap_err().join("\n");
            assert!(errors.contains(url), "{url}: {errors}");
        }
        assert!(with(&["--http-url", "https://[2001:db8::1]:8480/espalier"]).is_ok());
    }

    #[test]
    fn a_local_address_is_known() {
        for url in ["http://127.0.0.1:1", "http://localhost/x", "https://[::1]:2"] {
            assert!(is_local(url), "{url}");
        }
        assert!(!is_local("http://10.0.0.1:1") && !is_local("http://localhost.example"));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let errors = parse(&[
            "--model",
            "m=a.onnx",
            "--model",
            "nopath",
            "--model",
            "a/b=c.onnx",
            "--heldout",
            "other=h.npz",
            "--runtime",
            "tensorrt",
            "--broker",
            "nowhere",
            "--root",
            "a/+",
            "--agreement-min",
            "1.5",
            "--confidence",
            "95",
        ])
        .unwrap_err();
        let all = errors.join("\n");
        for part in
            ["nopath", "a/b", "model m needs", "other", "tensorrt", "nowhere", "a/+", "1.5", "95"]
        {
            assert!(all.contains(part), "{part}: {all}");
        }
    }
}
