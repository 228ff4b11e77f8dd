//! A node that does nothing but bind and relay, and the two ends of a session as processes (`relay_end`).
//!
//! The node's half is the real one; only the control connections are missing, whose part a test plays: it hands out
//! secrets and passes `ready` on.

use std::future::poll_fn;
use std::io::{BufRead as _, BufReader, IoSliceMut, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portcullis::clock;
use portcullis::tunnel::LayeredSocket;
use portcullis::tunnel::relay::wire::BindKey;
use portcullis::tunnel::relay::{
    Action, Binds, Demux, Leg, LegSecret, Own, Relay, Removed, SessionRef, Terms,
};
use quinn::udp::RecvMeta;
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime};
use tokio::sync::oneshot;

use crate::portcullis::START;

/// Writes [`Action::Install`] and [`Action::ReplaceLeg`] wherever packets are relayed; false when that failed.
pub type Install = Box<dyn FnMut(&Action) -> bool + Send>;

/// The node's half, on a thread of its own. Dropped, it stops.
pub struct RelayNode {
    binds: Arc<Mutex<Binds>>,
    relay: Arc<Relay>,
    ends: Ends,
    local: SocketAddr,
    _stop: oneshot::Sender<()>,
}

/// Standard inputs of the ends, where `ready` goes.
type Ends = Arc<Mutex<Vec<(SessionRef, Leg, Arc<Mutex<ChildStdin>>)>>>;

/// What both sides know of one leg.
pub struct LegSecrets {
    pub session: SessionRef,
    pub leg: Leg,
    key: [u8; 32],
    ticket: [u8; 16],
}

impl RelayNode {
    /// Serves `socket`, which decides in which namespace this is. Without `install` the userspace relay carries packets.
    pub fn start(socket: UdpSocket, mut install: Option<Install>) -> Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let (relay, mut queue) = Relay::new(clock::monotonic);
        let own = Own { addresses: [local.ip().to_canonical()].into(), ports: [local.port()].into() };
        let binds = Arc::new(Mutex::new(Binds::new(own)));
        let ends = Ends::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = Self {
            binds: Arc::clone(&binds),
            relay: Arc::clone(&relay),
            ends: Arc::clone(&ends),
            local,
            _stop: stop,
        };
        std::thread::Builder::new().name("relay node".to_owned()).spawn(move || {
            let serve = async {
                let socket = TokioRuntime.wrap_udp_socket(socket).expect("a bound socket can be wrapped");
                let socket = Demux::share(socket, Arc::clone(&relay)).expect("it knows its address");
                loop {
                    tokio::select! {
                        () = receive(&socket) => {}
                        datagram = queue.recv() => {
                            let Some(datagram) = datagram else { return };
                            let now = clock::monotonic();
                            let mut binds = binds.lock().unwrap_or_else(PoisonError::into_inner);
                            for action in binds.on_datagram(now, datagram.tuple, &datagram.bytes, clock::random) {
                                let done = match (&action, &mut install) {
                                    (Action::Ready { session, leg, counter }, _) => {
                                        tell_ready(&ends, *session, *leg, *counter);
                                        true
                                    }
                                    (Action::Install(_) | Action::ReplaceLeg { .. }, Some(install)) => install(&action),
                                    (Action::Send { .. } | Action::Install(_) | Action::ReplaceLeg { .. }, _) => {
                                        relay.perform(&action)
                                    }
                                };
                                assert!(done, "not performed: {action:?}");
                            }
                        }
                    }
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(node)
    }

    /// A session, and the secrets of its client and its connector.
    pub fn open(&self, session: SessionRef, terms: Terms) -> Result<[LegSecrets; 2]> {
        self.open_with(session, terms, clock::random)
    }

    /// The same with tickets that a gate in front of the node lets through.
    pub fn open_with(
        &self,
        session: SessionRef,
        terms: Terms,
        ticket: impl Fn() -> [u8; 16],
    ) -> Result<[LegSecrets; 2]> {
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        binds.register(session, terms)?;
        let secrets =
            Leg::BOTH.map(|leg| LegSecrets { session, leg, key: clock::random(), ticket: ticket() });
        for LegSecrets { leg, key, ticket, .. } in &secrets {
            binds.expect(session, *leg, LegSecret { key: BindKey::from_bytes(*key), ticket: *ticket })?;
        }
        Ok(secrets)
    }

    /// Revokes a session.
    pub fn remove(&self, session: SessionRef) -> Result<Removed> {
        let removed = self.binds.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
        let removed = removed.context("no such session")?;
        self.relay.remove(&removed);
        Ok(removed)
    }

    pub const fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Starts an end as `command` on `local`, which reaches this node at `node`, and tells it when its leg is ready.
    pub fn end(
        &self,
        command: Command,
        secrets: &LegSecrets,
        node: SocketAddr,
        local: SocketAddr,
    ) -> Result<RelayEnd> {
        let mut end = RelayEnd::spawn(command, secrets.leg, node, local)?;
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).push((
            secrets.session,
            secrets.leg,
            Arc::clone(&end.stdin),
        ));
        end.begin(secrets)?;
        Ok(end)
    }
}

fn tell_ready(ends: &Ends, session: SessionRef, leg: Leg, counter: u64) {
    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, _, stdin) in ends.iter().filter(|(of, its, _)| (*of, *its) == (session, leg)) {
        // An end that is no more need not hear it.
        let _ = writeln!(stdin.lock().unwrap_or_else(PoisonError::into_inner), "ready {counter}");
    }
}

async fn receive(socket: &LayeredSocket<Demux>) {
    let mut buffers: Vec<Vec<u8>> = (0..8).map(|_| vec![0; 65_536]).collect();
    let mut meta = [RecvMeta::default(); 8];
    let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
    // Whatever is neither a bind nor of a flow has nobody here to go to.
    let _ = poll_fn(|cx| socket.poll_recv(cx, &mut slices, &mut meta)).await;
}

/// One end, as a process; killed on drop.
pub struct RelayEnd {
    leg: Leg,
    child: Child,
    stdin: Arc<Mutex<ChildStdin>>,
    lines: Receiver<String>,
    ready: bool,
    /// A connector's certificate, in hexadecimal.
    certificate: Option<String>,
}

impl RelayEnd {
    fn spawn(mut command: Command, leg: Leg, node: SocketAddr, local: SocketAddr) -> Result<Self> {
        let role = match leg {
            Leg::Client => "client",
            Leg::Connector => "connector",
        };
        command.args([role, &node.to_string(), &local.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting relay_end")?;
        let stdin = Arc::new(Mutex::new(child.stdin.take().context("no standard input")?));
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { leg, child, stdin, lines, ready: false, certificate: None })
    }

    fn begin(&mut self, secrets: &LegSecrets) -> Result<()> {
        let LegSecrets { session, key, ticket, .. } = secrets;
        self.tell(&format!("{} {} {} {}", session.index, session.generation, hex(key), hex(ticket)))?;
        if self.leg == Leg::Connector {
            self.certificate = Some(self.wait_for("certificate ", START)?);
        }
        self.wait_for("up ", START).map(drop)
    }

    /// Waits until its leg comes into force.
    pub fn ready(&mut self, timeout: Duration) -> Result<()> {
        if self.ready { Ok(()) } else { self.wait_for("state Ready", timeout).map(drop) }
    }

    /// Goes on from another address.
    pub fn move_to(&mut self, local: SocketAddr) -> Result<()> {
        self.ready = false;
        self.tell(&format!("move {local}"))?;
        self.wait_for("moved ", START).map(drop)
    }

    /// Client: believe this connector's certificate.
    pub fn trust(&mut self, connector: &Self) -> Result<()> {
        let certificate = connector.certificate.as_deref().context("a client has no certificate")?;
        self.tell(&format!("trust {certificate}"))
    }

    /// One command, as `relay_end` documents them.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(stdin, "{command}").context("relay_end has ended")
    }

    /// Waits for a line that begins so; the rest of it.
    pub fn wait_for(&mut self, beginning: &str, timeout: Duration) -> Result<String> {
        let until = Instant::now() + timeout;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(state) = line.strip_prefix("state ") {
                        self.ready = state == "Ready";
                    }
                    if let Some(rest) = line.strip_prefix(beginning) {
                        return Ok(rest.to_owned());
                    }
                    if line.starts_with("failed ") {
                        bail!("relay_end {line}");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("relay_end did not print {beginning:?} in {timeout:?}")
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("relay_end ended before it printed {beginning:?}")
                }
            }
        }
    }

    /// Client: moves so many bytes to the connector; how long that took.
    pub fn send(&mut self, bytes: u64, timeout: Duration) -> Result<Duration> {
        self.tell(&format!("send {bytes}"))?;
        let sent = self.wait_for("sent ", timeout)?;
        let micros = sent.split(' ').nth(1).context("no time")?.parse()?;
        Ok(Duration::from_micros(micros))
    }
}

impl Drop for RelayEnd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text
        .chars()
        .map(|digit| digit.to_digit(16))
        .collect::<Option<Vec<_>>>()
        .context("not hexadecimal")?;
    if digits.len() % 2 != 0 {
        bail!("an odd number of digits");
    }
    digits.chunks(2).map(|pair| Ok(u8::try_from(pair[0] * 16 + pair[1])?)).collect()
}
