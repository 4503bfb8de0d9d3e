//! Carries a client's bytes over TLS.
//!
//! The MQTT client's own TLS brings a second provider of cryptography into the build and gives no say in the
//! server's name (`docs/adr/0012-tls.md`). So it speaks plainly to a socket within this process, and this
//! carries what it says. The socket is an abstract one of a random name; who is not this process is turned away.
//!
//! One relay serves one connection. It ends when either side does, and then says why.

use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::unix::{ReadHalf as OwnRead, WriteHalf as OwnWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::explain::{Parties, explain, find};
use crate::files::{FileError, Settings};
use crate::provider;

/// How long the client may take to come.
const CLIENT: Duration = Duration::from_secs(10);
/// How long a TCP connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the other side's last words are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host's name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What the connection is made with.
    pub settings: Settings,
    /// This side, as in "this device".
    pub here: &'static str,
    /// What the other side is, as in "the broker".
    pub role: &'static str,
}

/// One connection's way over TLS.
#[derive(Debug)]
pub struct Relay {
    address: String,
    fate: Arc<Mutex<Fate>>,
    /// Closed when this goes.
    _held: oneshot::Sender<()>,
}

/// How far it came.
#[derive(Debug)]
enum Fate {
    Going,
    Failed(String),
    Closed,
}

impl Relay {
    /// Reads the files and waits for the client; connects when it comes. Within a tokio runtime. The
    /// connection ends soon after this is dropped.
    ///
    /// # Errors
    /// A file is not as it should be, or the system gives no socket.
    pub fn open(target: Target) -> Result<Self, String> {
        let text = |e: FileError| e.to_string();
        let client = target.settings.client().map_err(text)?;
        let name = target.settings.name(&target.host).map_err(text)?;
        let address = fresh_address()?;
        let listener = UnixListener::bind(&address);
        let listener = listener.map_err(|e| format!("no socket for the TLS connection: {e}"))?;
        let fate = Arc::new(Mutex::new(Fate::Going));
        let shared = Arc::clone(&fate);
        let (held, dropped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // A server that neither takes nor sends would keep the connection for as long as it likes.
            let gone = async {
                let _ = dropped.await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = serve(&listener, client, name, &target, &shared) => {}
                () = gone => {}
            }
        });
        Ok(Self { address, fate, _held: held })
    }

    /// The path of the UNIX socket that the client connects to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Why the connection ended, where that is known here; what the client saw is only that it did.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &*lock(&self.fate) {
            Fate::Failed(reason) => Some(reason.clone()),
            Fate::Going | Fate::Closed => None,
        }
    }
}

fn lock(fate: &Mutex<Fate>) -> std::sync::MutexGuard<'_, Fate> {
    fate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fresh_address() -> Result<String, String> {
    let mut bytes = [0; 16];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| "the system gives no random numbers".to_owned())?;
    let mut address = "\0espalier-".to_owned();
    for byte in bytes {
        let _ = write!(address, "{byte:02x}");
    }
    Ok(address)
}

async fn serve(
    listener: &UnixListener,
    client: ClientConfig,
    name: ServerName<'static>,
    target: &Target,
    fate: &Mutex<Fate>,
) {
    let Ok(Ok(mut own)) = timeout(CLIENT, admit(listener)).await else {
        return;
    };
    let ended = match connect(client, name, target).await {
        Ok(tls) => carry(&mut own, tls, target).await,
        Err(reason) => Err(reason),
    };
    // Before the client can see its end.
    *lock(fate) = ended.map_or_else(Fate::Failed, |()| Fate::Closed);
    drop(own);
}

/// The first client that is this process itself.
async fn admit(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let peer = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        if peer == Some(std::process::id()) {
            return Ok(stream);
        }
    }
}

impl Target {
    fn there(&self) -> String {
        format!("{} {}:{}", self.role, self.host, self.port)
    }

    /// What an error means; `otherwise` where TLS has nothing to do with it.
    fn tell(&self, error: &io::Error, otherwise: impl FnOnce(&io::Error) -> String) -> String {
        let there = self.there();
        let parties = Parties { here: self.here, there: &there, settings: &self.settings };
        explain(error, parties).unwrap_or_else(|| otherwise(error))
    }

    /// The other side closed a connection without a word.
    fn mute(&self) -> String {
        let (there, here, names) = (self.there(), self.here, self.settings.names);
        let certificate = if self.settings.certificate.is_some() {
            format!("it may not take the certificate of {}", names.certificate)
        } else {
            format!("it may want a certificate, and none is set ({})", names.certificate)
        };
        format!(
            "{there} closed the connection right after the TLS handshake and did not tell {here} why: \
             {certificate}; its log may say more"
        )
    }
}

async fn connect(
    client: ClientConfig,
    name: ServerName<'static>,
    target: &Target,
) -> Result<TlsStream<TcpStream>, String> {
    let there = target.there();
    let late = |limit: Duration, what: &str| format!("{there} did not {what} within {limit:?}");
    let host = target.host.trim_start_matches('[').trim_end_matches(']');
    let tcp = timeout(CONNECT, TcpStream::connect((host, target.port))).await;
    let tcp = tcp.map_err(|_| late(CONNECT, "take a connection"))?;
    let tcp = tcp.map_err(|e| format!("no connection to {there}: {e}"))?;
    let _ = tcp.set_nodelay(true);
    let connector = TlsConnector::from(Arc::new(client));
    let tls = timeout(HANDSHAKE, connector.connect(name, tcp)).await;
    let tls = tls.map_err(|_| late(HANDSHAKE, "answer the TLS handshake"))?;
    tls.map_err(|error| {
        target.tell(&error, |error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => format!(
                "{there} closed the connection in the TLS handshake: is the port the one for TLS?"
            ),
            _ => format!("no TLS with {there}: {error}"),
        })
    })
}

/// Both ways, until one side ends.
async fn carry(
    own: &mut UnixStream,
    tls: TlsStream<TcpStream>,
    target: &Target,
) -> Result<(), String> {
    let (mut from_own, mut to_own) = own.split();
    let (mut from_there, mut to_there) = tokio::io::split(tls);
    let mut heard = false;
    let ended = {
        let up = async {
            tokio::io::copy(&mut from_own as &mut OwnRead<'_>, &mut to_there).await?;
            to_there.shutdown().await
        };
        let down = pass_down(&mut from_there, &mut to_own, &mut heard);
        tokio::pin!(up, down);
        tokio::select! {
            ended = &mut down => ended,
            sent = &mut up => match (timeout(LAST_WORDS, &mut down).await, sent) {
                // What the other side said last tells more than that it listens no longer.
                (Ok(Err(error)), _) if find(&error).is_some() => Err(error),
                (_, Err(error)) => Err(error),
                (Ok(ended), Ok(())) => ended,
                (Err(_), Ok(())) => Ok(()),
            },
        }
    };
    match ended {
        Ok(()) if heard => Ok(()),
        Ok(()) => Err(target.mute()),
        Err(error) => Err(target.tell(&error, |error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if !heard => target.mute(),
            _ => format!("the connection to {} broke: {error}", target.there()),
        })),
    }
}

/// What the other side says, until it ends. Without a TLS good-bye it may have been cut short, which the
/// client's own protocol sees.
async fn pass_down(
    from: &mut ReadHalf<TlsStream<TcpStream>>,
    to: &mut OwnWrite<'_>,
    heard: &mut bool,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk).await {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        *heard = true;
        to.write_all(&chunk[..read]).await?;
    }
}
