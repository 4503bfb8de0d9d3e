//! Disks that take no more, stores whose bits flip, and offers that cross each other.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Program, Stdio};

use super::*;

/// Tells the process on the small disk where it is to work, and what it is to run out of.
const FOLDER: &str = "ESPALIER_TEST_SMALL_DISK";
const SHORT_OF: &str = "ESPALIER_TEST_SHORT_OF";

/// Uses up a disk until it takes no more.
fn use_up(folder: &Path, short_of: &str) -> Vec<std::path::PathBuf> {
    let filler = |n: usize| folder.join(format!("filler-{n}"));
    if short_of == "inodes" {
        let made = (0..).take_while(|n| std::fs::write(filler(*n), b"").is_ok());
        return made.map(filler).collect();
    }
    let mut file = std::fs::File::create(filler(0)).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    vec![filler(0)]
}

/// The device on a file system of its own, which a parent process has made small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that another test starts on a small disk"]
async fn on_a_small_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
    let short_of = std::env::var(SHORT_OF).unwrap();
    let mut device = Device::within(&folder);
    device.start().await;
    let first = bundle(device.dir.path(), 1, "2");
    let second = bundle(device.dir.path(), 2, "2.0");
    let servers = [&first, &second].map(|bundle| serve(&bundle.dir, Box::new(honest)));
    device.offer(&first, &servers[0].url).await;
    until("the first commit", || device.ends().len() == 1).await;
    let traffic = traffic(&device.address());
    let fillers = use_up(&folder, &short_of);
    device.offer(&second, &servers[1].url).await;
    device.ping("short").await;
    let before = traffic.answered.load(Ordering::Relaxed);
    until("it serves on", || traffic.answered.load(Ordering::Relaxed) > before + 50).await;
    assert_eq!(device.ends().len(), 1, "{:?}", device.ends());
    assert_eq!(device.served(), "1.0.1");
    for filler in fillers {
        std::fs::remove_file(filler).unwrap();
    }
    until("the second commit", || device.served() == "1.0.2").await;
    until("its end", || device.ends().len() == 2).await;
    assert_eq!(device.ends()[1].outcome, InstallOutcome::Committed, "{:?}", device.ends());
    until("the answer", || device.said_on("up/rs/short")).await;
    assert_eq!(traffic.failed.load(Ordering::Relaxed), 0);
    drop(traffic);
    device.stop().await;
}

/// Makes a disk take nothing, and gives what makes it take something again.
fn shut(folder: &Path, short_of: &str) -> impl FnOnce() + use<> {
    let (folder, read_only) = (folder.to_owned(), short_of == "writes");
    let fillers = if read_only { Vec::new() } else { use_up(&folder, short_of) };
    let remount = move |mode: &str| {
        let options = format!("remount,{mode}");
        let mounted = Program::new("mount").args(["-o", &options]).arg(&folder).status();
        assert!(mounted.unwrap().success(), "{mode}");
    };
    if read_only {
        remount("ro");
    }
    move || {
        if read_only {
            remount("rw");
        }
        for filler in fillers {
            std::fs::remove_file(filler).unwrap();
        }
    }
}

/// The device, started on a disk that takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that another test starts on a small disk"]
async fn started_on_a_small_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
    let short_of = std::env::var(SHORT_OF).unwrap();
    let mut device = Device::within(&folder);
    device.start().await;
    let first = bundle(device.dir.path(), 1, "2");
    let second = bundle(device.dir.path(), 2, "2.0");
    let servers = [&first, &second].map(|bundle| serve(&bundle.dir, Box::new(honest)));
    device.offer(&first, &servers[0].url).await;
    until("the first commit", || device.ends().len() == 1).await;
    device.stop().await;
    let open = shut(&folder, &short_of);
    device.start().await;
    let volatile = std::env::temp_dir().join(format!("espalier-agent-{}", std::process::id()));
    let address = address_in(&volatile);
    until("it serves", || infer(&address, 3.0)).await;
    let told = |s: &String| s.contains("degraded") && s.contains("the disk takes nothing");
    until("it says what is wrong", || device.states().iter().any(told)).await;
    device.offer(&second, &servers[1].url).await;
    device.ping("shut").await;
    until("the answer", || device.said_on("up/rs/shut")).await;
    assert_eq!((device.ends().len(), device.served()), (1, "1.0.1".to_owned()));
    open();
    device.running.take().unwrap().await.unwrap();
    assert!(!volatile.exists(), "what was in memory goes with the agent");
    device.start().await;
    device.repeat_offer();
    let busy = traffic(&device.address());
    until("the second commit", || device.served() == "1.0.2").await;
    drop(busy);
    device.stop().await;
}

#[test]
fn a_device_that_starts_on_a_disk_without_room_inodes_or_writes_serves_what_lies_there() {
    on_a_disk_of_its_own("started_on_a_small_disk", &["bytes", "inodes", "writes"]);
}

#[test]
fn a_disk_without_room_or_inodes_costs_no_request_no_command_and_no_install() {
    on_a_disk_of_its_own("on_a_small_disk", &["bytes", "inodes"]);
}

/// Runs a test on a small file system of its own.
fn on_a_disk_of_its_own(test: &str, runs_out_of: &[&str]) {
    for &short_of in runs_out_of {
        let size = if short_of == "inodes" { "size=24M,nr_inodes=150" } else { "size=24M" };
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t tmpfs -o {size} tmpfs \"${FOLDER}\" && exec \"$0\" --exact \
             shell::driver::tests::faults::{test} --ignored --nocapture"
        );
        let output = Program::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env(FOLDER, folder.path())
            .env(SHORT_OF, short_of)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{short_of}: {said}{errors}");
        assert!(said.contains("1 passed"), "{short_of}: {said}{errors}");
    }
}

/// A disk that refuses to keep anything, for as long as this lives. `strace` gives the answers.
struct Refusing(Child);

impl Refusing {
    fn with(error: &str) -> Self {
        let calls = "fsync,fdatasync,ftruncate,rename,renameat,renameat2,mkdir,mkdirat";
        let mut strace = Program::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}")])
            .args(["-p", &std::process::id().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace runs (Debian's package `strace`)");
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        let attached = said.next().unwrap().unwrap();
        assert!(attached.contains("attached"), "{attached}");
        std::thread::spawn(move || said.for_each(drop));
        Self(strace)
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

/// The device in a process of its own, for the disk refuses a whole process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that another test starts to attach strace to"]
async fn on_a_refusing_disk() {
    let Ok(error) = std::env::var(SHORT_OF) else { return };
    let mut device = installed(1).await;
    let second = bundle(device.dir.path(), 2, "2.0");
    let server = serve(&second.dir, Box::new(honest));
    let traffic = traffic(&device.address());
    let refusing = tokio::task::spawn_blocking(move || Refusing::with(&error)).await.unwrap();
    device.offer(&second, &server.url).await;
    device.ping("refused").await;
    let before = traffic.answered.load(Ordering::Relaxed);
    until("it serves on", || traffic.answered.load(Ordering::Relaxed) > before + 50).await;
    assert_eq!(device.served(), "1.0.1");
    assert_eq!(device.ends().len(), 1, "{:?}", device.ends());
    tokio::task::spawn_blocking(move || drop(refusing)).await.unwrap();
    until("the second commit", || device.served() == "1.0.2").await;
    until("its end", || device.ends().iter().any(|e| e.digest == second.digest.to_string())).await;
    until("the answer", || device.said_on("up/rs/refused")).await;
    assert_eq!(traffic.failed.load(Ordering::Relaxed), 0);
    drop(traffic);
    device.stop().await;
}

#[test]
fn a_disk_over_its_quota_read_only_or_failing_costs_no_request_no_command_and_no_install() {
    for error in ["EDQUOT", "EROFS", "EIO"] {
        let output = Program::new(std::env::current_exe().unwrap())
            .args(["--exact", "shell::driver::tests::faults::on_a_refusing_disk"])
            .args(["--ignored", "--nocapture"])
            .env(SHORT_OF, error)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}: {said}{errors}");
        assert!(said.contains("1 passed"), "{error}: {said}{errors}");
    }
}

/// Flips one bit in the middle of the stored model.
fn flip_a_bit(device: &Device, bundle: &Bundle) {
    let stored = device.state_dir().join("store").join(bundle.digest.hex()).join("model.onnx");
    let mut content = std::fs::read(&stored).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&stored, content).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_in_the_store_is_never_served_and_the_bundle_before_is() {
    let mut device = installed(1).await;
    let second = bundle(device.dir.path(), 2, "2.0");
    let server = serve(&second.dir, Box::new(honest));
    let busy = traffic(&device.address());
    device.offer(&second, &server.url).await;
    until("the second commit", || device.ends().len() > 1).await;
    drop(busy);
    device.stop().await;
    flip_a_bit(&device, &second);
    device.start().await;
    until("the fall back", || device.served() == "1.0.1").await;
    let address = device.address();
    until("the first model serves", || infer(&address, 3.0)).await;
    let taken_back = |end: &InstallEvent| end.outcome == InstallOutcome::RolledBack && !end.blocked;
    until("the device tells of it", || device.ends().iter().any(taken_back)).await;
    // It was the disk's fault and not the bundle's: the same one may come again.
    let busy = traffic(&device.address());
    device.offer(&second, &server.url).await;
    until("it is installed anew", || device.served() == "1.0.2").await;
    drop(busy);
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_in_the_only_bundle_is_mended_by_the_offer_of_the_same_bundle() {
    let mut device = Device::new();
    device.start().await;
    let only = bundle(device.dir.path(), 1, "2");
    let server = serve(&only.dir, Box::new(honest));
    device.offer(&only, &server.url).await;
    until("the commit", || device.ends().len() == 1).await;
    device.stop().await;
    flip_a_bit(&device, &only);
    let told = device.states().len();
    device.start().await;
    until("the device says what is wrong", || {
        device.states()[told..].iter().any(|s| s.contains("degraded") && s.contains("model.onnx"))
    })
    .await;
    // Only once it was tried often enough to be taken for broken is the offer more than a repetition.
    until("it is installed anew", || {
        let offered =
            || device.journal().iter().filter(|r| matches!(r, Record::Offered { .. })).count();
        if offered() < 2 {
            device.repeat_offer();
        }
        device.ends().len() == 2
    })
    .await;
    assert_eq!(device.ends()[1].outcome, InstallOutcome::Committed, "{:?}", device.ends());
    let address = device.address();
    until("it serves", || infer(&address, 3.0)).await;
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_offers_at_once_the_newer_is_installed_in_whatever_order_they_come() {
    for order in [[0, 1], [1, 0]] {
        let mut device = installed(1).await;
        let offered = [bundle(device.dir.path(), 2, "2.0"), bundle(device.dir.path(), 3, "2.00")];
        let servers = offered.each_ref().map(|bundle| serve(&bundle.dir, Box::new(honest)));
        let busy = traffic(&device.address());
        for n in order {
            device.offer(&offered[n], &servers[n].url).await;
        }
        until("the newer one is committed", || device.reached(3, InstallState::Committed)).await;
        assert_eq!(device.served(), "1.0.3");
        assert!(!device.reached(2, InstallState::Committed));
        let older = offered[0].digest.to_string();
        until("the older one is turned away", || {
            let away =
                |e: &InstallEvent| e.digest == older && e.outcome == InstallOutcome::Rejected;
            device.ends().iter().any(away)
        })
        .await;
        assert_eq!(busy.failed.load(Ordering::Relaxed), 0);
        drop(busy);
        device.stop().await;
    }
}

fn lost(records: u64) -> Report {
    let header = Header::of::<wire::SpoolDrop>(0, 0, "");
    Report::SpoolDrop(wire::SpoolDrop {
        header,
        dropped_records: records,
        dropped_bytes: 1,
        dropped_events: 0,
        reason: wire::DropReason::Full,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_events_as_may_wait_for_the_disk_are_kept_and_told_in_their_order() {
    let mut device = Device::new();
    let events = device.state_dir().join("spool/events");
    device
        .start_with(|driver| {
            std::fs::remove_dir(&events).unwrap();
            let many = MAX_UNKEPT as u64 + 6;
            (0..many).for_each(|n| driver.put(lost(n)).unwrap());
            assert_eq!(driver.unkept.len(), MAX_UNKEPT);
            driver.put_unkept();
            assert_eq!(driver.unkept.len(), MAX_UNKEPT, "the disk takes nothing yet");
            std::fs::create_dir(&events).unwrap();
            driver.put_unkept();
            assert_eq!(driver.unkept.len(), 0);
        })
        .await;
    let told = || {
        let said = device.broker.as_ref().unwrap().said.lock().unwrap();
        let drops = said.iter().filter(|(topic, _)| topic.ends_with("up/e/spool_drop"));
        let decoded = drops.map(|(_, payload)| wire::decode::<wire::SpoolDrop>(payload).unwrap());
        decoded.map(|event| event.dropped_records).collect::<Vec<_>>()
    };
    until("all that was kept is told", || told().len() == MAX_UNKEPT).await;
    assert_eq!(told(), (0..MAX_UNKEPT as u64).collect::<Vec<_>>());
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_withdrawn_while_the_journal_cannot_be_written_is_given_up_afterwards() {
    let mut device = Device::new();
    // The candidate has just been loaded.
    device.start_with(|driver| driver.journal.room = Some(4)).await;
    let first = bundle(device.dir.path(), 1, "2");
    let server = serve(&first.dir, Box::new(honest));
    device.offer(&first, &server.url).await;
    until("the journal is full", || device.journal().len() == 5).await;
    device.withdraw().await;
    until("the end", || !device.ends().is_empty()).await;
    let end = device.ends().pop().unwrap();
    assert_eq!(end.reason.as_deref(), Some("the offer was withdrawn"), "{end:?}");
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_withdrawn_while_it_downloads_is_given_up_and_the_old_model_serves_on() {
    let mut device = installed(1).await;
    let second = bundle(device.dir.path(), 2, "2.0");
    // The manifest comes, and the model never does.
    let stuck: Box<Answer> = Box::new(|name, content, from| match name {
        "model.onnx" => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec(),
        _ => honest(name, content, from),
    });
    let server = serve(&second.dir, stuck);
    device.offer(&second, &server.url).await;
    until("the download", || device.reached(2, InstallState::Downloading)).await;
    device.withdraw().await;
    until("the end", || device.ends().len() == 2).await;
    let end = device.ends().pop().unwrap();
    assert_eq!(end.outcome, InstallOutcome::Rejected);
    assert_eq!(end.reason.as_deref(), Some("the offer was withdrawn"));
    assert!(!end.blocked, "it may come again");
    let address = device.address();
    until("the first model serves", || infer(&address, 3.0)).await;
    device.stop().await;
}
