use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wire::{Header, Runtime};

use super::super::state_dir::StateDir;
use super::*;
use crate::plane::fake_config;

fn offer(n: usize, url: &str) -> Offer {
    Offer {
        header: Header::of::<Offer>(0, 0, ""),
        model: format!("m{n}"),
        version: "1".into(),
        sequence: 1,
        digest: format!("sha256:{n:064x}"),
        url: url.to_owned(),
        size_bytes: 1,
        runtime: Runtime::Tract,
        device_class: "any".into(),
        request_id: None,
    }
}

/// The next connection. It never gets an answer.
async fn accept(listener: &TcpListener) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < deadline, "no connection came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_download_than_may_run_at_once_waits_for_another_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(&folder.path().join("state")).unwrap();
    let plane = Plane::start(fake_config(folder.path())).await.unwrap();
    let (events, mut answers) = mpsc::channel(64);
    let installer = Installer::new(plane, Store::new(&state, 1 << 30), Access::default(), events);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/b", listener.local_addr().unwrap());
    for n in 0..=MAX_DOWNLOADS {
        let step = Step::Download(Box::new(offer(n, &url)));
        installer.step(format!("m{n}"), n as InstallId, step);
    }
    let mut held = Vec::new();
    for _ in 0..MAX_DOWNLOADS {
        held.push(accept(&listener).await);
    }
    assert_eq!(installer.slots.available_permits(), 0);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "one too many");
    drop(held.pop());
    let answer = tokio::time::timeout(Duration::from_secs(60), answers.recv()).await;
    assert!(matches!(answer, Ok(Some(Event::Step { outcome: Err(_), .. }))), "{answer:?}");
    drop(accept(&listener).await);
}
