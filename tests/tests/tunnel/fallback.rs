//! Tunnels where UDP does not get through: real processes, in namespaces, with UDP dropped.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use portcullis_tests::masque::Client;
use portcullis_tests::origin::Origin;
use portcullis_tests::portcullis::{Connector, START};
use portcullis_tests::process::wait_until;
use portcullis_tests::quic;
use portcullis_tests::tunnel_lab::{ANSWER, FOR_STRANGER, PORT, SILENCE, TunnelLab, device, wall};

const TARGET: &str = "https://access.example.com/.well-known/masque/udp/access.example.com/443/";

/// In milliseconds: how long UDP may take to be given up. The promise is 3 s, and a busy machine is late with it; QUIC itself would
/// take 15 s.
const DECIDED: u128 = 5000;

/// Drops the tunnel's datagrams, or no more. At the node without XDP nftables is the gate's, so there it is the office that
/// hears nothing.
fn drop_udp(lab: &TunnelLab, dataplane: &str, on: bool) {
    let (netns, side) = if dataplane == "xdp" { (&lab.edge, "dport") } else { (&lab.office, "sport") };
    let rules = format!(
        "table inet cut {{ chain c {{ type filter hook prerouting priority -400; udp {side} {PORT} drop; }}; }}"
    );
    netns.nft(if on { &rules } else { "" }).unwrap();
}

fn metric(lab: &TunnelLab, name: &str) -> u64 {
    let metrics = lab.node.metrics().unwrap();
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
}

/// The status of a request to the application, by a browser's place.
fn request(lab: &TunnelLab) -> String {
    let to = FOR_STRANGER[0];
    let output = lab
        .stranger
        .command("curl")
        .args(["--silent", "--insecure", "--max-time", "20", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}", "--resolve", &format!("app.example.com:{PORT}:{to}")])
        .arg("https://app.example.com/")
        .stdout(Stdio::piped())
        .output()
        .expect("curl is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How long each decision against UDP took.
fn decisions(connector: &Connector) -> Vec<u128> {
    let output = connector.process.output();
    let after = output.lines().filter(|line| line.contains("UDP brings nothing")).map(|line| {
        let number = line.split_once("after_ms=").expect("the time").1;
        let digits: String =
            number.chars().filter(|c| !c.is_ascii_punctuation()).take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    });
    after.collect()
}

#[test]
fn a_connector_falls_back_to_tcp_and_returns() {
    falls_back_and_returns("xdp");
}

#[test]
fn a_connector_falls_back_to_tcp_and_returns_without_xdp() {
    falls_back_and_returns("userspace");
}

fn falls_back_and_returns(dataplane: &'static str) {
    let lab = TunnelLab::start(dataplane, true).unwrap();
    let _origin = Origin::start(Some(&lab.office), "127.0.0.1:9".parse().unwrap()).unwrap();
    let disconnects = || lab.node.admin(&["events", "--json"]).unwrap().matches("\"disconnect\"").count();

    // Enrolled, connected and serving with not one datagram.
    drop_udp(&lab, dataplane, true);
    let token = lab.token("hq", 0).unwrap();
    let began = Instant::now();
    let connector = Connector::enrol(&lab.dir.join("hq"), Some(&lab.office), &token).unwrap();
    lab.connected("hq", 2).unwrap();
    println!("connected over TCP after {:?}", began.elapsed());
    assert!(metric(&lab, "portcullis_carried_streams") >= 2);
    assert_eq!(request(&lab), "200");
    let events = lab.node.admin(&["events", "--json"]).unwrap();
    assert!(events.contains("198.51.100.2") && !events.contains("100::"), "{events}");

    // UDP comes back: so does the connector, and no request notices.
    let before = disconnects();
    drop_udp(&lab, dataplane, false);
    let returned = |times: usize| {
        while connector.process.output().matches("UDP works").count() < times {
            assert_eq!(request(&lab), "200");
        }
    };
    returned(1);
    wait_until("the streams to end", START, || {
        assert_eq!(request(&lab), "200");
        Ok((metric(&lab, "portcullis_carried_streams") == 0).then_some(()))
    })
    .unwrap();

    // UDP goes under connections that live: they move, and requests wait for no longer than that takes.
    drop_udp(&lab, dataplane, true);
    let began = Instant::now();
    assert_eq!(request(&lab), "200");
    let waited = began.elapsed();
    println!("a request across the change took {waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    wait_until("both to move", START, || {
        assert_eq!(request(&lab), "200");
        Ok((metric(&lab, "portcullis_carried_streams") >= 2).then_some(()))
    })
    .unwrap();
    assert_eq!(disconnects(), before, "no connection was lost: {}", connector.process.output());
    let decisions = decisions(&connector);
    println!("UDP was given up after {decisions:?} ms");
    assert!(decisions.len() >= 2 && decisions.iter().all(|after| *after <= DECIDED), "{decisions:?}");
    drop_udp(&lab, dataplane, false);
    returned(2);
    let events = lab.node.admin(&["events", "--json"]).unwrap();
    assert!(!events.contains("broke HTTP/2"), "{events}");
}

/// A stranger learns by TCP what he learns by UDP: nothing.
#[test]
fn a_dark_port_is_as_dark_over_tcp() {
    let lab = TunnelLab::start("xdp", true).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let quic = quic::Client::new().unwrap();
    let node = SocketAddr::new(FOR_STRANGER[0].parse().unwrap(), PORT);
    let token = lab.token("hq", 0).unwrap();
    let keys = device(&token).unwrap();
    runtime.block_on(async {
        let connect = async |host: &str, alpn: &[&[u8]]| {
            Client::connect(Some(&lab.stranger), node, host, alpn).await.unwrap()
        };
        let (mut client, offers) = connect("access.example.com", &[b"h2"]).await;
        assert!(offers);
        let (_, offers) = connect("access.example.com", &[b"h2", b"http/1.1"]).await;
        assert!(!offers, "a browser would send its WebSockets there");
        let (_, offers) = connect("app.example.com", &[b"h2"]).await;
        assert!(!offers);

        let (status, stream) = client.open("connect-udp", TARGET).await.unwrap();
        assert_eq!(status, 200);
        let mut stream = stream.unwrap();
        let stranger = quic.first_packet(&[&[0x2a; 12], &wall().to_be_bytes()[..]].concat()).await.unwrap();
        stream.send(&stranger).await.unwrap();
        stream.send(&[0; 4]).await.unwrap();
        stream.send(&[0x40; 200]).await.unwrap();
        wait_until("all three to be dropped", START, || {
            Ok((metric(&lab, "portcullis_carried_dropped_total{cause=\"gate\"}") == 3).then_some(()))
        })
        .unwrap();
        assert_eq!(stream.receive(SILENCE).await, None);
        let knock = quic.first_packet(&keys.knock(wall(), wall()).to_bytes()).await.unwrap();
        stream.send(&knock).await.unwrap();
        assert!(stream.receive(ANSWER).await.is_some_and(|answer| !answer.is_empty()), "control: a knock");

        // Nowhere else, and nothing else.
        for (protocol, target, expected) in [
            ("connect-udp", TARGET.replace("/443/", "/53/"), 403),
            ("connect-udp", TARGET.replace("udp/access.example.com", "udp/198.51.100.2"), 403),
            ("connect-udp", TARGET.replace("udp/access.example.com", "udp/127.0.0.1"), 403),
            ("connect-udp", "https://access.example.com/".to_owned(), 404),
            ("connect-udp", TARGET.replace("https://access", "https://app"), 404),
            ("websocket", TARGET.to_owned(), 501),
        ] {
            let (status, stream) = client.open(protocol, &target).await.unwrap();
            assert_eq!(status, expected, "{protocol} {target}");
            assert!(stream.is_none());
        }

        // What no peer sends ends the stream, and the connection goes on.
        let before = metric(&lab, "portcullis_carried_streams");
        stream.send(&[0x40; 1501]).await.unwrap();
        while let Some(bytes) = stream.receive(ANSWER).await {
            if bytes.is_empty() {
                break;
            }
        }
        wait_until("the stream to be forgotten", START, || {
            Ok((metric(&lab, "portcullis_carried_streams") < before).then_some(()))
        })
        .unwrap();
        let (status, stream) = client.open("connect-udp", TARGET).await.unwrap();
        assert!(status == 200 && stream.is_some());
    });
}

/// One connection takes so many streams, one network too, and others find room.
#[test]
fn streams_are_bounded() {
    const OF_NETWORK: u64 = 1024;
    let lab = TunnelLab::start("xdp", true).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = SocketAddr::new(FOR_STRANGER[0].parse().unwrap(), PORT);
    runtime.block_on(async {
        let (mut held, mut refused) = (Vec::new(), 0);
        for _ in 0..9 {
            let (mut client, _) =
                Client::connect(Some(&lab.stranger), node, "access.example.com", &[b"h2"]).await.unwrap();
            for _ in 0..120 {
                match client.open("connect-udp", TARGET).await.unwrap() {
                    (_, Some(stream)) => held.push(stream),
                    (status, None) => {
                        assert_eq!(status, 429);
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 0);
        assert_eq!(metric(&lab, "portcullis_carried_streams"), OF_NETWORK);
        let office = SocketAddr::new(portcullis_tests::tunnel_lab::FOR_OFFICE[0].parse().unwrap(), PORT);
        let (mut client, _) =
            Client::connect(Some(&lab.office), office, "access.example.com", &[b"h2"]).await.unwrap();
        assert!(client.open("connect-udp", TARGET).await.unwrap().1.is_some(), "another network");
        drop(held);
        wait_until("the streams to end", START, || {
            Ok((metric(&lab, "portcullis_carried_streams") <= 1).then_some(()))
        })
        .unwrap();
    });
}
