//! `cargo xtask bench saas`: what a SAML sign-in costs the node, beside SimpleSAMLphp as identity provider.
//!
//! A sign-in is an unsigned AuthnRequest by redirect, with the cookies of a session that exists, and the page that posts the
//! answer: response and assertion signed with RSA-SHA256 and 2048 bits, nothing encrypted. Each request is another one, and of
//! each answer it is checked that it answers just that.
//!
//! Compared are sign-ins for each second of CPU time of the process and all its children, user and system
//! (`/proc/PID/stat`), so that neither the one who asks nor what else the machine does is counted. The node answers by HTTPS
//! on connections that stay, and writes its events and its sessions' sign-ins to disk; PHP's own server answers by plain HTTP,
//! with opcache on and no check whether files have changed, which is the cheaper way to reach it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use portcullis::saml::{Kind, redirect};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::figure::{Figure, Target, Unit};
use super::measure::median;
use super::report;
use crate::realm::{AUTH, PASSWORD, Plan, Realm};
use crate::simplesaml::{Choices, SimpleSaml};

/// Sign-ins of the node for one of SimpleSAMLphp's.
const TARGET: f64 = 10.0;
const ENTITY: &str = "https://sp.example.org/metadata";
const ACS: &str = "https://sp.example.org/acs";
/// Bytes of the largest page.
const LARGEST: usize = 1 << 20;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds, of which the median counts.
    pub runs: usize,
    /// How long one of the two is asked in a round.
    pub length: Duration,
    /// Who asks at a time.
    pub clients: usize,
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
        let Options { runs, length, clients } = &self.options;
        format!(
            "{}\nmedian of {runs} interleaved rounds of {} ms each, {clients} clients; CPU time of the process and its children\n\n{}",
            report::machine_line(),
            length.as_millis(),
            report::table(&self.figures, "")
        )
    }

    pub fn json(&self) -> Value {
        let mut method = report::machine_json();
        method["runs"] = self.options.runs.into();
        method["run_seconds"] = self.options.length.as_secs_f64().into();
        method["clients"] = self.options.clients.into();
        json!({ "method": method, "met": self.is_met(), "figures": report::figures_json(&self.figures) })
    }
}

/// Measures both. `say` is told what comes next.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    say("a node and SimpleSAMLphp, with somebody who is logged in at both");
    let plan = Plan::new()?;
    let php =
        SimpleSaml::start(plan.path(), &plan.ca, Choices { sign_response: true, ..Choices::default() })?;
    php.know(&service_provider())?;
    let saml = format!("saml = {{ entity_id = \"{ENTITY}\", acs = [\"{ACS}\"] }}");
    let crm = format!("[[application]]\nname = \"crm\"\ntype = \"saas\"\npolicies = [\"staff\"]\n{saml}\n");
    let mut realm = plan.start(true, &[], &crm)?;
    let peers = [of_node(&mut realm)?, of_php(&realm, &php)?];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for peer in &peers {
        say(&format!("warming up: {}", peer.name));
        runtime.block_on(peer.ask(options.length / 4, options.clients))?;
    }
    let mut rates = [Vec::new(), Vec::new()];
    let mut elapsed = [Vec::new(), Vec::new()];
    for round in 0..options.runs {
        say(&format!("round {} of {}", round + 1, options.runs));
        for turn in 0..peers.len() {
            let which = (round + turn) % peers.len();
            let peer = &peers[which];
            let (cpu, started) = (cpu_time(peer.pid)?, Instant::now());
            let done = runtime.block_on(peer.ask(options.length, options.clients))?;
            let (spent, took) = (cpu_time(peer.pid)?.saturating_sub(cpu), started.elapsed());
            rates[which].push(done as f64 / spent.as_secs_f64());
            elapsed[which].push(done as f64 / took.as_secs_f64());
        }
    }
    let [own, other] = &rates;
    let ratio = median(own.iter().zip(other).map(|(own, other)| own / other).collect());
    let [own, other] = rates.map(median);
    let [own_elapsed, other_elapsed] = elapsed.map(median);
    let what = "SAML sign-ins for each second of CPU";
    let mut figure = Figure::new(what, ratio, Unit::Ratio, Target::AtLeast(TARGET));
    figure.against = Some("SimpleSAMLphp".to_owned());
    figure.note = Some(format!(
        "{own:.0} : {other:.0} per CPU second, {own_elapsed:.0} : {other_elapsed:.0} per second with all there is"
    ));
    Ok(Report { options: options.clone(), figures: vec![figure] })
}

/// One identity provider, and somebody who is logged in there.
struct Peer {
    name: &'static str,
    pid: u32,
    /// Takes requests.
    endpoint: String,
    /// Of the provider, where it is reached by TLS.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    address: SocketAddr,
    cookies: String,
    asked: AtomicU64,
}

fn of_node(realm: &mut Realm) -> Result<Peer> {
    let endpoint = realm.url(AUTH, "/cdn-cgi/access/sso/saml/crm");
    let web = realm.web("node");
    let page = realm.log_in(&web, &endpoint, "ann", PASSWORD)?;
    let page = web.follow(page, None)?;
    ensure!(page.field("SAMLResponse").is_ok(), "{}: {}", page.url, page.body);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&realm.ca_file)?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Peer {
        name: "the node",
        pid: realm.node.process()?.pid(),
        endpoint,
        tls: Some((TlsConnector::from(Arc::new(config)), ServerName::try_from(AUTH)?)),
        address: (Ipv4Addr::LOCALHOST, realm.port).into(),
        cookies: cookies(web.jar(), AUTH)?,
        asked: AtomicU64::new(0),
    })
}

fn of_php(realm: &Realm, php: &SimpleSaml) -> Result<Peer> {
    let endpoint = format!("{}/simplesaml/saml2/idp/SSOService.php", php.origin);
    let web = realm.web("php");
    let page = php.log_in(&web, web.get(&ask(&endpoint, "_first", &now()?)?)?, "ann")?;
    ensure!(page.field("SAMLResponse").is_ok(), "{}: {}\n{}", page.url, page.body, php.log());
    let port = php.origin.rsplit(':').next().context("no port")?.parse()?;
    Ok(Peer {
        name: "SimpleSAMLphp",
        pid: php.pid(),
        endpoint,
        tls: None,
        address: (Ipv4Addr::LOCALHOST, port).into(),
        cookies: cookies(web.jar(), "localhost")?,
        asked: AtomicU64::new(0),
    })
}

impl Peer {
    /// Signs in for so long, and says how often.
    async fn ask(&self, length: Duration, clients: usize) -> Result<u64> {
        let (before, issued) = (self.asked.load(Ordering::Relaxed), now()?);
        let issued = issued.as_str();
        let until = Instant::now() + length;
        let clients = (0..clients).map(|_| async {
            let mut connection = None;
            while Instant::now() < until {
                self.sign_in(&mut connection, issued).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        futures_util::future::try_join_all(clients).await?;
        Ok(self.asked.load(Ordering::Relaxed) - before)
    }

    async fn sign_in(&self, kept: &mut Option<SendRequest<Empty<Bytes>>>, issued: &str) -> Result<()> {
        let id = format!("_{:032x}", self.asked.fetch_add(1, Ordering::Relaxed));
        let url: http::Uri = ask(&self.endpoint, &id, issued)?.parse()?;
        let authority = url.authority().context("no authority")?.as_str().to_owned();
        let request = http::Request::get(url.path_and_query().context("no path")?.as_str())
            .header(http::header::HOST, authority)
            .header(http::header::COOKIE, &self.cookies)
            .header(http::header::ACCEPT, "text/html")
            .body(Empty::new())?;
        let mut kept_open = kept.take();
        if let Some(connection) = &mut kept_open
            && connection.ready().await.is_err()
        {
            kept_open = None;
        }
        let mut connection = match kept_open {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        check(std::str::from_utf8(&body)?, &id).with_context(|| format!("{}: {status}", self.name))?;
        *kept = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        Ok(match &self.tls {
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
            None => {
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        })
    }
}

/// The page posts an answer to the request `id`, with two signatures.
fn check(page: &str, id: &str) -> Result<()> {
    let field = page.split_once("name=\"SAMLResponse\" value=\"").and_then(|(_, rest)| rest.split_once('"'));
    let Some((field, _)) = field else { bail!("no answer: {page}") };
    let answer = String::from_utf8(STANDARD.decode(field.replace("&#43;", "+").replace("&#x3D;", "="))?)?;
    let signed = answer.matches("http://www.w3.org/2001/04/xmldsig-more#rsa-sha256").count();
    ensure!(signed == 2 && answer.contains(&format!("InResponseTo=\"{id}\"")), "{answer}");
    Ok(())
}

/// The address that asks `endpoint` for a sign-in.
fn ask(endpoint: &str, id: &str, issued: &str) -> Result<String> {
    let message = format!(
        "<samlp:AuthnRequest xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\" \
         xmlns:saml=\"urn:oasis:names:tc:SAML:2.0:assertion\" ID=\"{id}\" Version=\"2.0\" IssueInstant=\"{issued}\" \
         Destination=\"{endpoint}\" AssertionConsumerServiceURL=\"{ACS}\"><saml:Issuer>{ENTITY}</saml:Issuer></samlp:AuthnRequest>"
    );
    redirect(endpoint, Kind::Request, &message, None, None).context("the request cannot be made")
}

/// As SAML has it.
fn now() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn service_provider() -> String {
    format!(
        "<EntityDescriptor xmlns=\"urn:oasis:names:tc:SAML:2.0:metadata\" entityID=\"{ENTITY}\"><SPSSODescriptor \
         protocolSupportEnumeration=\"urn:oasis:names:tc:SAML:2.0:protocol\"><AssertionConsumerService index=\"0\" \
         Binding=\"urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST\" Location=\"{ACS}\"/></SPSSODescriptor></EntityDescriptor>"
    )
}

/// What a browser of curl's sends to every page of `host`.
fn cookies(jar: &Path, host: &str) -> Result<String> {
    let text = std::fs::read_to_string(jar).with_context(|| jar.display().to_string())?;
    let pairs: Vec<String> = text
        .lines()
        .map(|line| line.trim_start_matches("#HttpOnly_").split('\t').collect::<Vec<_>>())
        .filter(|fields| fields.len() == 7 && fields[0] == host && fields[2] == "/")
        .map(|fields| format!("{}={}", fields[5], fields[6]))
        .collect();
    ensure!(!pairs.is_empty(), "no cookies of {host}");
    Ok(pairs.join("; "))
}

/// CPU time of a process and its children, those that have ended too.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), the third is the first after the name.
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 4, "{stat}");
    let own =
        Duration::from_millis(ticks.iter().sum::<u64>() * 1_000 / rustix::param::clock_ticks_per_second());
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children.split_whitespace().try_fold(own, |sum, child| Ok(sum + cpu_time(child.parse()?)?))
}
