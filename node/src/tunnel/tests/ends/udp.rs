//! UDP through a session: payloads of every size, many flows.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::super::lab::soon;
use super::*;
use crate::tunnel::client::{StreamError, UdpFlow};

/// Sends back what it gets.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    address
}

fn payload(length: usize, seed: usize) -> Bytes {
    (0..length).map(|n| u8::try_from((n * 31 + seed) % 251).unwrap()).collect()
}

async fn back(flow: &mut UdpFlow, payload: &Bytes) {
    soon(flow.send(payload)).await.unwrap();
    let got = soon(flow.receive()).await.unwrap();
    assert!(got == *payload, "{} bytes came back as {}", payload.len(), got.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_every_size_come_back_whole() {
    let world = World::start(Protocol::Udp, host(echo().await)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    let mut flow = soon(session.open_udp()).await.unwrap();
    for length in [1, 0, 500, 1100, 1200, 1300, 1472, 2000, 9000, 30_000, 65_506, 65_507] {
        back(&mut flow, &payload(length, length)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_do_not_mix_and_their_numbers_can_be_used_again() {
    let world = World::start(Protocol::Udp, host(echo().await)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    for _ in 0..3 {
        let mut flows = Vec::new();
        for _ in 0..50 {
            flows.push(soon(session.open_udp()).await.unwrap());
        }
        // No more at a time than a socket has room for: the rest would get lost.
        for (chunk, some) in flows.chunks_mut(10).enumerate() {
            let payload = |n: usize| payload(3000, 10 * chunk + n);
            for (n, flow) in some.iter().enumerate() {
                soon(flow.send(&payload(n))).await.unwrap();
            }
            for (n, flow) in some.iter_mut().enumerate() {
                assert!(soon(flow.receive()).await.unwrap() == payload(n), "flow {n} of ten");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_for_one_protocol_carries_no_other() {
    let world = World::start(Protocol::Udp, host(echo().await)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    assert!(matches!(soon(session.open_tcp()).await.unwrap_err(), StreamError::Refused));
    let world = World::start(Protocol::Tcp, host(echo().await)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    assert!(matches!(soon(session.open_udp()).await.unwrap_err(), StreamError::Refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_receives_is_kept_up_to_a_bound_and_given_back() {
    let world = World::start(Protocol::Udp, host(echo().await)).await;
    let session = soon(world.client.session("app", None)).await.unwrap();
    let mut flows = Vec::new();
    for _ in 0..3 {
        flows.push(soon(session.open_udp()).await.unwrap());
    }
    let large = payload(40_000, 1);
    let most = flows[0].most_held();
    assert_eq!(most, 4 * 1024 * 1024, "of the first session");
    let filling = async {
        while flows[0].held() < most - 50_000 {
            for flow in &flows {
                soon(flow.send(&large)).await.unwrap();
            }
            // What comes too fast gets lost on the way, where nobody counts it.
            sleep(Duration::from_millis(5)).await;
            assert!(flows[0].held() <= most, "{} bytes", flows[0].held());
        }
    };
    soon(filling).await;
    for _ in 0..40 {
        for flow in &flows {
            soon(flow.send(&large)).await.unwrap();
        }
        sleep(Duration::from_millis(5)).await;
        assert!(flows[0].held() <= most, "{} bytes", flows[0].held());
    }
    // The flows of the others are given back, and this one goes on.
    flows.truncate(1);
    assert!(flows[0].held() < most / 2 + 50_000, "{} bytes", flows[0].held());
    let small = payload(500, 3);
    soon(async {
        loop {
            while flows[0].held() > 0 {
                let got = flows[0].receive().await.unwrap();
                if got == small {
                    return;
                }
                assert!(got == large);
            }
            flows[0].send(&small).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
