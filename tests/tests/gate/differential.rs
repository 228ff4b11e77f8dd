//! Generated packets: the loaded program and the host's copy of the verdict agree on each, in action and in
//! counter; and nothing that arrives inserts into a map.

use portcullis_common::layout::{EVENT_BYTES, Event, HostFlowKey, SAMPLE_AFTER_NS};
use portcullis_common::{Address, DropReason, PassReason, Verdict};
use portcullis_tests::gate::fuzz::generate::Generator;
use portcullis_tests::gate::fuzz::world::{self, LOCAL, REMOTE, flow, model};
use portcullis_tests::gate::fuzz::{self, Options};
use portcullis_tests::gate::kernel::{Kernel, monotonic_ns};
use portcullis_tests::gate::model::{Model, parses_alike_without};
use portcullis_tests::gate::packet::{self, Path, TCP, UDP};
use portcullis_tests::gate::quic;
use portcullis_tests::netns::Netns;

/// In every run of the tests. `cargo xtask fuzz gate` is the same without end.
const PACKETS: u64 = 1_000_000;

#[test]
fn kernel_and_host_agree_on_a_million_packets_and_none_writes_a_map() {
    // A mutant is given fewer.
    let packets = std::env::var("PORTCULLIS_FUZZ_PACKETS").map_or(PACKETS, |text| text.parse().unwrap());
    let report = fuzz::run(Options { packets, seed: fastrand::u64(..), lanes: 2 }, |_| {}).unwrap();
    assert_eq!(report.packets, packets);
    // A generator that missed a branch would let the two sides differ there unseen.
    let missed: Vec<_> = Verdict::all()
        .filter(|verdict| !report.seen.contains_key(verdict) && !needs_more_than_bytes(*verdict))
        .collect();
    assert!(missed.is_empty(), "no generated packet gave {missed:?}");
    println!("{report:#?}");
}

/// `TEST_RUN` takes no runts, and a cookie takes a handshake; hand-written packets have both.
fn needs_more_than_bytes(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Pass(PassReason::TcpCookie) | Verdict::Drop(DropReason::Runt))
}

/// A frame longer than one buffer reaches the program with its tail out of reach.
#[test]
fn a_frame_in_several_buffers_gets_the_verdict_of_its_headers() {
    let netns = Netns::new("frags").unwrap();
    let mut model = model();
    model.exhausted = false;
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model).unwrap();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                for port in [443, 444] {
                    let frame = path.udp(50_000, port, &quic::long(0, 1, &[5; 20], 8_900));
                    let host = model.verdict(&frame, monotonic_ns());
                    assert_eq!(host.is_pass(), port == 443);
                    assert_eq!(kernel.verdict(&frame).unwrap(), host);
                }
            }
        })
        .unwrap();
}

#[test]
fn only_what_the_host_itself_asks_is_noted() {
    let netns = Netns::new("egress").unwrap();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&Model { host_flows: Default::default(), ..model() }).unwrap();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                // What leaves has the host as its source.
                let out = Path::new(remote, local).reversed();
                for silent in [
                    out.udp(443, 50_000, b"x"),
                    out.udp(161, 50_000, b"x"),
                    out.echo_reply(9),
                    out.frame(TCP, &packet::tcp(50_000, 80, packet::SYN)),
                    out.unreachable(UDP, &packet::udp(40_000, 53, b"")),
                    out.frame(132, &[0; 20]),
                ] {
                    kernel.send(&silent).unwrap();
                    assert_eq!(kernel.host_flows().unwrap(), [], "{silent:02x?}");
                }
            }
            let mut expected = Vec::new();
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                kernel.send(&path.reversed().udp(40_000, 53, b"x")).unwrap();
                kernel.send(&path.reversed().udp(40_000, 53, &[0; 1_400])).unwrap();
                kernel.send(&path.reversed().echo_request(9)).unwrap();
                let flow = flow(&path, 40_000, 53);
                expected.push(HostFlowKey::udp(&flow));
                expected.push(HostFlowKey::echo(flow.local, flow.remote, 9));
            }
            let mut noted = kernel.host_flows().unwrap();
            let order = |key: &HostFlowKey| format!("{key:?}");
            noted.sort_by_key(order);
            expected.sort_by_key(order);
            assert_eq!(noted, expected);
            for (remote, local) in REMOTE.iter().zip(LOCAL) {
                let path = Path::new(remote, local);
                assert!(kernel.verdict(&path.udp(53, 40_000, b"x")).unwrap().is_pass());
                assert!(kernel.verdict(&path.echo_reply(9)).unwrap().is_pass());
                assert!(!kernel.verdict(&path.udp(53, 40_001, b"x")).unwrap().is_pass());
            }
        })
        .unwrap();
}

#[test]
fn sampled_events_say_what_was_dropped_and_every_lost_one_is_counted() {
    let netns = Netns::new("events").unwrap();
    netns
        .enter(|| {
            let mut kernel = Kernel::load().unwrap();
            kernel.adopt(&model()).unwrap();
            let frame = Path::new(REMOTE[0], LOCAL[0]).udp(50_000, 53, b"x");
            let dropped = Verdict::Drop(DropReason::UdpUnsolicited);
            // Each CPU samples for itself.
            pin_to_one_cpu();
            // One more than the ring takes, and then some.
            let events = EVENT_BYTES as usize / (8 + Event::SIZE) + 100;
            let mut late = 0;
            for _ in 0..events {
                kernel.sample_next(dropped).unwrap();
                let sampled = monotonic_ns();
                assert_eq!(kernel.verdict(&frame).unwrap(), dropped);
                // A packet of the same second makes no event of its own.
                assert_eq!(kernel.verdict(&frame).unwrap(), dropped);
                late += usize::from(monotonic_ns() - sampled >= SAMPLE_AFTER_NS);
            }
            let lost = usize::try_from(kernel.events_lost().unwrap()).unwrap();
            let mut ring = kernel.events().unwrap();
            let mut received = 0;
            while let Some(event) = ring.next() {
                let event = Event::from_bytes(&event).unwrap();
                assert_eq!(Verdict::from_index(event.verdict), Some(dropped));
                assert_eq!(event.source, Address::from(REMOTE[0].parse::<std::net::IpAddr>().unwrap()));
                assert_eq!(event.destination, Address::from(LOCAL[0].parse::<std::net::IpAddr>().unwrap()));
                let seen = (event.source_port, event.destination_port, event.protocol, event.version);
                assert_eq!(seen, (50_000, 53, UDP, 4));
                assert_eq!(event.length as usize, frame.len());
                received += 1;
            }
            assert!(lost > 0, "control: the ring was to overflow");
            assert!(
                (events..=events + late).contains(&(received + lost)),
                "{received} and {lost} of {events}"
            );
        })
        .unwrap();
}

/// On the host alone: no bytes make the parser panic, nor read what the length says is not there.
#[test]
fn any_bytes_parse_or_give_a_reason() {
    let seed = fastrand::u64(..);
    let mut model = world::model();
    let mut generator = Generator::new(fastrand::Rng::with_seed(seed), &model, [40_002; 2]);
    for _ in 0..20_000 {
        let frame = generator.frame();
        model.exhausted = frame.len().is_multiple_of(2);
        let verdict = model.verdict(&frame, 1);
        // Padding behind the packet changes nothing, unless the frame was too short for its packet, or gets too long
        // for any.
        if verdict.is_pass() && frame.len() < 60_000 {
            let padded = [&frame[..], &[0xa5; 64]].concat();
            assert_eq!(model.verdict(&padded, 1), verdict, "seed {seed}, {frame:02x?}");
        }
        // Headers end within the first 512 bytes, which is all that the program can read.
        assert!(parses_alike_without(&frame, 511), "seed {seed}, {frame:02x?}");
    }
}

fn pin_to_one_cpu() {
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &one).unwrap();
}
