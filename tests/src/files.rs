//! A bundle server that a test controls: plain files over HTTP with ranges, and damage on request.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certificates::Identity;

/// What the server does to `model.onnx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Damage {
    /// Nothing.
    #[default]
    None,
    /// One bit of the content is wrong.
    FlippedBit,
    /// The connection ends after half of the content, each time, at the same byte.
    CutInHalf,
    /// The content stops half way and the connection stays open until [`FileServer::release`].
    Stall,
    /// There is no such file.
    Missing,
}

#[derive(Default)]
struct State {
    damage: Damage,
    stalled: usize,
    asked: Vec<(String, u64)>,
}

impl State {
    fn asked_for(&self, path: &str) -> Vec<u64> {
        self.asked.iter().filter(|(asked, _)| asked == path).map(|(_, from)| *from).collect()
    }
}

struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// Serves `{url}/{anything below the folder}` until it is dropped.
pub struct FileServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    scheme: &'static str,
}

impl FileServer {
    /// Starts on a free loopback port.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, None)
    }

    /// The same over TLS, with a certificate.
    ///
    /// # Panics
    /// When there is no port, or the certificate is none.
    #[must_use]
    pub fn start_secure(folder: &Path, identity: &Identity) -> Self {
        let chain = tls::certificates(&identity.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate and its key");
        Self::start_with(folder, Some(Arc::new(config)))
    }

    fn start_with(folder: &Path, secure: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let scheme = if secure.is_some() { "https" } else { "http" };
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let for_thread = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if for_thread.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, secure) = (for_thread.clone(), secure.clone());
                // A client that goes away in the middle is part of what is tested.
                std::thread::spawn(move || match secure {
                    None => serve(&shared, stream).ok(),
                    Some(config) => {
                        let connection = ServerConnection::new(config).ok()?;
                        serve(&shared, StreamOwned::new(connection, stream)).ok()
                    }
                });
            }
        });
        Self { shared, address, scheme }
    }

    /// Where a folder's files are.
    #[must_use]
    pub fn url(&self, folder: &str) -> String {
        format!("{}://{}/{folder}", self.scheme, self.address)
    }

    /// From now on, models are damaged like this.
    pub fn set_damage(&self, damage: Damage) {
        self.shared.lock().damage = damage;
        self.shared.changed.notify_all();
    }

    /// Waits until a download has stalled.
    ///
    /// # Panics
    /// When none does within `patience`.
    pub fn wait_stalled(&self, patience: Duration) {
        self.wait("a download to stall", patience, |state| state.stalled > 0);
    }

    /// Waits until a file was asked for so often.
    ///
    /// # Panics
    /// When it is not within `patience`.
    pub fn wait_asked(&self, path: &str, times: usize, patience: Duration) {
        let what = format!("{times} requests for {path}");
        self.wait(&what, patience, |state| state.asked_for(path).len() >= times);
    }

    /// The first byte that each request for a file asked for, in order.
    #[must_use]
    pub fn asked_for(&self, path: &str) -> Vec<u64> {
        self.shared.lock().asked_for(path)
    }

    fn wait(&self, what: &str, patience: Duration, met: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !met(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {patience:?} in vain for {what}: {:?}", state.asked);
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends every stall.
    pub fn release(&self) {
        self.set_damage(Damage::None);
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.release();
        // Wakes the listener so that it sees the flag.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, request: &Request) {
        self.lock().asked.push((request.path.clone(), request.from));
        self.changed.notify_all();
    }
}

struct Request {
    path: String,
    from: u64,
    is_head: bool,
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let is_head = words.next() == Some("HEAD");
    let path = words.next().unwrap_or_default().trim_start_matches('/').to_owned();
    let mut from = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            return Ok(Some(Request { path, from, is_head }));
        }
        if let Some(range) = header.strip_prefix("range: bytes=") {
            from = range.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
}

fn serve(shared: &Shared, stream: impl Read + Write) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        shared.note(&request);
        let goes_on = answer(shared, &request, reader.get_mut())?;
        reader.get_mut().flush()?;
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers one request; `false` when the connection is to end.
fn answer(shared: &Shared, request: &Request, writer: &mut impl Write) -> std::io::Result<bool> {
    let is_model = request.path.ends_with("model.onnx");
    let damage = if is_model { shared.lock().damage } else { Damage::None };
    let safe = !request.path.contains("..");
    let file = fs::File::open(shared.folder.join(&request.path)).ok().filter(|_| safe);
    let (Some(mut file), true) = (file, damage != Damage::Missing) else {
        writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    };
    let total = file.metadata()?.len();
    let from = request.from;
    if from > 0 && from >= total {
        let head = format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{total}");
        write!(writer, "HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    }
    let status = if from > 0 {
        format!(
            "206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}",
            total.saturating_sub(1)
        )
    } else {
        "200 OK".to_owned()
    };
    write!(
        writer,
        "HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n",
        total - from
    )?;
    if request.is_head {
        return Ok(true);
    }
    file.seek(SeekFrom::Start(from))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    send(shared, damage, total, from, content, writer)
}

fn send(
    shared: &Shared,
    damage: Damage,
    total: u64,
    from: u64,
    mut content: Vec<u8>,
    writer: &mut impl Write,
) -> std::io::Result<bool> {
    let half = usize::try_from((total / 2).saturating_sub(from)).unwrap_or(0).min(content.len());
    match damage {
        Damage::None | Damage::Missing => {}
        Damage::FlippedBit => content[half] ^= 1,
        Damage::CutInHalf => {
            writer.write_all(&content[..half])?;
            return Ok(false);
        }
        Damage::Stall => {
            writer.write_all(&content[..half])?;
            writer.flush()?;
            let mut state = shared.lock();
            state.stalled += 1;
            shared.changed.notify_all();
            while state.damage == Damage::Stall {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.stalled -= 1;
            drop(state);
            content.drain(..half);
        }
    }
    writer.write_all(&content)?;
    Ok(true)
}
