//! Translations between what the world says and what the core is told.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::{EngineError, EngineKind, EngineOptions, TRACT_VERSION};
use wire::{
    Birth, Command, DeviceState, Header, Offer, Payload, PowerWindow, Quality, ResourceWindow,
    Runtime, StateReport, Topic,
};

use crate::config::Config;
use crate::core::{Conditions, Event, GroupUsage, ModelFacts, Settings, WindowFacts};
use crate::plane::ModelWindow;
use crate::sys::cgroup::Usage;
use crate::sys::{PowerReading, Roots, Sample, disk, memory, power};

/// A name for this run of the agent that no other run has.
pub(super) fn boot_id() -> String {
    let chance = RandomState::new().build_hasher().finish();
    format!("{chance:016x}")
}

/// Whether the engine is there at all, without loading it into this process. Gives the library's
/// path where the engine is one.
pub(super) fn check_engine(engine: &EngineOptions) -> Result<Option<PathBuf>, EngineError> {
    match engine.kind {
        EngineKind::Ort => engine::find_library(engine.ort_library.as_deref()).map(Some),
        EngineKind::Tract => Ok(None),
    }
}

pub(super) fn settings(
    config: &Config,
    roots: &Roots,
    boot_id: &str,
    library: Option<&Path>,
) -> Settings {
    Settings {
        birth: birth(config, roots, boot_id, library),
        threads: u32::try_from(config.engine.threads).unwrap_or(1),
        budgets: config.budgets.clone(),
        breach: config.breach.clone(),
        drift: config.drift.clone(),
        install: config.install.clone(),
        probation: config.probation.clone(),
        download: config.download.rules.clone(),
        trouble: None,
    }
}

/// What downloads wait for or not.
pub(super) fn conditions(roots: &Roots, unix_ms: Option<u64>) -> Conditions {
    let minute = unix_ms.and_then(|ms| u16::try_from(ms / 60_000 % (24 * 60)).ok());
    Conditions { minute, on_battery: power::on_battery(roots) }
}

fn birth(config: &Config, roots: &Roots, boot_id: &str, library: Option<&Path>) -> Birth {
    let runtime = match config.engine.kind {
        EngineKind::Tract => Runtime::Tract,
        EngineKind::Ort => Runtime::Ort,
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let (power_source, power_quality) = power::at_hand(&config.power, roots);
    Birth {
        header: Header::of::<Birth>(0, 0, boot_id),
        device: config.device.id.clone(),
        device_class: config.device.class.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        runtime,
        engine_version: engine_version(&config.engine, library),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: memory::info(roots).total_bytes.unwrap_or(0),
        power_source: power_source.to_owned(),
        power_quality,
        emulated: config.device.emulated,
    }
}

/// A library tells its version by its name; loading it here would cost the memory that workers are
/// for.
fn engine_version(engine: &EngineOptions, library: Option<&Path>) -> String {
    let named = || {
        let name = library?.canonicalize().ok()?;
        let name = name.file_name()?.to_str()?;
        let (_, version) = name.split_once(".so.")?;
        Some(version.to_owned())
    };
    let version = match engine.kind {
        EngineKind::Ort => named(),
        EngineKind::Tract => Some(TRACT_VERSION.to_owned()),
    };
    version.unwrap_or_else(|| "unknown".to_owned())
}

/// What the broker tells of a device that vanished.
pub(super) fn will(boot_id: &str, unix_ms: Option<u64>) -> Vec<u8> {
    wire::encode(&StateReport {
        header: Header::of::<StateReport>(unix_ms.unwrap_or(0), 0, boot_id),
        state: DeviceState::Offline,
        reason: Some("the connection was lost".to_owned()),
        log_level: None,
    })
}

/// A message from the broker as an event; none if it is not for the core.
pub(super) fn message(
    root: &str,
    device: &str,
    topic: &str,
    payload: &[u8],
    unix_ms: Option<u64>,
) -> Result<Option<Event>, String> {
    let (to, parsed) = wire::parse(root, topic).map_err(|e| e.to_string())?;
    if to != device {
        return Err(format!("it is for {to}"));
    }
    if payload.is_empty() {
        // A retained message was deleted.
        return Ok(match parsed {
            Topic::Offer(model) => Some(Event::Withdrawn { model: model.to_owned() }),
            _ => None,
        });
    }
    match parsed {
        Topic::Offer(name) => {
            let offer: Offer = wire::decode(payload).map_err(|e| e.to_string())?;
            if offer.model != name {
                return Err(format!("the topic says model {name}, the offer {}", offer.model));
            }
            Ok(Some(Event::Offer(offer)))
        }
        Topic::Command(kind, id) => {
            let command = wire::decode::<Command>(payload).map_err(|e| e.to_string());
            let command = command.and_then(|command| {
                let same = command.kind == kind && command.id == id;
                let other = || "the topic and the command name different commands".to_owned();
                same.then_some(command).ok_or_else(other)
            });
            Ok(Some(match command {
                Ok(command) => Event::Command { command, unix_ms },
                Err(reason) => Event::BadCommand { kind, id, reason },
            }))
        }
        _ => Ok(None),
    }
}

pub(super) fn window(
    length: Duration,
    windows: Vec<ModelWindow>,
    serving: &[(String, u32)],
    sample: &Sample,
    roots: &Roots,
) -> WindowFacts {
    let window_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let alone = match windows.as_slice() {
        [one] => Some(one.model.clone()),
        _ => None,
    };
    let models = windows.into_iter().map(|window| {
        let own = own_of(serving, &window.model);
        model(window, &own, sample, roots)
    });
    WindowFacts {
        window_ms,
        models: models.collect(),
        resources: Some(resources(window_ms, sample)),
        power: power_window(window_ms, &sample.power, alone),
    }
}

/// What was given to the disk.
pub(super) fn disk(roots: &Roots, day_bytes: Option<u64>) -> serde_json::Value {
    serde_json::json!({
        "written_bytes": disk::written_bytes(roots),
        "written_day_bytes": day_bytes,
        "asked_bytes": disk::asked_bytes(),
    })
}

/// The worker that serves a model: what stands by, or is being tried, is not what it costs.
fn own_of(serving: &[(String, u32)], model: &str) -> Vec<u32> {
    serving.iter().filter(|(name, _)| name == model).map(|(_, pid)| *pid).collect()
}

fn model(window: ModelWindow, workers: &[u32], sample: &Sample, roots: &Roots) -> ModelFacts {
    let pss = workers.iter().filter_map(|pid| memory::pss_bytes(roots, *pid));
    let spent = || workers.iter().filter_map(|pid| sample.processes.get(pid));
    let waits = spent().filter_map(|spent| spent.waited);
    let waits = waits.map(|waited| u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    ModelFacts {
        model: window.model,
        digest: window.digest,
        compute: window.compute,
        queue: window.queue,
        requests: window.requests,
        errors: window.errors,
        late: window.late,
        rejected: window.rejected,
        cold: window.cold,
        pss_bytes: pss.reduce(u64::saturating_add),
        wait_us: waits.reduce(u64::saturating_add),
        major_faults: spent().map(|spent| spent.major_faults).reduce(u64::saturating_add),
        group: window.group.map(group),
        drift: window.drift,
    }
}

fn group(usage: Usage) -> GroupUsage {
    GroupUsage {
        current_bytes: usage.current_bytes,
        peak_bytes: usage.peak_bytes,
        high_events: usage.high_events,
        max_events: usage.max_events,
        oom_kills: usage.oom_kills,
    }
}

fn blank<P: Payload>() -> Header {
    Header::of::<P>(0, 0, "")
}

fn resources(window_ms: u64, sample: &Sample) -> ResourceWindow {
    let (pressure, of_group) = (&sample.pressure, &sample.group_pressure);
    let group = sample.group.unwrap_or_default();
    ResourceWindow {
        header: blank::<ResourceWindow>(),
        window_ms,
        windows: 1,
        agent_pss_bytes: sample.agent_pss_bytes,
        workers_pss_bytes: sample.workers_pss_bytes,
        memory_total_bytes: sample.memory_total_bytes.unwrap_or(0),
        memory_available_bytes: sample.memory_available_bytes.unwrap_or(0),
        swap_in_pages: sample.swap_in_pages,
        major_faults: sample.major_faults,
        cpu_percent: sample.cpu_percent.and_then(wire::finite),
        others_percent: sample.others_percent.and_then(wire::finite),
        steal_percent: sample.steal_percent.and_then(wire::finite),
        load1: sample.load1.and_then(wire::finite),
        temperature_mc: sample.temperature_mc,
        freq_khz: sample.freq_khz,
        throttled: sample.throttled,
        cpu_pressure_percent: pressure.cpu,
        memory_pressure_percent: pressure.memory,
        memory_stall_percent: pressure.memory_full,
        io_pressure_percent: pressure.io,
        io_stall_percent: pressure.io_full,
        group_cpu_pressure_percent: of_group.cpu,
        group_memory_pressure_percent: of_group.memory,
        group_io_pressure_percent: of_group.io,
        group_memory_bytes: group.current_bytes,
        group_memory_peak_bytes: group.peak_bytes,
        group_memory_high_events: group.high_events,
        group_memory_max_events: group.max_events,
        group_oom_kills: group.oom_kills,
        disk_written_bytes: sample.disk_written_bytes,
        disk_written_day_bytes: sample.disk_written_day_bytes,
    }
}

fn power_window(
    window_ms: u64,
    reading: &PowerReading,
    model: Option<String>,
) -> Option<PowerWindow> {
    if reading.quality == Quality::None {
        return None;
    }
    Some(PowerWindow {
        header: blank::<PowerWindow>(),
        window_ms,
        windows: 1,
        source: reading.source.to_owned(),
        quality: reading.quality,
        power_mw: reading.power_mw.and_then(wire::finite),
        power_error_mw: reading.power_error_mw.and_then(wire::finite),
        energy_per_inference_mj: reading.energy_per_inference_mj.and_then(wire::finite),
        energy_error_mj: reading.energy_error_mj.and_then(wire::finite),
        model,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn offer(model: &str) -> Vec<u8> {
        wire::encode(&Offer {
            header: blank::<Offer>(),
            model: model.into(),
            version: "1".into(),
            sequence: 1,
            digest: format!("sha256:{:064x}", 1),
            url: "http://h/b".into(),
            size_bytes: 1,
            runtime: Runtime::Tract,
            device_class: "any".into(),
            request_id: None,
        })
    }

    fn take(topic: &str, payload: &[u8]) -> Result<Option<Event>, String> {
        message("espalier/v1", "d", topic, payload, None)
    }

    #[test]
    fn a_model_s_memory_is_that_of_the_worker_that_serves_it() {
        let serving = [("m".to_owned(), 7), ("n".to_owned(), 8)];
        let found = ["m", "n", "o"].map(|model| own_of(&serving, model));
        assert_eq!(found, [vec![7], vec![8], vec![]]);
    }

    #[test]
    fn an_offer_becomes_an_event() {
        let event = take("espalier/v1/d/d/dn/offer/m", &offer("m")).unwrap();
        assert!(matches!(event, Some(Event::Offer(offer)) if offer.model == "m"));
    }

    #[test]
    fn a_message_that_contradicts_its_topic_is_refused_with_the_reason() {
        let other = take("espalier/v1/d/d/dn/offer/n", &offer("m")).unwrap_err();
        assert_eq!(other, "the topic says model n, the offer m");
        let device = take("espalier/v1/d/x/dn/offer/m", &offer("m")).unwrap_err();
        assert_eq!(device, "it is for x");
    }

    #[test]
    fn garbage_is_refused_and_a_deleted_offer_is_a_withdrawal() {
        assert!(take("espalier/v1/d/d/dn/offer/m", b"{\"schema\":1").is_err());
        assert!(take("espalier/v1/d/d/dn/offer/m", &vec![b' '; 1 << 20]).is_err());
        let deleted = take("espalier/v1/d/d/dn/offer/m", b"").unwrap();
        assert!(matches!(deleted, Some(Event::Withdrawn { model }) if model == "m"));
    }
}
