//! What is given, and what two real ends hold of it for each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use quinn::{Connection, Endpoint, SendStream};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::super::transport::{MAX_STREAMS, client_config, connector_config};
use super::*;
use crate::tunnel::identity::{SERVER_NAME, TunnelKey};

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Longer than anything takes here that comes at all.
const STALLED: Duration = Duration::from_millis(500);

/// All that a connection may make an end hold.
fn most(room: &Room) -> u64 {
    let datagrams =
        room.datagrams().map_or(0, |buffer| 2 * buffer + room.held() + room.partial() * MAX_PAYLOAD);
    u64::from(room.receive_window()) + room.send_window() + datagrams as u64
}

#[test]
fn a_first_session_is_as_fast_as_ever() {
    let first = Rooms::new(CONNECTOR).take("ann", Use::Streams);
    assert_eq!(u64::from(first.stream_window()), 4 * MIB);
    assert_eq!((u64::from(first.receive_window()), first.send_window()), (24 * MIB, 8 * MIB));
    assert_eq!(first.datagrams(), None);
    let first = Rooms::new(CLIENT).take("", Use::Either);
    assert_eq!(u64::from(first.stream_window()), 4 * MIB);
    assert_eq!((first.datagrams(), first.held() as u64, first.partial()), (Some(2 << 20), 4 * MIB, 16));
}

#[test]
fn however_many_sessions_somebody_has_there_is_a_bound_and_room_for_others() {
    let rooms = Rooms::new(CONNECTOR);
    let of_eve: Vec<Room> = (0..4096).map(|_| rooms.take("eve", Use::Streams)).collect();
    let held: u64 = of_eve.iter().map(most).sum();
    assert!(held <= 512 * MIB + 4096 * 256 * KIB, "{held}");
    assert!(held > 1024 * MIB, "the control");
    let last = of_eve.last().unwrap();
    assert_eq!((last.receive_window(), last.stream_window()), (192 << 10, 96 << 10));
    // An eighth of all is a holder's bound; she has three times as much, and has taken no more of it.
    let of_ann = rooms.take("ann", Use::Streams);
    assert_eq!((of_ann.stream_window().into(), of_ann.send_window()), (2 * MIB, 4 * MIB));
    drop((of_eve, of_ann));
    let taken = lock(&rooms.taken);
    assert!(taken.all == 0 && taken.of.is_empty());
}

#[test]
fn hundreds_of_persons_have_windows_that_are_worth_something_and_so_does_the_thousandth() {
    let rooms = Rooms::new(CONNECTOR);
    let all: Vec<Room> = (1..=2000).map(|n| rooms.take(&n.to_string(), Use::Streams)).collect();
    let windows = |nth: usize| {
        let room = &all[nth - 1];
        [room.stream_window().into(), room.receive_window().into(), room.send_window()]
            .map(|bytes: u64| bytes / KIB)
    };
    assert_eq!([1, 16].map(windows), [[4096, 24_576, 8192]; 2]);
    assert_eq!([17, 48].map(windows), [[2048, 12_288, 4096]; 2]);
    assert_eq!([49, 100, 112].map(windows), [[1024, 6144, 2048]; 3]);
    assert_eq!([113, 240].map(windows), [[512, 3072, 1024]; 2]);
    assert_eq!([241, 496].map(windows), [[256, 1536, 512]; 2]);
    assert_eq!([497, 1000, 1008].map(windows), [[256, 768, 256]; 3]);
    assert_eq!([1009, 2000].map(windows), [[192, 384, 128]; 2]);
}

#[test]
fn everybody_together_has_a_bound() {
    let rooms = Rooms::new(CONNECTOR);
    let all: Vec<Room> = (0..16_384)
        .map(|n| {
            rooms.take(&format!("person {}", n % 64), if n % 2 == 0 { Use::Streams } else { Use::Datagrams })
        })
        .collect();
    let held: u64 = all.iter().map(most).sum();
    assert!(held <= 4096 * MIB + 16_384 * 256 * KIB, "{held}");
    drop(all);
    let rooms = Rooms::new(CLIENT);
    let all: Vec<Room> = (0..1024).map(|_| rooms.take("", Use::Either)).collect();
    let held: u64 = all.iter().map(most).sum();
    assert!(held <= 1024 * MIB + 1024 * 512 * KIB, "{held}");
}

proptest! {
    #[test]
    fn nothing_is_given_twice_and_all_comes_back(
        steps in prop::collection::vec((0_u8..2, 0_u8..3, any::<prop::sample::Index>(), prop::bool::weighted(0.25)), 1..200)
    ) {
        let rooms = Rooms::new(Bounds { holder: 8 * MIB, all: 12 * MIB });
        let mut rooms_of = Vec::new();
        for (who, carries, which, is_given_back) in steps {
            if is_given_back && !rooms_of.is_empty() {
                rooms_of.swap_remove(which.index(rooms_of.len()));
            } else {
                let carries = [Use::Streams, Use::Datagrams, Use::Either][usize::from(carries)];
                rooms_of.push(rooms.take(&who.to_string(), carries));
            }
            prop_assert!(rooms_of.iter().all(|room| most(room) <= room.bytes), "{:?}", rooms_of);
            let least: u64 = rooms_of.iter().map(|room| room.carries.least()).sum();
            let sum: u64 = rooms_of.iter().map(|room| room.bytes).sum();
            prop_assert!(sum <= 12 * MIB + least);
            let of_holders = (0..2).map(|who: u8| {
                let of_holder = rooms_of.iter().filter(|room: &&Room| room.holder == who.to_string());
                of_holder.map(|room| room.bytes).sum::<u64>().min(8 * MIB)
            });
            prop_assert_eq!(lock(&rooms.taken).all, of_holders.sum::<u64>());
        }
        rooms_of.clear();
        let taken = lock(&rooms.taken);
        prop_assert!(taken.all == 0 && taken.of.is_empty());
    }
}

/// Carries datagrams to one server, and lets nothing pass towards it any more when it is told to.
async fn wire(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let near = UdpSocket::bind(ANY).await.unwrap();
    let far = UdpSocket::bind(ANY).await.unwrap();
    far.connect(to).await.unwrap();
    let (address, is_cut) = (near.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
    let cut = Arc::clone(&is_cut);
    tokio::spawn(async move {
        let (mut client, mut up, mut down) = (None, vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut up) => {
                    client = Some(from);
                    if !cut.load(Ordering::Relaxed) {
                        far.send(&up[..length]).await.unwrap();
                    }
                }
                Ok(length) = far.recv(&mut down) => if let Some(client) = client {
                    near.send_to(&down[..length], client).await.unwrap();
                },
            }
        }
    });
    (address, is_cut)
}

/// A client's and a connector's end of one connection, in these rooms.
struct Ends {
    client: Connection,
    connector: Connection,
    is_cut: Arc<AtomicBool>,
    _endpoints: [Endpoint; 2],
}

async fn ends(of_client: &Room, of_connector: &Room) -> Ends {
    let key = || TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap();
    let (client, connector) = (key(), key());
    let config = connector_config(&connector, client.hash(), of_connector).unwrap();
    let server = Endpoint::server(config, ANY.into()).unwrap();
    let dialling = Endpoint::client(ANY.into()).unwrap();
    let (address, is_cut) = wire(server.local_addr().unwrap()).await;
    let config = client_config(&client, connector.hash(), of_client).unwrap();
    let connecting = dialling.connect_with(config, address, SERVER_NAME).unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (client, connector) = tokio::join!(async { connecting.await.unwrap() }, accepting);
    Ends { client, connector, is_cut, _endpoints: [server, dialling] }
}

/// Writes to all of these until none takes any more: so many bytes somebody holds.
async fn fill(streams: &mut [SendStream]) -> u64 {
    let mut taken = 0;
    loop {
        let before = taken;
        for stream in &mut *streams {
            while let Ok(written) = timeout(Duration::from_millis(1), stream.write(&[7; 65_536])).await {
                taken += written.unwrap() as u64;
            }
        }
        if before == taken {
            return taken;
        }
        sleep(STALLED).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_to_who_does_not_read_ends_at_the_bound() {
    let rooms = Rooms::new(Bounds { holder: 16 * MIB, all: 64 * MIB });
    let of_client = Rooms::new(CLIENT);
    let (mut sessions, mut held) = (Vec::new(), 0);
    for n in 0..6 {
        let room = rooms.take("eve", Use::Streams);
        let ends = ends(&of_client.take("", Use::Either), &room).await;
        let mut streams = Vec::new();
        for _ in 0..if n == 0 { MAX_STREAMS } else { 20 } {
            streams.push(ends.client.open_bi().await.unwrap().0);
        }
        let taken = fill(&mut streams).await;
        assert_eq!(taken, u64::from(room.receive_window()), "{n}: all that was offered, and no more");
        held += taken;
        sessions.push((ends, streams, room));
    }
    assert!(held <= 16 * MIB + 6 * 256 * KIB, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_who_acknowledges_nothing_ends_at_the_bound() {
    let rooms = Rooms::new(Bounds { holder: 16 * MIB, all: 64 * MIB });
    let room = rooms.take("eve", Use::Streams);
    // She would take all of it, and has read what opened the streams.
    let ends = ends(&Rooms::new(CLIENT).take("", Use::Either), &room).await;
    let (mut streams, mut of_eve) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let (mut send, recv) = ends.client.open_bi().await.unwrap();
        send.write_all(b"?").await.unwrap();
        of_eve.push((send, recv));
        streams.push(ends.connector.accept_bi().await.unwrap().0);
    }
    ends.is_cut.store(true, Ordering::Relaxed);
    let taken = fill(&mut streams).await;
    assert_eq!(taken, room.send_window());
}
