//! A node and a connector as an operator runs them: two processes on loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_tests::ca::Ca;
use portcullis_tests::origin::Origin;
use portcullis_tests::portcullis::{Connector, Node, START};
use portcullis_tests::ports;
use portcullis_tests::process::wait_until;
use tempfile::TempDir;

/// Half of it is a node's or a connector's drain, on a busy machine.
const STOP: Duration = Duration::from_secs(45);

struct Lab {
    directory: TempDir,
    node: Node,
    origin: Origin,
    port: u16,
}

impl Lab {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new("tunnel tests").unwrap();
        ca.issue(&["access.example.com", "*.example.com"]).unwrap().write(directory.path(), "edge").unwrap();
        let metrics = ([127, 0, 0, 1], ports::free().unwrap()).into();
        let port = ports::free().unwrap();
        let origin = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let config = configuration(directory.path(), port, &[origin.address()]);
        let node = Node::start(&directory.path().join("node"), None, metrics, &config).unwrap();
        Self { directory, node, origin, port }
    }

    /// Where connectors find this node.
    fn token(&self, connector: &str) -> String {
        let node = format!("127.0.0.1:{}", self.port);
        let out = self.node.admin(&["connector", "create", connector, "--node", &node]).unwrap();
        out.split_whitespace().max_by_key(|word| word.len()).unwrap().to_owned()
    }

    /// Begins a request to the application, as a browser would; `output` is the status and the body.
    fn request(&self, path: &str) -> Child {
        let host = format!("app0.example.com:{}", self.port);
        Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "280",
                "--insecure",
                "--write-out",
                " %{http_code}",
            ])
            .args(["--resolve", &format!("{host}:127.0.0.1")])
            .arg(format!("https://{host}{path}"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is installed")
    }

    fn connections(&self) -> usize {
        let metrics = self.node.metrics().unwrap();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("portcullis_tunnel_connections") && line.contains("\"hq\""));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
    }

    fn connected(&self, count: usize) {
        wait_until(
            &format!("{count} connections"),
            START,
            || Ok((self.connections() == count).then_some(())),
        )
        .unwrap();
    }

    fn events(&self) -> String {
        self.node.admin(&["events", "--json"]).unwrap()
    }
}

fn configuration(directory: &Path, port: u16, origins: &[SocketAddr]) -> String {
    let mut config = format!(
        r#"
domain = "access.example.com"
listen = "127.0.0.1:{port}"
[[node.certificate]]
cert = {:?}
key = {:?}
[gate]
ungated = true
[[identity_provider]]
name = "local"
type = "local"
[[policy]]
name = "all"
action = "bypass"
include = [{{ everyone = true }}]
"#,
        directory.join("edge.pem"),
        directory.join("edge.key"),
    );
    for (index, origin) in origins.iter().enumerate() {
        config += &format!(
            r#"
[[application]]
name = "app{index}"
url = "https://app{index}.example.com"
origin = "http://{origin}"
connector = "hq"
policies = ["all"]
"#
        );
    }
    config
}

/// Sockets of a process: local and remote address and state of each, as /proc/net prints them.
fn sockets(pid: u32, table: &str) -> Vec<(String, String, String)> {
    let inodes: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    assert!(!inodes.is_empty(), "the process has no sockets at all");
    fs::read_to_string(format!("/proc/{pid}/net/{table}"))
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| inodes.contains(fields[9]))
        .map(|fields| (fields[1].to_owned(), fields[2].to_owned(), fields[3].to_owned()))
        .collect()
}

#[test]
fn a_connector_enrols_listens_on_nothing_and_comes_back() {
    const ESTABLISHED: &str = "01";
    let mut lab = Lab::start();
    let directory = lab.directory.path().join("connector");
    let token = lab.token("hq");
    let mut connector = Connector::enrol(&directory, None, &token).unwrap();
    lab.connected(2);

    // It listens on nothing: no TCP socket, and every UDP socket hears one peer only. On a busy machine UDP may have been
    // given up for a moment.
    let pid = connector.process.pid();
    let of = |tables: [&str; 2]| tables.map(|table| sockets(pid, table)).concat();
    wait_until("two UDP sockets and nothing else", START, || {
        let udp = of(["udp", "udp6"]);
        let hear_one_peer = udp.iter().all(|(_, _, state)| state == ESTABLISHED);
        anyhow::ensure!(udp.len() == 2 && hear_one_peer && of(["tcp", "tcp6"]).is_empty(), "{udp:?}");
        Ok(Some(()))
    })
    .unwrap();

    // Its key is its own, and its token nowhere to be read.
    let state = directory.join("state/connector.json");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o600);
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    for text in [command, connector.process.output(), fs::read_to_string(&state).unwrap(), lab.events()] {
        assert!(!text.contains(&token), "{text}");
    }

    // It comes back after a killed node, and after its own restart without a token.
    lab.node.process().unwrap().kill().unwrap();
    lab.node.restart().unwrap();
    lab.connected(2);
    assert!(connector.process.terminate(STOP).unwrap().success());
    lab.connected(0);
    let mut connector = Connector::start(&directory, None).unwrap();
    lab.connected(2);
    assert!(connector.process.terminate(STOP).unwrap().success());

    // The token is spent.
    let mut thief = Connector::enrol(&lab.directory.path().join("thief"), None, &token).unwrap();
    assert!(!thief.process.wait(START).unwrap().success());
    assert!(thief.process.output().contains("already used"), "{}", thief.process.output());
    wait_until("the refusal in the log", START, || Ok(lab.events().contains("bad_enrolment").then_some(())))
        .unwrap();
}

#[test]
fn a_reload_keeps_the_tunnel_and_a_revocation_cuts_it() {
    let mut lab = Lab::start();
    let directory = lab.directory.path().join("connector");
    let _connector = Connector::enrol(&directory, None, &lab.token("hq")).unwrap();
    lab.connected(2);
    let connects = || lab.events().matches("\"connect\"").count();
    let before = connects();

    let origins = [lab.origin.address(), ([127, 0, 0, 1], 9).into()];
    lab.node.write_config(&configuration(lab.directory.path(), lab.port, &origins)).unwrap();
    lab.node.process().unwrap().signal(rustix::process::Signal::HUP).unwrap();
    wait_until("the reload to be in the log", START, || Ok(lab.events().contains("reload").then_some(())))
        .unwrap();
    assert_eq!(lab.connections(), 2);
    assert_eq!(lab.events().matches("\"connect\"").count(), before);

    lab.node.admin(&["connector", "revoke", "hq"]).unwrap();
    lab.connected(0);
    wait_until("the connector to be refused", START, || {
        Ok(lab.events().contains("unknown_connector").then_some(()))
    })
    .unwrap();
    assert_eq!(lab.connections(), 0);
}

fn answer(request: Child) -> String {
    String::from_utf8_lossy(&request.wait_with_output().unwrap().stdout).into_owned()
}

/// A request that is under way when either end is told to stop gets its answer, and connections that rest in the
/// node's pool hold nobody up.
#[test]
fn both_ends_drain() {
    let mut lab = Lab::start();
    let directory = lab.directory.path().join("connector");
    let mut connector = Connector::enrol(&directory, None, &lab.token("hq")).unwrap();
    lab.connected(2);
    let under_way = |lab: &Lab| {
        assert!(answer(lab.request("/before")).ends_with(" 200"));
        let seen = lab.origin.requests().len();
        let slow = lab.request("/slow/3000");
        wait_until("the request to arrive", START, || Ok((lab.origin.requests().len() > seen).then_some(())))
            .unwrap();
        slow
    };

    let slow = under_way(&lab);
    let began = Instant::now();
    assert!(connector.process.terminate(STOP).unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(answer(slow).ends_with(" 200"));
    lab.connected(0);
    let gone = answer(lab.request("/gone"));
    assert!(gone.ends_with(" 503"), "{gone}");

    let _connector = Connector::start(&directory, None).unwrap();
    lab.connected(2);
    let slow = under_way(&lab);
    let began = Instant::now();
    let node = lab.node.process().unwrap();
    assert!(node.terminate(STOP).unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let output = node.output();
    let slow = answer(slow);
    assert!(slow.ends_with(" 200"), "{slow}\n{output}");
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A large body, and one that nobody reads any further, leave both processes the size they have.
#[test]
fn heavy_memory_stays_flat() {
    const SIZE: u64 = 1 << 30;
    const GROWTH: usize = 48 << 20;
    let mut lab = Lab::start();
    let directory = lab.directory.path().join("connector");
    let connector = Connector::enrol(&directory, None, &lab.token("hq")).unwrap();
    lab.connected(2);
    assert!(answer(lab.request("/before")).ends_with(" 200"));
    let pids = [lab.node.process().unwrap().pid(), connector.process.pid()];
    let before = pids.map(resident);

    let mut stalled = lab.request(&format!("/download/{SIZE}"));
    let mut reading = lab.request(&format!("/download/{SIZE}"));
    let reader = std::thread::spawn({
        let mut body = reading.stdout.take().unwrap();
        move || std::io::copy(&mut body, &mut std::io::sink()).unwrap()
    });
    let mut most = [0; 2];
    while !reader.is_finished() {
        for (most, (pid, before)) in most.iter_mut().zip(pids.into_iter().zip(before)) {
            *most = (*most).max(resident(pid).saturating_sub(before));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(reading.wait().unwrap().success());
    assert_eq!(reader.join().unwrap(), SIZE + " 200".len() as u64);
    assert!(stalled.try_wait().unwrap().is_none());
    stalled.kill().unwrap();
    stalled.wait().unwrap();
    assert!(most.iter().all(|most| *most < GROWTH), "node and connector grew by {most:?} bytes");
}
