#![allow(clippy::unwrap_used, clippy::float_cmp)]

use std::time::{Duration, Instant};

use wire::Quality;

use super::fixture::Machine;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6 * b.abs().max(1.0)
}

fn power(source: PowerSource) -> PowerConfig {
    PowerConfig { source, idle_mw: Some(1600.0), load_mw: Some(5000.0), ..PowerConfig::default() }
}

/// Two windows of one second: what is between them is what `change` does.
fn second_window(
    machine: &Machine,
    config: PowerConfig,
    inferences: u64,
    change: impl FnOnce(&Machine),
) -> Sample {
    let start = Instant::now();
    let mut sampler = Sampler::new(machine.roots(), config, start);
    change(machine);
    sampler.sample(start + SECOND, &[], inferences)
}

#[test]
fn a_machine_that_says_nothing_gives_nothing_and_no_panic() {
    let machine = Machine::empty();
    let sample = second_window(&machine, PowerConfig::default(), 5, |_| ());
    let nothing = Sample {
        agent_pss_bytes: None,
        workers_pss_bytes: None,
        memory_total_bytes: None,
        memory_available_bytes: None,
        swap_in_pages: None,
        major_faults: None,
        cpu_percent: None,
        others_percent: None,
        steal_percent: None,
        load1: None,
        temperature_mc: None,
        freq_khz: None,
        throttled: false,
        throttle_cause: None,
        disk_written_bytes: None,
        disk_written_day_bytes: None,
        power: PowerReading {
            source: "none",
            quality: Quality::None,
            power_mw: None,
            power_error_mw: None,
            energy_per_inference_mj: None,
            energy_error_mj: None,
        },
        pressure: PressureShares::default(),
        group_pressure: PressureShares::default(),
        group: None,
        processes: BTreeMap::new(),
    };
    assert_eq!(sample, nothing);
}

#[test]
fn garbage_in_every_file_gives_nothing_and_no_panic() {
    let files = [
        "proc/stat",
        "proc/meminfo",
        "proc/vmstat",
        "proc/loadavg",
        "proc/7/smaps_rollup",
        "proc/7/stat",
        "proc/7/task/7/schedstat",
        "proc/pressure/cpu",
        "proc/pressure/memory",
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp",
        "sys/class/thermal/cooling_device0/cur_state",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/class/hwmon/hwmon0/power1_input",
        "sys/class/power_supply/BAT0/power_now",
        "sys/class/powercap/intel-rapl:0/energy_uj",
    ];
    let garbage: [&[u8]; 6] = [
        b"",
        b"\xff\xfe\x00",
        b"cpu  1 2 x\nMemTotal: \npswpin\nPss: kB\n",
        b"-99999999999999999999999",
        b"cpu  18446744073709551615 18446744073709551615 1 1 1 1 1 1\n",
        b"nan",
    ];
    for content in garbage {
        let machine = Machine::with(&[
            ("sys/class/hwmon/hwmon0/name", "ina219\n"),
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
            ("sys/class/power_supply/BAT0/status", "Discharging\n"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
        ]);
        for file in files {
            machine.write(file, content);
        }
        let start = Instant::now();
        let mut sampler = Sampler::new(machine.roots(), PowerConfig::default(), start);
        let sample = sampler.sample(start + SECOND, &[7], 5);
        assert_eq!(sample.power.quality, Quality::None, "{content:?}");
        assert_eq!(sample.power.power_mw, None);
        assert_eq!(sample.workers_pss_bytes, None);
        assert_eq!((sample.cpu_percent, sample.load1), (None, None));
        assert_eq!((sample.temperature_mc, sample.throttled), (None, false));
        assert_eq!((sample.pressure, sample.processes.len()), (PressureShares::default(), 0));
    }
}

#[test]
fn a_folder_where_a_file_is_expected_gives_nothing() {
    let machine = Machine::with(&[
        ("proc/stat/x", ""),
        ("sys/class/thermal/thermal_zone0/temp/x", ""),
        ("sys/class/hwmon", "not a folder"),
    ]);
    let sample = second_window(&machine, PowerConfig::default(), 0, |_| ());
    assert_eq!(sample.cpu_percent, None);
    assert_eq!(sample.temperature_mc, None);
}

#[test]
fn memory_is_read_in_bytes_and_workers_are_added_up() {
    let machine = Machine::with(&[
        ("proc/meminfo", "MemTotal:        3884360 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n"),
        (
            "proc/7/smaps_rollup",
            "00400000-7fff rollup\nRss:  900 kB\nPss:  100 kB\nPss_Anon: 50 kB\n",
        ),
        ("proc/8/smaps_rollup", "Pss:\t 11 kB\n"),
    ]);
    let roots = machine.roots();
    assert_eq!(memory::info(&roots).total_bytes, Some(3_884_360 * 1024));
    assert_eq!(memory::info(&roots).available_bytes, Some(1000 * 1024));
    let start = Instant::now();
    let mut sampler = Sampler::new(roots, PowerConfig::default(), start);
    let sample = sampler.sample(start + SECOND, &[7, 8, 9], 0);
    assert_eq!(sample.workers_pss_bytes, Some(111 * 1024));
}

#[test]
fn processor_use_steal_and_swapping_are_of_the_window_alone() {
    let machine = Machine::with(&[
        ("proc/stat", "cpu  1000 0 0 5000 0 0 0 70 0 0\ncpu0 1 2 3 4\n"),
        ("proc/vmstat", "pswpin 40\npswpout 9\n"),
        ("proc/loadavg", "1.25 0.5 0.1 1/200 4242\n"),
    ]);
    let sample = second_window(&machine, PowerConfig::default(), 0, |machine| {
        machine.write("proc/stat", "cpu  1050 0 0 5030 0 0 0 90 0 0\n");
        machine.write("proc/vmstat", "pswpin 52\npswpout 9\n");
    });
    assert_eq!(sample.cpu_percent, Some(50.0));
    assert_eq!(sample.steal_percent, Some(20.0));
    assert_eq!(sample.swap_in_pages, Some(12));
    assert_eq!(sample.load1, Some(1.25));
}

/// `/proc/PID/stat` of a process that took so many ticks.
fn stat(ticks: u64) -> String {
    format!("1 (agent) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 42 0 0\n")
}

#[test]
fn what_others_took_of_the_processor_is_what_the_agent_and_its_workers_did_not() {
    let own = format!("proc/{}/stat", std::process::id());
    let machine = Machine::with(&[
        ("proc/stat", "cpu  1000 0 0 5000 0 0 0 0 0 0\n"),
        (&own, &stat(100)),
        ("proc/7/stat", &stat(0)),
        ("proc/7/task/7/schedstat", "0 4000000 1\n"),
    ]);
    let window =
        |sampler: &mut Sampler, seconds| sampler.sample(Instant::now() + seconds * SECOND, &[7], 0);
    let mut sampler = Sampler::new(machine.roots(), PowerConfig::default(), Instant::now());
    window(&mut sampler, 1);
    machine.write("proc/stat", "cpu  1080 0 0 5020 0 0 0 0 0 0\n");
    machine.write(&own, stat(105));
    machine.write("proc/7/stat", stat(25));
    machine.write("proc/7/task/7/schedstat", "0 9000000 2\n");
    let sample = window(&mut sampler, 2);
    assert_eq!(sample.cpu_percent, Some(80.0));
    assert_eq!(sample.others_percent, Some(50.0));
    let worker = sample.processes[&7];
    assert_eq!((worker.ticks, worker.waited), (25, Some(Duration::from_millis(5))));
    let emulated = Sampler::new(machine.roots(), PowerConfig::default(), Instant::now());
    let mut emulated = emulated.of_an_emulated_board();
    machine.write("proc/stat", "cpu  1090 0 0 5030 0 0 0 0 0 0\n");
    let sample = window(&mut emulated, 1);
    assert_eq!((sample.cpu_percent, sample.others_percent), (Some(50.0), None));
    assert!(sample.processes.is_empty(), "the host's processes are not the board's");
}

#[test]
fn pressure_faults_and_the_group_s_memory_are_of_the_window() {
    let group = "sys/fs/cgroup/system.slice/espalier-agent.service";
    let machine = Machine::with(&[
        ("proc/vmstat", "pswpin 0\npgmajfault 40\n"),
        ("proc/pressure/memory", "some avg10=0.00 total=0\nfull avg10=0.00 total=0\n"),
        ("proc/self/cgroup", "0::/system.slice/espalier-agent.service\n"),
    ]);
    machine.write(&format!("{group}/cgroup.controllers"), "memory\n");
    machine.write(&format!("{group}/memory.current"), "77\n");
    machine.write(&format!("{group}/cpu.pressure"), "some avg10=0.00 total=5\n");
    let sample = second_window(&machine, PowerConfig::default(), 0, |machine| {
        machine.write("proc/vmstat", "pswpin 0\npgmajfault 49\n");
        let text = "some avg10=0.00 total=200000\nfull avg10=0.00 total=100000\n";
        machine.write("proc/pressure/memory", text);
        machine.write(&format!("{group}/cpu.pressure"), "some avg10=0.00 total=500005\n");
    });
    assert_eq!(sample.major_faults, Some(9));
    assert_eq!(sample.pressure.memory, Some(20.0));
    assert_eq!(sample.pressure.memory_full, Some(10.0));
    assert_eq!(sample.pressure.cpu, None);
    assert_eq!(sample.group_pressure.cpu, Some(50.0));
    assert_eq!(sample.group.and_then(|group| group.current_bytes), Some(77));
}

#[test]
fn counters_that_run_backwards_give_no_use_at_all() {
    let machine = Machine::with(&[
        ("proc/stat", "cpu  1000 0 0 5000 0 0 0 0 0 0\n"),
        ("proc/vmstat", "pswpin 40\n"),
    ]);
    let sample = second_window(&machine, PowerConfig::default(), 0, |machine| {
        machine.write("proc/stat", "cpu  10 0 0 50 0 0 0 0 0 0\n");
        machine.write("proc/vmstat", "pswpin 4\n");
    });
    assert_eq!(sample.cpu_percent, None);
    assert_eq!(sample.swap_in_pages, None);
}

#[test]
fn the_hottest_processor_zone_counts_and_broken_sensors_do_not() {
    let machine = Machine::with(&[
        ("sys/class/thermal/thermal_zone0/type", "battery\n"),
        ("sys/class/thermal/thermal_zone0/temp", "91000\n"),
        ("sys/class/thermal/thermal_zone1/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone1/temp", "54321\n"),
        ("sys/class/thermal/thermal_zone2/type", "cpu1-thermal\n"),
        ("sys/class/thermal/thermal_zone2/temp", "2147483647\n"),
    ]);
    assert_eq!(thermal::temperature_mc(&machine.roots()), Some(54_321));
    let unnamed = Machine::with(&[("sys/class/thermal/thermal_zone0/temp", "40000\n")]);
    assert_eq!(thermal::temperature_mc(&unnamed.roots()), Some(40_000));
}

#[test]
fn throttling_is_found_wherever_a_board_says_it() {
    let pi = "sys/devices/platform/soc/soc:firmware/get_throttled";
    let cause = |machine: &Machine| {
        second_window(machine, PowerConfig::default(), 0, |_| ()).throttle_cause
    };
    assert_eq!(cause(&Machine::with(&[(pi, "0x0\n")])), None);
    assert_eq!(cause(&Machine::with(&[(pi, "50000\n")])), None, "past only");
    assert_eq!(cause(&Machine::with(&[(pi, "1\n")])), None, "under-voltage");
    assert_eq!(cause(&Machine::with(&[(pi, "50004\n")])), Some("firmware"));
    assert_eq!(cause(&Machine::with(&[(pi, "0xe\n")])), Some("firmware"));
    let cooling = |kind: &str, state: &str| {
        Machine::with(&[
            ("sys/class/thermal/cooling_device0/type", kind),
            ("sys/class/thermal/cooling_device0/cur_state", state),
        ])
    };
    assert_eq!(cause(&cooling("cpufreq-cpu0\n", "2\n")), Some("cooling_device"));
    assert_eq!(cause(&cooling("cpufreq-cpu0\n", "0\n")), None);
    assert_eq!(cause(&cooling("pwm-fan\n", "3\n")), None);
}

#[test]
fn a_throttle_counter_counts_only_when_it_rises() {
    let file = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count";
    let machine = Machine::with(&[(file, "17\n")]);
    let calm = second_window(&machine, PowerConfig::default(), 0, |_| ());
    assert!(!calm.throttled);
    let hot = second_window(&machine, PowerConfig::default(), 0, |m| m.write(file, "18\n"));
    assert_eq!(hot.throttle_cause, Some("core_throttle_count"));
}

#[test]
fn a_low_clock_is_throttling_only_when_busy_and_hot() {
    let window = |temp: &str, busy: u64| {
        let machine = Machine::with(&[
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", temp),
            ("sys/class/thermal/thermal_zone0/trip_point_0_type", "passive\n"),
            ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "70000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1000000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "1800000\n"),
            ("proc/stat", "cpu  0 0 0 1000 0 0 0 0 0 0\n"),
        ]);
        second_window(&machine, PowerConfig::default(), 0, |m| {
            let idle = 1000 + 100 - busy;
            m.write("proc/stat", format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n"));
        })
    };
    assert_eq!(window("69000\n", 90).throttle_cause, Some("clock_below_maximum_while_hot"));
    assert!(!window("69000\n", 10).throttled, "idle clocks are low");
    assert!(!window("45000\n", 90).throttled, "cool");
    assert_eq!(window("45000\n", 90).freq_khz, Some(1_000_000));
}

#[test]
fn a_current_sensor_is_a_measurement_and_its_mean_is_over_the_window() {
    let machine = Machine::with(&[
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
        ("sys/class/hwmon/hwmon0/power1_input", "1\n"),
        ("sys/class/hwmon/hwmon1/name", "ina219\n"),
        ("sys/class/hwmon/hwmon1/power1_input", "2000000\n"),
    ]);
    let sample = second_window(&machine, power(PowerSource::Auto), 10, |m| {
        m.write("sys/class/hwmon/hwmon1/power1_input", "3000000\n");
    });
    assert_eq!((sample.power.source, sample.power.quality), ("hwmon", Quality::Measured));
    assert!(close(sample.power.power_mw.unwrap(), 2500.0));
    assert!(close(sample.power.energy_per_inference_mj.unwrap(), (2500.0 - 1600.0) / 10.0));
}

#[test]
fn a_sensor_without_a_multiplier_gives_volts_times_amperes() {
    let machine = Machine::with(&[
        ("sys/class/hwmon/hwmon0/name", "ina3221\n"),
        ("sys/class/hwmon/hwmon0/in1_input", "5000\n"),
        ("sys/class/hwmon/hwmon0/curr1_input", "400\n"),
    ]);
    let sample = second_window(&machine, PowerConfig::default(), 0, |_| ());
    assert!(close(sample.power.power_mw.unwrap(), 2000.0));
}

#[test]
fn a_battery_counts_only_while_it_discharges() {
    let battery = |status: &str| {
        Machine::with(&[
            ("sys/class/power_supply/AC/type", "Mains\n"),
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
            ("sys/class/power_supply/BAT0/status", status),
            ("sys/class/power_supply/BAT0/voltage_now", "12000000\n"),
            ("sys/class/power_supply/BAT0/current_now", "-500000\n"),
        ])
    };
    let reading =
        |machine: &Machine| second_window(machine, PowerConfig::default(), 0, |_| ()).power;
    let discharging = reading(&battery("Discharging\n"));
    assert_eq!(discharging.source, "battery");
    assert!(close(discharging.power_mw.unwrap(), 6000.0));
    assert_eq!(reading(&battery("Charging\n")).quality, Quality::None);
    let direct = battery("Discharging\n");
    direct.write("sys/class/power_supply/BAT0/power_now", "7000000\n");
    assert!(close(reading(&direct).power_mw.unwrap(), 7000.0));
}

#[test]
fn the_machine_runs_from_a_battery_of_its_own_that_discharges() {
    let on_battery = |status: &str, scope: &str| {
        let machine = Machine::with(&[
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
            ("sys/class/power_supply/BAT0/status", status),
            ("sys/class/power_supply/BAT0/scope", scope),
        ]);
        power::on_battery(&machine.roots())
    };
    assert!(on_battery("Discharging\n", "System\n"));
    assert!(!on_battery("Charging\n", "System\n"));
    assert!(!on_battery("Discharging\n", "Device\n"), "a mouse");
    assert!(!power::on_battery(&Machine::with(&[]).roots()));
}

fn rapl(energy: &str) -> Machine {
    Machine::with(&[
        ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
        ("sys/class/powercap/intel-rapl:0/energy_uj", energy),
        ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000\n"),
        ("sys/class/powercap/intel-rapl:0:0/name", "core\n"),
        ("sys/class/powercap/intel-rapl:0:0/energy_uj", "5\n"),
        ("sys/class/powercap/intel-rapl:1/name", "psys\n"),
        ("sys/class/powercap/intel-rapl:1/energy_uj", "5\n"),
    ])
}

#[test]
fn a_package_counter_is_followed_across_its_wrap() {
    let energy = "sys/class/powercap/intel-rapl:0/energy_uj";
    let sample = second_window(&rapl("9000000\n"), PowerConfig::default(), 0, |m| {
        m.write(energy, "500000\n");
        m.write("sys/class/powercap/intel-rapl:0:0/energy_uj", "9999\n");
        m.write("sys/class/powercap/intel-rapl:1/energy_uj", "9999\n");
    });
    assert_eq!((sample.power.source, sample.power.quality), ("rapl", Quality::Measured));
    assert!(close(sample.power.power_mw.unwrap(), 1500.0));
}

#[test]
fn a_counter_that_falls_with_no_range_to_wrap_at_is_no_measurement() {
    let machine = rapl("9000000\n");
    std::fs::remove_file(machine.path("sys/class/powercap/intel-rapl:0/max_energy_range_uj"))
        .unwrap();
    let sample = second_window(&machine, PowerConfig::default(), 3, |m| {
        m.write("sys/class/powercap/intel-rapl:0/energy_uj", "500000\n");
    });
    assert_eq!(sample.power.power_mw, None);
    assert_eq!((sample.power.source, sample.power.quality), ("none", Quality::None));
}

#[test]
fn a_package_counter_needs_an_idle_window_before_it_prices_an_inference() {
    let energy = "sys/class/powercap/intel-rapl:0/energy_uj";
    let machine = rapl("0\n");
    let start = Instant::now();
    let mut sampler = Sampler::new(machine.roots(), power(PowerSource::Rapl), start);
    machine.write(energy, "4000000\n");
    let first = sampler.sample(start + SECOND, &[], 10).power;
    assert_eq!(first.energy_per_inference_mj, None);
    machine.write(energy, "5000000\n");
    sampler.sample(start + 2 * SECOND, &[], 0);
    machine.write(energy, "8000000\n");
    let third = sampler.sample(start + 3 * SECOND, &[], 10).power;
    assert!(close(third.power_mw.unwrap(), 3000.0));
    assert!(close(third.energy_per_inference_mj.unwrap(), 200.0));
    assert_eq!(third.energy_error_mj, None, "two windows do not tell how wrong they are");
    machine.write(energy, "13000000\n");
    let fourth = sampler.sample(start + 4 * SECOND, &[], 10).power;
    // 3000 and 5000 mW with ten a second, and 1000 at rest: 1000 mW off on both sides.
    assert!(close(fourth.energy_per_inference_mj.unwrap(), 300.0));
    let error = (2.0_f64 * 1000.0 * 1000.0).sqrt() / (200.0_f64 / 3.0).sqrt();
    assert!(close(fourth.energy_error_mj.unwrap(), error), "{fourth:?}");
    machine.write(energy, "14000000\n");
    let other = sampler.sample(start + 5 * SECOND, &[99], 10).power;
    assert_eq!(other.energy_error_mj, None, "another worker: one window of it");
    assert!(close(other.energy_per_inference_mj.unwrap(), 0.0));
}

#[test]
fn without_a_gauge_power_is_modelled_from_the_processors_use_and_says_so() {
    let machine = Machine::with(&[("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")]);
    let change = |m: &Machine| m.write("proc/stat", "cpu  50 0 0 50 0 0 0 0 0 0\n");
    let sample = second_window(&machine, power(PowerSource::Auto), 17, change);
    assert_eq!((sample.power.source, sample.power.quality), ("model", Quality::Modelled));
    assert!(close(sample.power.power_mw.unwrap(), 3300.0));
    assert_eq!(sample.power.power_error_mw, None, "two figures do not tell how wrong they are");
}

#[test]
fn a_profile_goes_before_two_powers_and_tells_its_error() {
    let points = ["0:1600", "50:3400", "100:5000"].map(str::to_owned);
    let profile = power::profile(&points).unwrap();
    let config = PowerConfig { profile: Some(profile), ..power(PowerSource::Auto) };
    let machine = Machine::with(&[("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")]);
    let start = Instant::now();
    let mut sampler = Sampler::new(machine.roots(), config, start);
    let mut last = None;
    for i in 1..=3_u32 {
        machine.write("proc/stat", format!("cpu  {0} 0 0 {0} 0 0 0 0 0 0\n", 50 * i));
        last = Some(sampler.sample(start + i * SECOND, &[], 10).power);
    }
    let power = last.unwrap();
    assert!((power.power_mw.unwrap() - 3333.3).abs() < 0.1, "{power:?}");
    assert!(close(power.power_error_mw.unwrap(), profile.residual.unwrap()));
    // Windows alike have no spread: what is left is the error of the line's slope, of 3400 mW.
    let share = profile.slope_error.unwrap() / 3400.0;
    let energy = power.energy_per_inference_mj.unwrap();
    assert!(close(energy, 170.0) && close(power.energy_error_mj.unwrap(), energy * share));
}

#[test]
fn what_a_gauge_said_is_learned_and_models_the_power_once_it_falls_silent() {
    let machine = battery("BAT0", "12000000\n");
    machine.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n");
    let start = Instant::now();
    let mut sampler = Sampler::new(machine.roots(), power(PowerSource::Auto), start);
    let (mut busy, mut idle) = (0_u64, 0_u64);
    let mut run = |percent: u64| {
        (busy, idle) = (busy + percent, idle + 100 - percent);
        machine.write("proc/stat", format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n"));
    };
    for i in 1..=80_u32 {
        run(if i % 2 == 0 { 80 } else { 20 });
        sampler.tick(start + i * SECOND);
    }
    machine.write("sys/class/power_supply/BAT0/status", "Charging\n");
    run(50);
    sampler.tick(start + 81 * SECOND);
    run(50);
    let power = sampler.sample(start + 82 * SECOND, &[], 0).power;
    assert_eq!((power.source, power.quality), ("model", Quality::Modelled));
    assert!(close(power.power_mw.unwrap(), 12_000.0), "the board's, not the profile's: {power:?}");
    assert!(power.power_error_mw.is_some());
}

/// A battery that gives so many microwatts.
fn battery(name: &str, microwatts: &str) -> Machine {
    let machine = Machine::empty();
    add_battery(&machine, name, microwatts);
    machine
}

fn add_battery(machine: &Machine, name: &str, microwatts: &str) {
    let folder = format!("sys/class/power_supply/{name}");
    machine.write(&format!("{folder}/type"), "Battery\n");
    machine.write(&format!("{folder}/status"), "Discharging\n");
    machine.write(&format!("{folder}/power_now"), microwatts);
}

#[test]
fn of_two_sources_the_better_one_is_taken() {
    let add_hwmon = |machine: &Machine| {
        machine.write("sys/class/hwmon/hwmon0/name", "ina219\n");
        machine.write("sys/class/hwmon/hwmon0/power1_input", "2000000\n");
    };
    let add_rapl = |machine: &Machine| {
        machine.write("sys/class/powercap/intel-rapl:0/name", "package-0\n");
        machine.write("sys/class/powercap/intel-rapl:0/energy_uj", "5\n");
    };
    let chip = || power::pmic::tests::board("Raspberry Pi 5 Model B Rev 1.0\0", "exit 1");
    let source = |machine: &Machine| {
        let config = power(PowerSource::Auto);
        let (name, quality) = power::at_hand(&config, &machine.roots());
        let sample = second_window(machine, config, 0, |m| {
            m.write("sys/class/powercap/intel-rapl:0/energy_uj", "1000005\n");
        });
        // The chip's program has not answered yet, and the processor's use is not known.
        let said = sample.power.source;
        assert!(said == name || said == "none", "{said} for {name}");
        assert_eq!(quality == Quality::Modelled, name == "model");
        name
    };
    let machine = battery("BAT0", "7000000\n");
    add_hwmon(&machine);
    assert_eq!(source(&machine), "battery");
    let machine = chip();
    add_hwmon(&machine);
    add_rapl(&machine);
    assert_eq!(source(&machine), "hwmon");
    let machine = chip();
    add_rapl(&machine);
    assert_eq!(source(&machine), "rapl");
    assert_eq!(source(&chip()), "pmic");
    assert_eq!(source(&Machine::empty()), "model");
    let none = power::at_hand(&PowerConfig::default(), &Machine::empty().roots());
    assert_eq!(none, ("none", Quality::None));
}

#[test]
fn batteries_that_discharge_are_summed_and_one_that_does_not_tell_spoils_the_sum() {
    let machine = battery("BAT0", "7000000\n");
    add_battery(&machine, "BAT1", "-3000000\n");
    add_battery(&machine, "hid-mouse", "9000000\n");
    machine.write("sys/class/power_supply/hid-mouse/scope", "Device\n");
    let power = |machine: &Machine| second_window(machine, PowerConfig::default(), 0, |_| ()).power;
    assert!(close(power(&machine).power_mw.unwrap(), 10_000.0));
    machine.write("sys/class/power_supply/BAT1/power_now", "?\n");
    assert_eq!(power(&machine).power_mw, None);
    machine.write("sys/class/power_supply/BAT1/status", "Full\n");
    assert!(close(power(&machine).power_mw.unwrap(), 7000.0));
}

#[test]
fn memory_beside_a_package_is_added_to_it_and_wraps_by_itself() {
    let machine = rapl("9000000\n");
    let memory = "sys/class/powercap/intel-rapl:0:1";
    machine.write(&format!("{memory}/name"), "dram\n");
    machine.write(&format!("{memory}/energy_uj"), "600\n");
    machine.write(&format!("{memory}/max_energy_range_uj"), "1000\n");
    let sample = second_window(&machine, PowerConfig::default(), 0, |m| {
        m.write("sys/class/powercap/intel-rapl:0/energy_uj", "500000\n");
        m.write("sys/class/powercap/intel-rapl:0:0/energy_uj", "9999\n");
        m.write(&format!("{memory}/energy_uj"), "100\n");
    });
    assert!(close(sample.power.power_mw.unwrap(), 1500.5), "{:?}", sample.power);
}

#[test]
fn a_source_that_was_asked_for_and_is_missing_is_not_replaced() {
    let machine = Machine::with(&[("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")]);
    let gauges = [PowerSource::Battery, PowerSource::Hwmon, PowerSource::Rapl, PowerSource::Pmic];
    for source in gauges.into_iter().chain([PowerSource::Off]) {
        let sample = second_window(&machine, power(source), 1, |_| ());
        assert_eq!(sample.power.quality, Quality::None, "{source:?}");
    }
    assert_eq!(
        "ina".parse::<PowerSource>().unwrap_err().to_string(),
        "`ina` is no power source; there are auto, battery, hwmon, rapl, pmic, model and none"
    );
}

#[test]
fn the_machine_that_runs_this_can_be_read() {
    let start = Instant::now();
    let mut sampler = Sampler::new(Roots::default(), PowerConfig::default(), start);
    let sample = sampler.sample(start + SECOND, &[std::process::id()], 0);
    assert!(sample.memory_total_bytes.unwrap() > 1 << 20);
    assert!(sample.agent_pss_bytes.unwrap() > 4096);
    assert!(sample.load1.is_some());
    assert!(sample.processes.contains_key(&std::process::id()));
}
