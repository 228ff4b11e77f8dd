//! The relay's maps, filled to their limits while a session runs and a stranger sends: new grants are refused with a reason, and
//! nothing else changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use portcullis::gate::{Detour, FlowGrant, Relay, RelayError, SessionRef};
use portcullis_common::layout::{FLOWS, FlowEntry, FlowKey4, FlowKey6, HOPS, SESSIONS};
use portcullis_common::{Address, Family, Flow};
use portcullis_tests::bench::gate_map;
use portcullis_tests::netns::run;
use portcullis_tests::numbered::Numbered;
use portcullis_tests::stranger::Stranger;

use crate::closed::fill_maps;
use crate::lab::{ANSWER, settle};
use crate::relay_lab::{Ends, PORT, RelayLab, Shape, install, peer};

const HOUR: Duration = Duration::from_secs(3_600);
const PLANTED: u16 = 5353;
const BPF_NOEXIST: u64 = 1;

#[test]
fn full_maps_refuse_new_grants_and_disturb_nothing() {
    let lab = RelayLab::new(Shape::TwoInterfaces);
    let [v4, v6] = lab.families();
    // Where sessions arrive, and a port that is not served.
    let ports = [PORT, PLANTED];
    let stranger = Stranger {
        netns: &lab.client,
        address: v4.client,
        node: &lab.node,
        at: v4.node_client,
        ports: &ports,
    };
    let arrives = || stranger.sends(|arrived| settle(|| arrived.load(Ordering::Relaxed) > 100)).unwrap();
    // Control: without a gate it arrives.
    arrives();

    let (gate, relay) = lab.open();
    let [pair, other] = [&v4, &v6].map(|ends| {
        let pair = lab.pair(ends);
        lab.connect(&relay, open(&relay).unwrap(), ends, &pair);
        assert_eq!(pair.passes_both(ends, b"x", ANSWER), [true; 2]);
        pair
    });
    let to = SocketAddr::new(v4.node_client, PORT);
    let every = Duration::from_micros(500);
    let (flow, sent) = Numbered::during(&pair.client, to, &pair.connector, every, || {
        let fill = |_: &_| {
            fill_hops(&lab, &relay, &v4);
            fill_flows(&lab, &relay, &v4, FlowKey4::new);
            fill_flows(&lab, &relay, &v6, FlowKey6::new);
            fill_sessions(&relay);
            fill_maps(&gate, &lab.node, v4.client);
        };
        stranger.sends(fill).unwrap().0
    })
    .unwrap();
    assert!(flow.is_steady() && sent.datagrams.is_steady(), "{} {sent:?}", flow.sent);
    assert!(flow.is_whole(), "{} of {} arrived", flow.arrived.len(), flow.sent);
    assert_eq!(other.passes_both(&v6, b"x", ANSWER), [true; 2]);
    assert_eq!((sent.arrived, flow.others), (0, 0), "at the node and at the session's end, of {sent:?}");
    drop((gate, relay));
    lab.node.enter(|| portcullis::gate::detach(&lab.pin.path)).unwrap().unwrap();
    // Control: it was the gate that kept it out.
    arrives();
}

fn open(relay: &Relay) -> Result<SessionRef, RelayError> {
    relay.open_session(relay.identity("local:alice").unwrap(), HOUR)
}

/// A session to each of so many neighbours that there is no number left for the last one.
fn fill_hops(lab: &RelayLab, relay: &Relay, ends: &Ends) {
    let neighbour = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a09_0100 + n));
    lab.node.address("eth1", "10.9.0.1/16").unwrap();
    let mut batch = tempfile::NamedTempFile::new().unwrap();
    for n in 0..HOPS {
        let line =
            format!("neigh replace {} lladdr 02:00:00:00:00:09 dev eth1 nud permanent\n", neighbour(n));
        std::io::Write::write_all(&mut batch, line.as_bytes()).unwrap();
    }
    run(lab.node.command("ip").arg("-batch").arg(batch.path())).unwrap();
    let grant = |n: u32| FlowGrant {
        session: open(relay).unwrap(),
        client: peer(ends.node_client, SocketAddr::new(ends.client, 20_000 + u16::try_from(n).unwrap())),
        connector: peer("10.9.0.1".parse().unwrap(), SocketAddr::new(neighbour(n), 4_000)),
    };
    // Each of the two sessions that run has two.
    for n in 0..HOPS - 4 {
        relay.install(&grant(n)).unwrap();
    }
    for n in [HOPS - 4, HOPS - 3] {
        let refused = relay.install(&grant(n)).unwrap_err();
        assert!(matches!(refused, RelayError::Detour(Detour::Hops)), "{refused}");
        assert!(refused.to_string().contains("too many next hops"), "{refused}");
    }
    // Who goes to a neighbour that is known is let in.
    let pair = lab.pair(ends);
    lab.connect(relay, open(relay).unwrap(), ends, &pair);
    assert_eq!(pair.passes_both(ends, b"x", ANSWER), [true; 2]);
}

/// Flows of a session that never was, until there is no place.
fn fill_flows<K: Pod>(lab: &RelayLab, relay: &Relay, ends: &Ends, key: impl Fn(&Flow) -> K) {
    let (name, family) = if ends.client.is_ipv4() { ("FLOW4", Family::V4) } else { ("FLOW6", Family::V6) };
    let mut map: HashMap<MapData, K, FlowEntry> = gate_map(&lab.node, name).unwrap();
    let entry = FlowEntry { generation: u32::MAX, ..FlowEntry::default() };
    let nth = |n: u32| {
        key(&Flow {
            family,
            local: Address::from(ends.node_client),
            remote: match family {
                Family::V4 => Address::v4((0x0b00_0000 + n).to_be_bytes()),
                Family::V6 => Address::v6((0x2001_0db8_u128 << 96 | u128::from(n)).to_be_bytes()),
            },
            local_port: PORT,
            remote_port: 4_000,
        })
    };
    let filled = (0..=FLOWS).take_while(|n| map.insert(nth(*n), entry, BPF_NOEXIST).is_ok()).count();
    let filled = u32::try_from(filled).unwrap();
    assert!(filled > FLOWS / 2 && filled <= FLOWS, "{filled}");

    let pair = lab.pair(ends);
    lab.greet(ends);
    let grant = pair.grant(open(relay).unwrap(), ends);
    let refused = install(relay, &grant).unwrap_err();
    assert!(matches!(refused, RelayError::Full), "{refused}");
    assert_eq!(refused.to_string(), "there is no room for more sessions or flows");
    // With room for one of its two flows, neither stays.
    map.remove(&nth(0)).unwrap();
    assert!(matches!(install(relay, &grant), Err(RelayError::Full)));
    map.insert(nth(0), entry, BPF_NOEXIST).unwrap();
    assert!(map.insert(nth(filled), entry, BPF_NOEXIST).is_err());
    assert_eq!(pair.passes_both(ends, b"x", Duration::from_millis(100)), [false; 2]);
    // The refusal was for want of room alone.
    for n in [0, 1] {
        map.remove(&nth(n)).unwrap();
    }
    install(relay, &grant).unwrap();
    assert_eq!(pair.passes_both(ends, b"x", ANSWER), [true; 2]);
}

fn fill_sessions(relay: &Relay) {
    let before = relay.sessions().len();
    let mut refused = None;
    let opened = (0..=SESSIONS).take_while(|_| open(relay).map_err(|error| refused = Some(error)).is_ok());
    assert_eq!(before + opened.count(), SESSIONS as usize);
    let refused = refused.unwrap();
    assert!(matches!(refused, RelayError::Full), "{refused}");
}
