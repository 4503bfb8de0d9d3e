use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new(main: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        std::fs::write(files.main(), main).unwrap();
        files
    }

    fn main(&self) -> PathBuf {
        self.0.path().join("agent.toml")
    }

    fn piece(&self, name: &str, text: &str) {
        let folder = self.0.path().join("conf.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }

    fn sources(&self) -> Sources {
        Sources { file: Some(self.main()), ..Sources::default() }
    }
}

const MINIMAL: &str = "[device]\nid = \"dev\"\n";

fn problems(sources: &Sources) -> Vec<String> {
    let ConfigError(problems) = Config::load(sources).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_device_id_is_all_that_is_needed() {
    let config = Config::load(&Files::new(MINIMAL).sources()).unwrap();
    assert_eq!(config.device.id, "dev");
    assert_eq!(config.worker.args, ["worker"]);
    assert!(config.mqtt.is_none());
    assert_eq!(config.breach, BreachRules::default());
    assert_eq!(config.install, InstallRules::default());
}

#[test]
fn requests_together_may_take_no_less_than_one() {
    let files = Files::new(MINIMAL);
    let mut sources = files.sources();
    sources.overrides = vec!["serve.max_buffered_bytes=1048576".into()];
    let problems = problems(&sources);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("serve.max_request_bytes = 16777216"), "{problems:?}");
}

#[test]
fn each_layer_lies_over_the_one_before() {
    let files =
        Files::new("[device]\nid = \"file\"\nclass = \"pi4\"\n[telemetry]\nwindow_ms = 1000\n");
    files.piece("20.toml", "[device]\nid = \"piece 20\"\n");
    files.piece("10.toml", "[device]\nid = \"piece-10\"\n[telemetry]\nwindow_ms = 2000\n");
    files.piece("ignored.bak", "nonsense");
    let mut sources = files.sources();
    sources.environment = vec![
        ("ESPALIER__DEVICE__ID".into(), "environment".into()),
        ("ESPALIER__TELEMETRY__WINDOW_MS".into(), "3000".into()),
        ("ESPALIER__BUDGETS__Magika__LATENCY_P95_US".into(), "777".into()),
        ("PATH".into(), "/bin".into()),
    ];
    sources.overrides = vec!["device.id=flag".into(), "worker.args=[\"a\", \"b\"]".into()];
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.device.id, "flag");
    assert_eq!(config.device.class, "pi4");
    assert_eq!(config.window, Duration::from_millis(3000));
    assert_eq!(config.budgets["Magika"].latency_p95_us, Some(777));
    assert_eq!(config.worker.args, ["a", "b"]);
}

#[test]
fn every_problem_is_told_at_once_with_its_origin_and_key() {
    let files = Files::new(
        "[device]\nclas = \"x\"\n[telemetry]\nwindow_ms = \"soon\"\n[mqtt]\nport = 0\n\
         [breach]\nwindows_over = 9\n[budgets.m]\nagreement_min = 1.5\n",
    );
    files.piece("a.toml", "[serve]\nhttp = \"here\"\n");
    let mut sources = files.sources();
    sources.environment = vec![("ESPALIER__RUNTIME__ENGINE".into(), "abacus".into())];
    let problems = problems(&sources);
    let main = files.main().display().to_string();
    let piece = files.0.path().join("conf.d/a.toml").display().to_string();
    for (origin, key, what) in [
        (main.as_str(), "device.id", "is required"),
        (&main, "device.clas", "no such key"),
        (&main, "telemetry.window_ms", "wanted a whole number"),
        (&main, "mqtt.port", "0 is not between 1 and 65535"),
        (&main, "breach.windows_over", "can never be reached"),
        (&main, "budgets.m", "share from 0 to 1"),
        (&piece, "serve.http", "is no ADDRESS:PORT"),
        ("ESPALIER__RUNTIME__ENGINE", "runtime.engine", "abacus"),
    ] {
        let start = format!("{origin}: {key}: ");
        let found = problems.iter().find(|p| p.starts_with(&start));
        assert!(found.is_some_and(|p| p.contains(what)), "{start}{what} in {problems:#?}");
    }
    assert_eq!(problems.len(), 8, "{problems:#?}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = Sources { file: Some("/nowhere/agent.toml".into()), ..Sources::default() };
    assert!(problems(&missing)[0].starts_with("/nowhere/agent.toml: No such file"));
    let broken = Files::new("[device\nid = 1");
    let told = problems(&broken.sources());
    assert!(told[0].contains("agent.toml") && told[0].contains("line 1"), "{told:?}");
}

#[test]
fn a_model_may_have_a_dot_in_its_name() {
    let text = format!("{MINIMAL}[budgets.\"m.v1\"]\nlatency_p95_us = 5\n");
    let config = Config::load(&Files::new(&text).sources()).unwrap();
    assert_eq!(config.budgets["m.v1"].latency_p95_us, Some(5));
}

#[test]
fn only_changed_budgets_need_no_restart() {
    let load = |text: &str| Config::load(&Files::new(text).sources()).unwrap();
    let before = load(MINIMAL);
    let budgets = load(&format!("{MINIMAL}[budgets.m]\nlatency_p95_us = 5\n"));
    let window = load(&format!("{MINIMAL}[telemetry]\nwindow_ms = 5000\n"));
    assert!(!before.needs_restart(&budgets));
    assert!(before.needs_restart(&window));
}

fn root_in(folder: &Path, name: &str) -> PathBuf {
    let host = ::trust::Host::init(&folder.join("owner"), None, &::trust::Init::default()).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, host.root_json().unwrap()).unwrap();
    path
}

#[test]
fn a_root_is_read_and_checked_with_the_configuration() {
    let files = Files::new(MINIMAL);
    let root = root_in(files.0.path(), "owner.json");
    let mut sources = files.sources();
    assert_eq!(Config::load(&sources).unwrap().trust, None);
    sources.overrides =
        vec![format!("trust.root={}", root.display()), "trust.expiry=lenient".into()];
    let trust = Config::load(&sources).unwrap().trust.unwrap();
    assert_eq!((trust.root_version, trust.expiry), (1, ::trust::Expiry::Lenient));
    std::fs::write(&root, "{\"signed\":").unwrap();
    assert!(problems(&sources)[0].contains("trust.root: "), "{:?}", problems(&sources));
    sources.overrides = vec!["trust.root=/nowhere".into(), "trust.expiry=later".into()];
    assert!(problems(&sources).iter().any(|p| p.contains("neither \"strict\"")));
    sources.overrides = vec!["trust.repository=http://h/trust".into()];
    assert!(problems(&sources)[0].contains("nothing would be checked"));
}

#[test]
fn a_root_among_the_credentials_is_taken_where_none_is_named() {
    let files = Files::new(MINIMAL);
    let root = root_in(files.0.path(), "root.json");
    let mut sources = files.sources();
    let folder = files.0.path().display().to_string();
    sources.environment = vec![("CREDENTIALS_DIRECTORY".into(), folder)];
    assert_eq!(Config::load(&sources).unwrap().trust.unwrap().root, root);
    sources.environment[0].1 = "/nowhere".into();
    assert_eq!(Config::load(&sources).unwrap().trust, None);
}

#[test]
fn a_profile_of_power_is_read_and_a_wrong_one_is_named() {
    let files = Files::new(MINIMAL);
    let mut sources = files.sources();
    sources.overrides = vec!["power.profile=[\"0:1000\", \"100:3000\"]".into()];
    let line = Config::load(&sources).unwrap().power.line().unwrap();
    assert!((line.at(0.5) - 2000.0).abs() < 1e-6);
    sources.overrides = vec!["power.profile=[\"0:1000\", \"101:3000\"]".into()];
    let told = problems(&sources);
    assert!(told.len() == 1 && told[0].contains("power.profile: \"101:3000\""), "{told:?}");
}

#[test]
fn budgets_that_are_held_against_nothing_are_warned_about() {
    let board = tempfile::tempdir().unwrap();
    let files = Files::new(
        "[device]\nid = \"dev\"\n[budgets.m]\nagreement_min = 0.9\npower_mw = 4000\nlatency_p95_us = 9\n",
    );
    let doubts = |overrides: &[&str]| {
        let mut sources = files.sources();
        sources.overrides = overrides.iter().map(|o| (*o).to_owned()).collect();
        sources.overrides.push(format!("sys.root={}", board.path().display()));
        let config = Config::load(&sources).unwrap();
        config.doubts().into_iter().map(|doubt| (doubt.key, doubt.what)).collect::<Vec<_>>()
    };
    let told = doubts(&["install.shadow_requests=0"]);
    let keys: Vec<&str> = told.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["budgets.m.agreement_min", "budgets.m.power_mw"]);
    assert!(told[0].1.contains("install.shadow_requests = 0"), "{told:?}");
    assert!(told[1].1.contains("nothing tells"), "{told:?}");
    let two = doubts(&["power.idle_mw=1000", "power.load_mw=2000"]);
    assert!(two.len() == 1 && two[0].1.contains("power.profile three points"), "{two:?}");
    assert!(doubts(&["power.profile=[\"0:1000\", \"50:1600\", \"100:2000\"]"]).is_empty());
}
