//! The agent's configuration file for an emulated board.

use std::path::Path;

use toml::{Table, Value};

use super::StackOptions;

/// What the file is made of.
pub(super) struct Facts<'a> {
    pub(super) options: &'a StackOptions,
    pub(super) state_dir: &'a Path,
    pub(super) broker: (&'a str, u16),
    pub(super) worker_args: Vec<String>,
    pub(super) sys_root: &'a Path,
}

/// The file's content, with the options' overrides merged in.
pub(super) fn agent(facts: &Facts) -> Table {
    let o = facts.options;
    let mut runtime = section([
        ("engine", o.runtime.to_string().into()),
        // The board's threads are in the slowdown; a second host thread would count twice.
        ("threads", 1.into()),
    ]);
    if let Some(library) = &o.assets.ort_library {
        runtime.insert("ort_library".to_owned(), path(library));
    }
    let mut config = Table::new();
    let mut put = |name: &str, table: Table| {
        config.insert(name.to_owned(), Value::Table(table));
    };
    put("device", device(o));
    put("state", section([("dir", path(facts.state_dir))]));
    put("runtime", runtime);
    put("serve", section([("http", "127.0.0.1:0".into())]));
    let program = path(&o.binaries.edge_sim);
    put("worker", section([("program", program), ("args", facts.worker_args.clone().into())]));
    put("mqtt", mqtt(facts));
    put("telemetry", section([("window_ms", millis(o.window))]));
    let budget = section([("agreement_min", o.agreement_min.into())]);
    put("budgets", section([(o.model.as_str(), Value::Table(budget))]));
    put("breach", breach(o));
    put("install", install(o));
    put("power", power(o));
    put("sys", section([("root", path(facts.sys_root))]));
    merge(&mut config, &o.agent_overrides);
    config
}

fn device(o: &StackOptions) -> Table {
    section([
        ("id", o.device.as_str().into()),
        ("class", o.board.slug.as_str().into()),
        ("emulated", true.into()),
    ])
}

fn mqtt(facts: &Facts) -> Table {
    section([
        ("host", facts.broker.0.into()),
        ("port", i64::from(facts.broker.1).into()),
        ("root", facts.options.root.as_str().into()),
    ])
}

fn breach(o: &StackOptions) -> Table {
    section([
        ("windows_over", i64::from(o.breach.windows_over).into()),
        ("windows_seen", i64::from(o.breach.windows_seen).into()),
        ("cooldown_ms", millis(o.breach.cooldown)),
        ("min_requests", integer(o.breach.min_requests)),
    ])
}

fn install(o: &StackOptions) -> Table {
    section([
        ("shadow_requests", integer(o.install.shadow_requests)),
        ("shadow_timeout_ms", millis(o.install.shadow_timeout)),
        ("probation_windows", i64::from(o.install.probation_windows).into()),
        ("max_bundle_bytes", integer(o.install.max_bundle_bytes)),
    ])
}

fn power(o: &StackOptions) -> Table {
    section([("idle_mw", o.board.power.idle_mw.into()), ("load_mw", o.board.power.load_mw.into())])
}

fn section<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn path(path: &Path) -> Value {
    path.display().to_string().into()
}

fn millis(duration: std::time::Duration) -> Value {
    integer(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Puts `over` on top of `base`: tables are merged key by key, everything else is replaced.
fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::live::Binaries;

    fn options() -> StackOptions {
        StackOptions::new(Binaries::in_dir(Path::new("/bin")), Path::new("/a"), Path::new("/r"))
    }

    fn written(options: &StackOptions) -> Table {
        let facts = Facts {
            options,
            state_dir: Path::new("/r/state"),
            broker: ("127.0.0.1", 1883),
            worker_args: vec!["worker".to_owned()],
            sys_root: Path::new("/r/board/root"),
        };
        let text = toml::to_string(&agent(&facts)).unwrap();
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn the_board_s_class_power_and_root_reach_the_agent() {
        let config = written(&options());
        assert_eq!(config["device"]["class"].as_str(), Some("raspberry-pi-4"));
        assert_eq!(config["power"]["idle_mw"].as_float(), Some(1600.0));
        assert_eq!(config["sys"]["root"].as_str(), Some("/r/board/root"));
        assert_eq!(config["worker"]["program"].as_str(), Some("/bin/edge-sim"));
        assert_eq!(config["runtime"]["threads"].as_integer(), Some(1));
    }

    #[test]
    fn overrides_replace_single_keys_and_keep_the_rest() {
        let mut options = options();
        options.agent_overrides =
            toml::from_str("[install]\nmax_bundle_bytes = 10\n[extra]\nkey = 1").unwrap();
        let config = written(&options);
        assert_eq!(config["install"]["max_bundle_bytes"].as_integer(), Some(10));
        assert_eq!(config["install"]["shadow_requests"].as_integer(), Some(20));
        assert_eq!(config["extra"]["key"].as_integer(), Some(1));
    }
}
