//! `cargo xtask bench edge`: how long somebody else waits for an answer while a client floods the edge with HTTP/2 frames.
//!
//! The node and the one who waits have one CPU, the flood another, so that what the flood itself costs to send, which in
//! reality is another machine's, is on neither. Every flood goes on without pause: a connection that the node has ended is
//! followed by the next. In each round the same requests are made in calm and under each flood.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::thread::CpuSet;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::figure::{Figure, Target, Unit};
use super::measure::median;
use super::report;
use crate::h2_flood::{self, Flood};
use crate::process::Process;
use crate::realm::{Plan, Realm, WIKI};

/// Of a request in calm, at the 99th percentile.
const TARGET: f64 = 2.0;
/// What the process of the flood prints for each connection that was ended.
const ENDED: &str = "ended\n";

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds, of which the median counts.
    pub runs: usize,
    /// Requests of a round in calm, and under each flood.
    pub requests: usize,
    /// Connections that flood at a time.
    pub connections: usize,
}

/// How long requests took in one round, ascending.
struct Waits(Vec<Duration>);

impl Waits {
    /// In milliseconds; `share` of the requests took no longer.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(share * last as f64).round() as usize].as_secs_f64() * 1e3
    }
}

/// What was measured.
pub struct Report {
    options: Options,
    pub figures: Vec<Figure>,
}

impl Report {
    /// Whether every figure reaches its target.
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(Figure::is_met)
    }

    pub fn table(&self) -> String {
        let Options { runs, requests, connections } = &self.options;
        format!(
            "{}\nmedian of {runs} interleaved rounds of {requests} requests, each on a new TLS connection; {connections} \
             connections flood\n\n{}",
            report::machine_line(),
            report::table(&self.figures, "milliseconds")
        )
    }

    pub fn json(&self) -> Value {
        let mut method = report::machine_json();
        method["runs"] = self.options.runs.into();
        method["requests"] = self.options.requests.into();
        method["connections"] = self.options.connections.into();
        json!({ "method": method, "met": self.is_met(), "figures": report::figures_json(&self.figures) })
    }
}

/// Measures everything. `say` is told what comes next.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus > 1, "the flood needs a CPU of its own, and this machine has one in all");
    // What is started from here on inherits it.
    pin(cpus - 1)?;
    say("a node with an application");
    let realm = Plan::new()?.start(true, &[], "")?;
    let client = Client::new(&realm.ca_file, realm.port)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(client.waits(options.requests))?;

    let floods = h2_flood::all();
    let mut calm = Vec::new();
    let mut flooded: Vec<_> = floods.iter().map(|_| Vec::new()).collect();
    let mut rates: Vec<_> = floods.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.runs {
        say(&format!("round {round} of {}", options.runs));
        calm.push(runtime.block_on(client.waits(options.requests))?);
        for (which, waits) in flooded.iter_mut().enumerate() {
            let mut flood = start_flood(&realm, which, options.connections)?;
            let started = Instant::now();
            waits.push(runtime.block_on(client.waits(options.requests))?);
            let ended = flood.output().matches(ENDED).count();
            rates[which].push(ended as f64 / started.elapsed().as_secs_f64());
            flood.kill()?;
        }
    }
    let figures = floods.iter().zip(flooded.iter().zip(rates));
    let figures = figures.map(|(flood, (waits, rates))| figure(flood, waits, &calm, median(rates))).collect();
    Ok(Report { options: options.clone(), figures })
}

/// `rate`: connections that the node ended in a second.
fn figure(flood: &Flood, waits: &[Waits], calm: &[Waits], rate: f64) -> Figure {
    let middle = |rounds: &[Waits], share| median(rounds.iter().map(|waits| waits.quantile(share)).collect());
    let ratio =
        waits.iter().zip(calm).map(|(waits, calm)| waits.quantile(0.99) / calm.quantile(0.99)).collect();
    let what = format!("another's 99th percentile under {}", flood.name);
    let mut figure = Figure::new(&what, median(ratio), Unit::Ratio, Target::AtMost(TARGET));
    figure.against = Some("calm".to_owned());
    figure.note = Some(format!(
        "{:.1} : {:.1}, median {:.1} : {:.1}; {rate:.0} connections/s ended",
        middle(waits, 0.99),
        middle(calm, 0.99),
        middle(waits, 0.5),
        middle(calm, 0.5)
    ));
    figure
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).context("sched_setaffinity")
}

/// A process of its own on the first CPU, once the node has ended a connection of it.
fn start_flood(realm: &Realm, which: usize, connections: usize) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["flood", "--ca"]).arg(&realm.ca_file);
    for (option, number) in
        [("--port", usize::from(realm.port)), ("--which", which), ("--connections", connections)]
    {
        command.arg(option).arg(number.to_string());
    }
    let mut process = Process::spawn("flood", command)?;
    process.wait_for_output(ENDED, Duration::from_secs(60))?;
    Ok(process)
}

/// What the process of a flood does until it is killed.
pub fn flood(ca: &Path, port: u16, which: usize, connections: usize) -> Result<()> {
    pin(0)?;
    let flood = h2_flood::all().into_iter().nth(which).context("there is no such flood")?;
    let client = Arc::new(Client::new(ca, port)?);
    let bytes: Arc<[u8]> = flood.bytes().into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (client, bytes) = (Arc::clone(&client), Arc::clone(&bytes));
            tasks.spawn(async move {
                loop {
                    // A node that has no more places closes at once, which is one way to end a flood.
                    if let Ok(mut stream) = client.connect(&[b"h2"]).await {
                        h2_flood::send(&mut stream, &bytes).await;
                    }
                    print!("{ENDED}");
                }
            });
        }
        tasks.join_next().await.transpose().map(drop)
    })?;
    Ok(())
}

struct Client {
    roots: RootCertStore,
    node: SocketAddr,
}

impl Client {
    fn new(ca: &Path, port: u16) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let pem =
            CertificateDer::from_pem_file(ca).with_context(|| PathBuf::from(ca).display().to_string())?;
        roots.add(pem)?;
        Ok(Self { roots, node: (Ipv4Addr::LOCALHOST, port).into() })
    }

    async fn connect(&self, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
        // A new configuration knows no session to resume.
        let mut config =
            ClientConfig::builder().with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.node).await?;
        Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(WIKI)?, stream).await?)
    }

    /// Requests one after the other, from opening the connection to the end of the answer, which sends to log in.
    async fn waits(&self, requests: usize) -> Result<Waits> {
        let request = format!("GET / HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\n\r\n");
        let mut waits = Vec::with_capacity(requests);
        for _ in 0..requests {
            let started = Instant::now();
            let mut stream = self.connect(&[]).await?;
            stream.write_all(request.as_bytes()).await?;
            // The TLS library may keep what was written, and reading does not move it on.
            stream.flush().await?;
            let mut answer = Vec::new();
            // Whether a close_notify follows decides nothing here.
            let _ = stream.read_to_end(&mut answer).await;
            ensure!(answer.starts_with(b"HTTP/1.1 302 "), "{}", String::from_utf8_lossy(&answer));
            waits.push(started.elapsed());
        }
        waits.sort();
        Ok(Waits(waits))
    }
}
