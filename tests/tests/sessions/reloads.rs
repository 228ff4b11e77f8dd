//! The configuration changes under a session, again and again.

use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portcullis_tests::numbered::Numbered;
use portcullis_tests::private_lab::{Forward, Plan, PrivateLab, becomes};
use portcullis_tests::process::wait_until;
use portcullis_tests::stranger::Stranger;
use rustix::process::Signal;

use crate::SOON;

const RELOADS: usize = 20;
/// Every so many, the file is wrong.
const WRONG_EVERY: usize = 5;
const PLANTED: u16 = 5353;

/// What a session's datagrams carry comes back through the same session: a lost number was lost on either way.
#[test]
fn a_session_loses_nothing_through_reloads_and_a_stranger_gains_nothing() {
    let mut lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let forward = Forward::start(&ann, &["udp", "udpecho", "--listen", "127.0.0.1:0"]).unwrap();
    let socket = lab.client.enter(|| UdpSocket::bind(("127.0.0.1", 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send_to(b"the session's beginning", forward.address).unwrap();
    assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 23);
    becomes(&ann, "kernel").unwrap();

    let (client, edge) = (lab.client.clone(), lab.edge.clone());
    let [own, at] = ["192.0.2.2", "192.0.2.1"].map(|address| address.parse().unwrap());
    let stranger = Stranger { netns: &client, address: own, node: &edge, at, ports: &[PLANTED] };
    let relayed = lab.metric("portcullis_relay_bytes_total").unwrap();
    let every = Duration::from_millis(4);
    let (flow, sent) = Numbered::during(&socket, forward.address, &socket, every, || {
        stranger.sends(|_| (0..RELOADS).for_each(|nth| reload(&mut lab, nth))).unwrap().0
    })
    .unwrap();
    assert!(flow.is_steady() && sent.datagrams.is_steady(), "{} {sent:?}", flow.sent);
    assert!(flow.is_whole(), "{} of {} came back", flow.arrived.len(), flow.sent);
    assert_eq!((sent.arrived, flow.others), (0, 0), "{sent:?}");
    becomes(&ann, "kernel").unwrap();
    wait_until("the gate's count of it", SOON, || {
        Ok((lab.metric("portcullis_relay_bytes_total")? > relayed + 2 * 8 * flow.sent).then_some(()))
    })
    .unwrap();
    assert!(!forward.process.output().contains("is lost"), "{}", forward.process.output());

    lab.node.process().unwrap().kill().unwrap();
    lab.node.admin(&["gate", "detach"]).unwrap();
    // Control: it was the gate that kept him out.
    let arrives = |arrived: &std::sync::atomic::AtomicU64| {
        wait_until("the stranger to get in", SOON, || {
            Ok((arrived.load(Ordering::Relaxed) > 100).then_some(()))
        })
        .unwrap();
    };
    stranger.sends(arrives).unwrap();
}

/// Another port policy, another rule, the tunnel's port dark and not, and now and then a mistake; returns once it is in force, or
/// refused.
fn reload(lab: &mut PrivateLab, nth: usize) {
    let is_wrong = nth % WRONG_EVERY == 2;
    let done = |lab: &PrivateLab| {
        let events = lab.events("admin").unwrap();
        let said = events.iter().filter_map(|event| event["detail"].as_str());
        said.filter(|said| if is_wrong { said.starts_with("reload refused") } else { *said == "reload" })
            .count()
    };
    let before = done(lab);
    let file = lab.node.config();
    let text = std::fs::read_to_string(&file).unwrap();
    let (base, _) = text.split_once("\n# Changes.").unwrap_or((&text, ""));
    let change = format!(
        "\n# Changes.\n[tunnel]\ndark = {}\n[[policy]]\nname = \"extra-{nth}\"\naction = \"{}\"\n\
         include = [{{ group = \"group-{nth}\" }}]\n",
        nth.is_multiple_of(2),
        if is_wrong { "permit" } else { "allow" },
    );
    let new = lab.node.dir().join("node.toml.changed");
    std::fs::write(&new, format!("{base}{change}")).unwrap();
    std::fs::rename(new, file).unwrap();
    lab.node.process().unwrap().signal(Signal::HUP).unwrap();
    wait_until(&format!("reload {nth}"), SOON, || Ok((done(lab) > before).then_some(()))).unwrap();
}
