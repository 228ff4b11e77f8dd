//! Ten thousand sessions of one node: all of them are there, some of them are used, and a revocation finds its own.
//!
//! Most are bare: their legs are bound by hand, once, and nobody sends on them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quinn::Connection;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use super::super::lab::{Lab, PATIENCE, soon, until};
use super::ends::{Client, Login, TestConnector, echoes};
use crate::clock;
use crate::flow::SessionId;
use crate::store::SessionFilter;
use crate::tunnel::access_wire::Opened;
use crate::tunnel::relay::wire::{BindKey, Ticket};
use crate::tunnel::relay::{End, EndInput, EndOutput, Leg, SessionRef};
use crate::tunnel::wire::EndReason;

const LOGINS: usize = 20;
const OF_LOGIN: usize = 500;

/// Of each login, in use.
const USED: usize = 1;

const ALL: usize = LOGINS * OF_LOGIN;

/// Binds a leg from an address that no other leg has, and forgets it: the node goes on believing in it.
async fn bind(control: &Connection, node: SocketAddr, session: SessionRef, leg: Leg, ticket: Ticket) {
    static NUMBER: AtomicU32 = AtomicU32::new(0x7f40_0001);
    let from = Ipv4Addr::from_bits(NUMBER.fetch_add(1, Ordering::Relaxed));
    // Every loopback address is the node's own: from its port there a leg would be refused.
    let mut socket = UdpSocket::bind((from, 0)).await.unwrap();
    while socket.local_addr().unwrap().port() == node.port() {
        socket = UdpSocket::bind((from, 0)).await.unwrap();
    }
    socket.connect(node).await.unwrap();
    let key = BindKey::export(control, session, leg).unwrap();
    let (mut end, first) = End::start(key, ticket, session, leg, 0, clock::monotonic());
    let (mut buffer, mut outputs) = ([0; 1500], vec![first]);
    // A datagram may get lost where so many come at once: the next Bind has a number of its own.
    for _ in 0..20 {
        for output in &outputs {
            send(&socket, output).await;
        }
        if let Ok(length) = timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
            let length = length.unwrap();
            for output in end.handle(EndInput::Challenge(&buffer[..length]), clock::monotonic()) {
                send(&socket, &output).await;
            }
            return;
        }
        outputs = end.handle(EndInput::Timer, clock::monotonic());
    }
    panic!("no challenge for {session:?}");
}

async fn send(socket: &UdpSocket, output: &EndOutput) {
    match output {
        EndOutput::Send(datagram) => drop(socket.send(datagram).await.unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_a_node_has_ten_thousand_sessions_and_knows_each_of_them() {
    let lab = Lab::start().await;
    let connector = TestConnector::start(&lab).await;
    let (mut logins, mut clients, mut used) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..LOGINS {
        let login = Login::new(&lab, &format!("person{number}")).await;
        let mut client = Client::welcome(&lab, &login).await;
        used.push(client.session(&login, "db").await);
        logins.push(login);
        clients.push(client);
    }
    let from_now_on = {
        let mut seen = connector.seen.lock().unwrap();
        seen.bare = true;
        seen.offers.len()
    };
    let opening = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let mut all = Vec::new();
            for _ in USED..OF_LOGIN {
                let Opened { session, ticket, .. } = client.open("db", None).await.unwrap();
                bind(&client.connection, client.node, session, Leg::Client, ticket).await;
                all.push(session);
            }
            (client, all)
        })
    });
    let opening: Vec<_> = opening.collect();
    // The connector's half, as the offers come.
    let binding = async {
        let mut bound = from_now_on;
        while bound < ALL {
            let offers = connector.seen.lock().unwrap().offers.get(bound..).unwrap_or_default().to_vec();
            bound += offers.len();
            for offer in offers {
                bind(&connector.connection, lab.address, offer.session, Leg::Connector, offer.ticket).await;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(240), binding).await.unwrap();
    let mut sessions: BTreeSet<SessionRef> = used.iter().map(|(opened, ..)| opened.session).collect();
    let mut seated = Vec::new();
    for task in opening {
        let (client, all) = task.await.unwrap();
        seated.push(client);
        sessions.extend(all);
    }
    assert_eq!(sessions.len(), ALL, "each has a number of its own");
    let on_path = |path: &str| lab.desk.metrics.private_sessions.with_label_values(&[path]).get();
    let relayed = |count: usize| on_path("userspace") == i64::try_from(count).unwrap();
    let waited = timeout(PATIENCE, async {
        while !relayed(ALL) {
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(waited.await.is_ok(), "{} are relayed, {} are not", on_path("userspace"), on_path("none"));
    assert_eq!(lab.node.private.list().len(), ALL);
    for (.., through) in &used {
        assert!(echoes(through, PATIENCE).await, "one among ten thousand");
    }

    // A revocation takes those of its login, all of them and no others.
    let revoked = SessionFilter::User("person7@example.com".into());
    lab.desk.sessions.revoke_by_administrator(&revoked, clock::now()).await.unwrap();
    let login: SessionId = logins[7].id();
    lab.node.private.end_logins(&[login], EndReason::Revoked).await.unwrap();
    let left = lab.node.private.list();
    assert!(left.len() == ALL - OF_LOGIN && left.iter().all(|row| row.login != login), "{}", left.len());
    let ended = |reason: &str| lab.desk.metrics.private_ended.with_label_values(&[reason]).get();
    assert_eq!(ended("revoked"), OF_LOGIN as u64);
    assert!(!echoes(&used[7].2, Duration::from_millis(500)).await);
    assert!(echoes(&used[8].2, PATIENCE).await);

    // And the end of their connector takes the rest.
    lab.node.private.end_connector("hq", EndReason::ConnectorRevoked).await.unwrap();
    assert_eq!(lab.node.private.list().len(), 0);
    assert_eq!(ended("connector_revoked"), (ALL - OF_LOGIN) as u64);
    until("the gauges to say so", || relayed(0) && on_path("none") == 0).await;
    soon(async { drop(seated) }).await;
}
