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
async fn a_stranger_s_signature_and_an_old_timestamp_are_refused_by_name() {
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
    rejected(&end(&device, 2).await, "TUF check \"freeze\" failed");
    owner.host.refresh().unwrap();
    owner.serve().offer(&device, &late).await;
    assert_eq!(end(&device, 3).await.outcome, InstallOutcome::Committed);
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
