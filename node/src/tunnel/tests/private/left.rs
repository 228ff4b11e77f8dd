//! What the gate has kept over a restart of the node, when its person logs out before coming back.

use std::net::UdpSocket;
use std::time::Duration;

use super::super::lab::{Lab, Outfit, soon, until};
use super::ends::{Client, Login, TestConnector};
use crate::clock;
use crate::flow::UnixTime;
use crate::gate;
use crate::store::SessionFilter;
use crate::tunnel::relay::SessionRef;
use crate::tunnel::wire::{EndReason, RelayPath};

/// A node that has just begun again: the gate relays a session of each of these people, who have yet to come back.
struct Restarted {
    lab: Lab,
    relay: gate::Relay,
    planted: gate::Planted,
    logins: Vec<Login>,
    sessions: Vec<SessionRef>,
    grants: Vec<Vec<u8>>,
    /// Of before, on which nobody listens.
    clients: Vec<Client>,
}

impl Restarted {
    async fn with(names: &[&str], meanwhile: impl AsyncFnOnce(&Lab, &[Login])) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (relay, planted) = gate::in_memory(vec![socket.local_addr().unwrap().port()]);
        let mut lab = Lab::start_with(socket, Outfit { relay: Some(relay.clone()), judge: None }).await;
        let connector = TestConnector::start(&lab).await;
        let (mut logins, mut sessions, mut grants) = (vec![], vec![], vec![]);
        let (mut clients, mut legs) = (vec![], vec![]);
        for name in names {
            let login = Login::new(&lab, name).await;
            let mut client = Client::welcome(&lab, &login).await;
            let opened = client.open("db", None).await.unwrap();
            let leg = client.bind(&opened);
            assert_eq!(client.ready(&leg).await, RelayPath::Kernel);
            sessions.push(opened.session);
            grants.push(opened.grant);
            logins.push(login);
            clients.push(client);
            legs.push(leg);
        }
        let stopping = lab.begin_stop();
        connector.connection.close(0u8.into(), b"");
        soon(stopping).await.unwrap().unwrap();
        meanwhile(&lab, &logins).await;
        lab.start_again().await;
        Self { lab, relay, planted, logins, sessions, grants, clients }
    }

    /// Of whom there is a session, by the place in the list of names.
    fn relayed(&self) -> Vec<usize> {
        let relayed: Vec<u32> = self.relay.sessions().iter().map(|(session, _)| session.index).collect();
        (0..self.sessions.len()).filter(|place| relayed.contains(&self.sessions[*place].index)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_has_kept_ends_with_its_persons_own_logout() {
    let world = Restarted::with(&["ann", "bob", "eve"], async |_, _| {}).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.relayed(), [0, 1, 2], "each is logged in");
    let (sessions, clients) = (&world.lab.desk.sessions, &world.lab.desk.clients);
    let session = world.logins[0].session.id;
    sessions.revoke(&SessionFilter::Id(session), clock::now()).await.unwrap();
    until("ann's is over", || world.relayed() == [1, 2]).await;
    clients.log_out(world.logins[1].client, clock::now()).await.unwrap();
    until("bob's is, too", || world.relayed() == [2]).await;
    world.lab.logged("left by an earlier process", 2).await;
    drop(world.clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_has_kept_ends_where_its_person_was_logged_out_while_no_node_ran() {
    let world = Restarted::with(&["ann", "bob"], async |lab, logins| {
        let ann = SessionFilter::Id(logins[0].session.id);
        lab.node.store.revoke_sessions(&ann, UnixTime(1)).await.unwrap();
    })
    .await;
    until("ann's is over", || world.relayed() == [1]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.relayed(), [1]);
    drop(world.clients);
}

/// Whoever revokes the connector finds the session neither in the book nor among what is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_resumed_ends_with_its_connector() {
    const WAIT: Duration = Duration::from_secs(3);
    let world = Restarted::with(&["ann", "bob"], async |_, _| {}).await;
    let mut client = Client::welcome(&world.lab, &world.logins[0]).await;
    let (desk, before) = (&world.lab.desk, world.planted.barriers());
    world.planted.slow_down(WAIT);
    let bob = SessionFilter::Id(world.logins[1].session.id);
    desk.sessions.revoke(&bob, clock::now()).await.unwrap();
    until("the gate is at work", || world.planted.barriers() > before).await;
    let revoking = async {
        until("it is taken up", || world.lab.node.private.is_taken_up(world.sessions[0])).await;
        world.lab.node.store.revoke_connector("hq", clock::now()).await.unwrap();
    };
    let (resumed, ()) = tokio::join!(client.resume(&world.grants[0]), revoking);
    assert_eq!(resumed.unwrap().session, world.sessions[0]);
    assert_eq!(client.ended().await, (world.sessions[0], EndReason::ConnectorRevoked));
    drop(world.clients);
}
