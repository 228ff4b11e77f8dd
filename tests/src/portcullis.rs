//! The binary under test: where it is, and a node or connector run from it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;
use crate::process::Process;

/// How long a start may take on a busy machine.
pub const START: Duration = Duration::from_secs(30);

/// The `portcullis` binary. `cargo xtask` builds it and says where it is by `PORTCULLIS_BIN`; without that it is
/// built here, once a process, so that a bare `cargo test` never runs a stale one.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| match std::env::var_os("PORTCULLIS_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => build().map_err(|error| format!("{error:#}")),
    });
    match found {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .with_context(|| format!("{} is not below a target folder", exe.display()))?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--package", "portcullis", "--bin", "portcullis", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .status()?;
    ensure!(status.success(), "building portcullis failed");
    Ok(target.join("debug/portcullis"))
}

/// Which namespace a command runs in; `None` is the machine's own.
pub fn command_in(netns: Option<&Netns>, program: impl AsRef<OsStr>) -> Command {
    match netns {
        Some(netns) => netns.command(program),
        None => Command::new(program),
    }
}

/// A node, running or stopped, with its folder: `node.toml`, `state/`, `admin.sock`, `node.log`.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    netns: Option<Netns>,
    metrics: SocketAddr,
    process: Option<Process>,
}

impl Node {
    /// Writes `config` to `dir/node.toml` and does not start anything. `config` says everything but the `state`,
    /// `admin_socket` and `metrics` keys of `[node]`, which are put in front: it must begin with the rest of `[node]`.
    pub fn new(dir: &Path, netns: Option<&Netns>, metrics: SocketAddr, config: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let node = Self { dir: dir.to_owned(), netns: netns.cloned(), metrics, process: None };
        node.write_config(config)?;
        Ok(node)
    }

    /// As [`Node::new`], started and ready.
    pub fn start(dir: &Path, netns: Option<&Netns>, metrics: SocketAddr, config: &str) -> Result<Self> {
        let mut node = Self::new(dir, netns, metrics, config)?;
        node.restart()?;
        Ok(node)
    }

    /// Replaces the configuration file; a running node picks it up on SIGHUP or by itself.
    pub fn write_config(&self, config: &str) -> Result<()> {
        let head = format!(
            "[node]\nstate = {:?}\nadmin_socket = {:?}\nmetrics = \"{}\"\n",
            self.dir.join("state"),
            self.socket(),
            self.metrics
        );
        // Renamed into place: a node that watches the file never reads half of it.
        let new = self.dir.join("node.toml.new");
        fs::write(&new, head + config)?;
        Ok(fs::rename(new, self.config())?)
    }

    /// Starts the process (ending a running one first) and waits until `/readyz` says 200.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = command_in(self.netns.as_ref(), binary()?);
        command.args(["node", "--config"]).arg(self.config());
        let mut process = Process::spawn_in(&self.dir, "node", command)?;
        let (netns, metrics) = (self.netns.clone(), self.metrics);
        process.wait_until("be ready", START, |_| {
            let (status, body) = http_get(netns.as_ref(), metrics, "/readyz")?;
            ensure!(status == 200, "/readyz says {status}: {body}");
            Ok(Some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// The running process; an error if the node was not started.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the node is not running")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let (status, body) = http_get(self.netns.as_ref(), self.metrics, "/metrics")?;
        ensure!(status == 200, "/metrics says {status}");
        Ok(body)
    }

    /// Runs `portcullis admin --config node.toml <args>`; its standard output, or an error with all it printed.
    pub fn admin<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        self.admin_with_stdin(args, "")
    }

    /// As [`Node::admin`], with text on standard input.
    pub fn admin_with_stdin<S: AsRef<OsStr>>(&self, args: &[S], input: &str) -> Result<String> {
        let mut command = command_in(self.netns.as_ref(), binary()?);
        command.args(["admin", "--config"]).arg(self.config()).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that needs no input may be gone already.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("admin {} failed ({}):\n{stdout}{stderr}", args.join(" "), output.status);
        }
        Ok(stdout)
    }

    /// Makes a local user.
    pub fn add_user(&self, name: &str, email: &str, password: &str, groups: &[&str]) -> Result<()> {
        let mut args = vec!["user", "add", name, "--email", email, "--password-stdin"];
        for group in groups {
            args.extend(["--group", group]);
        }
        self.admin_with_stdin(&args, &format!("{password}\n")).map(drop)
    }

    /// Makes a connector that finds its node at `address` (`host:port`); its enrolment token.
    pub fn create_connector(&self, name: &str, address: &str) -> Result<String> {
        let out = self.admin(&["connector", "create", name, "--node", address])?;
        let token =
            out.split_whitespace().max_by_key(|word| word.len()).context("no enrolment token printed")?;
        Ok(token.to_owned())
    }
}

/// A running connector with its state in `dir`.
#[derive(Debug)]
pub struct Connector {
    pub process: Process,
}

impl Connector {
    /// Starts a connector that enrols with `token`, given on standard input, and keeps its key in `dir/state`.
    pub fn enrol(dir: &Path, netns: Option<&Netns>, token: &str) -> Result<Self> {
        Self::spawn(dir, netns, Some(token))
    }

    /// Starts a connector that has enrolled before.
    pub fn start(dir: &Path, netns: Option<&Netns>) -> Result<Self> {
        Self::spawn(dir, netns, None)
    }

    fn spawn(dir: &Path, netns: Option<&Netns>, token: Option<&str>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut command = command_in(netns, binary()?);
        command.args(["connector", "--state"]).arg(dir.join("state"));
        let process = match token {
            Some(token) => {
                command.arg("--token-stdin");
                Process::spawn_with_stdin("connector", command, format!("{token}\n").as_bytes())?
            }
            None => Process::spawn("connector", command)?,
        };
        Ok(Self { process })
    }
}

/// One plain HTTP/1.0 GET from inside a namespace: status and body. For the metrics listener; pages of the edge are
/// fetched by a real client.
pub fn http_get(netns: Option<&Netns>, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let mut stream = match netns {
        Some(netns) => netns.enter(connect)??,
        None => connect()?,
    };
    stream.set_read_timeout(Some(START))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}
