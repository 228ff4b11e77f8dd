//! Fail closed: a stranger sends without pause through everything that happens to a gate's daemon, and nothing
//! arrives that was not let in.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis::gate::{Gate, PeerAddress};
use portcullis_common::layout::{HOST_FLOWS, TUNNELS, VERSION};
use portcullis_tests::meanwhile::{Pace, StopOnDrop};
use portcullis_tests::netns::Netns;

use crate::lab::{EDGE, Echo, Lab, STRANGER, settle};
use crate::lifecycle::Holder;

const PLANTED: u16 = 5353;
const KILLS: usize = 100;
/// Every so many kills, the next holder finds maps of another layout version, or none.
const UPGRADE_EVERY: usize = 5;

/// Sends datagrams and openings of connections to a port, both families, until told to stop.
fn send(lab: &Lab, port: u16, stop: &AtomicBool, sent: &AtomicU64) {
    lab.stranger
        .enter(|| {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            let ends = EDGE.map(|address| SocketAddr::new(address.parse().unwrap(), port));
            for turn in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                for to in ["::ffff:192.0.2.1", EDGE[1]] {
                    // Unreachable while the other end has no answer to ARP: it is tried again.
                    if socket.send_to(b"?", (to, port)).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if turn % 16 == 0 {
                    let to = &ends[usize::try_from(turn / 16 % 2).unwrap()];
                    let _ = TcpStream::connect_timeout(to, Duration::from_millis(3));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        })
        .unwrap();
}

/// Runs `body` under the stranger's flood of a port; how many packets were sent.
pub fn flooded(lab: &Lab, port: u16, body: impl FnOnce()) -> Pace {
    let (stop, sent, began) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| send(lab, port, &stop, &sent));
        let _stop = StopOnDrop(&stop);
        body();
    });
    Pace { sent: sent.into_inner(), lasted: began.elapsed() }
}

#[test]
fn nothing_arrives_through_kills_upgrades_other_settings_and_full_maps() {
    let lab = Lab::new();
    let planted = Echo::on(&lab.edge, PLANTED);
    let arrived = || planted.received.swap(0, Ordering::Relaxed);
    let arrives = || flooded(&lab, PLANTED, || settle(|| planted.received.load(Ordering::Relaxed) > 100));
    // Control: without a gate it arrives.
    arrives();

    let mut holder = Holder::start(&lab, &[]);
    await_quiet(&lab, &planted);
    arrived();
    let maps = lab.pin.path.join(format!("maps_{VERSION}"));
    let other = lab.pin.path.join("maps_1");
    let sent = flooded(&lab, PLANTED, || {
        for kill in 0..KILLS {
            holder.kill();
            match (kill % UPGRADE_EVERY == 0, kill % 2 == 0) {
                (true, true) => std::fs::rename(&maps, &other).unwrap(),
                (true, false) => std::fs::remove_dir_all(&maps).unwrap(),
                (false, _) => {}
            }
            let port = (9_000 + kill).to_string();
            let rule = format!("198.51.100.{kill}:22");
            let settings: &[&str] = if kill % 3 == 0 { &["--udp", &port, "--admin", &rule] } else { &[] };
            holder = Holder::start(&lab, settings);
            assert!(!other.exists(), "maps of another version are let go");
        }
        assert_eq!(planted.received.load(Ordering::Relaxed), 0, "kills, upgrades and other settings");
        let gate = lab.open(&lab.config()).unwrap();
        fill_maps(&gate, &lab.edge, STRANGER[0].parse().unwrap());
    });
    assert!(sent.is_steady(), "{sent:?}");
    assert_eq!(arrived(), 0, "of {sent:?}");
    drop(holder);
    lab.detach();
    // Control: it is the gate that keeps it out.
    arrives();
}

/// Waits until the planted server has taken all that was under way when the gate came up.
pub fn await_quiet(lab: &Lab, planted: &Echo) {
    // Of an idle socket both queues are empty; a listener's second one is its backlog.
    let waiting = || {
        let shown = lab.edge.run(&format!("ss -Htuna sport = :{PLANTED}")).unwrap();
        shown.lines().any(|line| line.split_whitespace().nth(2) != Some("0"))
    };
    settle(|| !waiting());
    planted.counts_all();
}

/// Every map that grows is filled: peers until there is no place, and more flows of the host's own, all to one address, than are kept.
pub fn fill_maps(gate: &Gate, host: &Netns, to: IpAddr) {
    let control = gate.control();
    let remote = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 4_000));
    let local: SocketAddr = "192.0.2.1:443".parse().unwrap();
    let hour = Duration::from_secs(3600);
    let full = (0..TUNNELS + 10).any(|n| {
        let peer = PeerAddress { local, remote: remote(n) };
        control.authenticate(peer, hour).is_err()
    });
    assert!(full, "control: the peers fill their map");
    host.enter(|| {
        let sockets = [0; 3].map(|_| UdpSocket::bind("0.0.0.0:0").unwrap());
        for port in 1..=u16::try_from(HOST_FLOWS / 2).unwrap() {
            for socket in &sockets {
                // The other kernel answers some by "port unreachable", which the next call reports.
                let _ = socket.send_to(b"x", (to, port));
            }
        }
    })
    .unwrap();
}
