//! With an owner's root: what its keys allow is installed, and nothing else.

use ::trust::{Expiry, Host, Init, Limits};

use super::*;

/// An owner's repository beside its bundles, in a folder that is served.
struct Owner {
    dir: tempfile::TempDir,
    host: Host,
}

impl Owner {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::init(&dir.path().join("owner"), None, &Init::default()).unwrap();
        std::fs::create_dir_all(dir.path().join("served/bundles")).unwrap();
        std::os::unix::fs::symlink(host.metadata(), dir.path().join("served/trust")).unwrap();
        Self { dir, host }
    }

    /// A bundle where offers point at, signed by nobody yet.
    fn publish(&self, n: u64) -> Bundle {
        let made = bundle(self.dir.path(), n, "2");
        let served = self.dir.path().join("served/bundles");
        made.move_into(&served).unwrap()
    }

    fn add(&self, bundle: &Bundle, class: &str) {
        self.host.add(&bundle.dir, &[class.to_owned()]).unwrap();
    }

    fn serve(&self) -> Served {
        self.serve_with(Box::new(honest))
    }

    fn serve_with(&self, answer: Box<Answer>) -> Served {
        Served { server: serve(&self.dir.path().join("served"), answer) }
    }

    fn device(&self) -> Device {
        let mut device = Device::new();
        let root_json = self.host.root_json().unwrap();
        device.config.trust = Some(TrustConfig {
            root: "root.json".into(),
            root_version: 1,
            root_json,
            repository: None,
            expiry: Expiry::Strict,
            limits: Limits::default(),
        });
        device
    }
}

struct Served {
    server: super::super::super::download::tests::Server,
}

impl Served {
    async fn offer(&self, device: &Device, bundle: &Bundle) {
        let url = format!("{}/bundles/{}", self.server.url, bundle.digest.hex());
        device.offer(bundle, &url).await;
    }
}

/// The end of the `count`th install.
async fn end(device: &Device, count: usize) -> InstallEvent {
    until("the end of an install", || device.ends().len() >= count).await;
    device.ends().remove(count - 1)
}

fn rejected(end: &InstallEvent, reason: &str) {
    assert_eq!(end.outcome, InstallOutcome::Rejected, "{end:?}");
    assert!(end.reason.as_ref().unwrap().contains(reason), "wanted {reason:?} in {end:?}");
    assert!(!end.blocked, "it may be signed later: {end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsigned_offer_is_refused_and_the_same_one_signed_is_installed() {
    let owner = Owner::new();
    let server = owner.serve();
    let mut device = owner.device();
    device.start().await;
    let first = owner.publish(1);
    server.offer(&device, &first).await;
    rejected(&end(&device, 1).await, "TUF check \"target\" failed");
    owner.add(&first, "c");
    server.offer(&device, &first).await;
    assert_eq!(end(&device, 2).await.outcome, InstallOutcome::Committed);
    assert_eq!(device.served(), "1.0.1");
    // What is signed for other classes, and what is allowed no more.
    let second = owner.publish(2);
    owner.add(&second, "another");
    server.offer(&device, &second).await;
    rejected(&end(&device, 3).await, "TUF check \"device class\" failed");
    let third = owner.publish(3);
    owner.add(&third, "any");
    owner.host.remove(&[third.digest]).unwrap();
    server.offer(&device, &third).await;
    rejected(&end(&device, 4).await, "TUF check \"target\" failed");
    assert_eq!(device.served(), "1.0.1");
    device.stop().await;
    assert!(device.state_dir().join("trust/trusted.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_s_signature_is_refused_by_name_and_an_old_timestamp_waited_out() {
    let (owner, stranger) = (Owner::new(), Owner::new());
    let mut device = owner.device();
    device.start().await;
    let first = stranger.publish(1);
    stranger.add(&first, "any");
    stranger.serve().offer(&device, &first).await;
    rejected(&end(&device, 1).await, "TUF check \"signature\" failed");
    let late = owner.publish(2);
    owner.add(&late, "any");
    let old = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 30 * 86_400;
    owner.host.clone().pretending(i64::try_from(old).unwrap()).refresh().unwrap();
    owner.serve().offer(&device, &late).await;
    until("it is told of", || !withheld(&device).is_empty()).await;
    // The offer stands, and nobody makes it again.
    owner.host.refresh().unwrap();
    assert_eq!(end(&device, 2).await.outcome, InstallOutcome::Committed);
    let told = withheld(&device);
    assert_eq!(told.len(), 1, "told once: {told:?}");
    assert!(told[0].contains("TUF check \"freeze\" failed"), "{told:?}");
    device.stop().await;
}

/// The reasons of installs that go on.
fn withheld(device: &Device) -> Vec<String> {
    let said = device.broker.as_ref().unwrap().said.lock().unwrap();
    let installs = said.iter().filter(|(topic, _)| topic.ends_with("up/e/install"));
    let decoded = installs.map(|(_, payload)| wire::decode::<InstallEvent>(payload).unwrap());
    let going_on = decoded.filter(|event| event.outcome == InstallOutcome::Progress);
    going_on.filter_map(|event| event.reason).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_wants_a_login_first_and_a_root_half_published_are_waited_out() {
    let owner = Owner::new();
    let first = owner.publish(1);
    owner.add(&first, "any");
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let server = owner.serve_with(Box::new(move |name, content, from| {
        let asked = if name.ends_with("timestamp.json") {
            count.fetch_add(1, Ordering::SeqCst)
        } else {
            return honest(name, content, from);
        };
        match asked {
            0..3 => honest(name, b"<html>please log in</html>", 0),
            // Not signed by the keys of the root that the device has.
            3..5 => {
                let text = String::from_utf8(content.to_vec()).unwrap();
                honest(name, text.replace("\"version\":", "\"version\":1").as_bytes(), 0)
            }
            _ => honest(name, content, from),
        }
    }));
    let mut device = owner.device();
    device.start().await;
    server.offer(&device, &first).await;
    let end = end(&device, 1).await;
    assert_eq!(end.outcome, InstallOutcome::Committed, "{end:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 6);
    let told = withheld(&device);
    assert_eq!(told.len(), 1, "told once: {told:?}");
    assert!(told[0].contains("TUF check \"format\" failed"), "{told:?}");
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_cannot_be_reached_now_is_asked_again() {
    let owner = Owner::new();
    let first = owner.publish(1);
    owner.add(&first, "any");
    let failures = Arc::new(AtomicU64::new(2));
    let left = failures.clone();
    let server = owner.serve_with(Box::new(move |name, content, from| {
        let fails = name.ends_with("timestamp.json")
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if fails {
            return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_vec();
        }
        honest(name, content, from)
    }));
    let mut device = owner.device();
    device.start().await;
    server.offer(&device, &first).await;
    assert_eq!(end(&device, 1).await.outcome, InstallOutcome::Committed, "{:?}", device.ends());
    assert_eq!(failures.load(Ordering::SeqCst), 0);
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_in_the_store_is_served_without_asking_anybody() {
    let owner = Owner::new();
    let first = owner.publish(1);
    owner.add(&first, "any");
    let server = owner.serve();
    let mut device = owner.device();
    device.start().await;
    server.offer(&device, &first).await;
    assert_eq!(end(&device, 1).await.outcome, InstallOutcome::Committed);
    device.crash().await;
    drop(server);
    owner.host.remove(&[first.digest]).unwrap();
    device.start().await;
    let address = device.address();
    until("the model serves", || infer(&address, 3.0)).await;
    device.stop().await;
}
