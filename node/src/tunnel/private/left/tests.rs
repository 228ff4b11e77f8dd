use std::time::Duration;

use super::super::carrier::of_gate;
use super::*;
use crate::gate;
use crate::tunnel::tests::lab::{Lab, Outfit};

fn relays(relay: &gate::Relay) -> BTreeSet<SessionRef> {
    relay.sessions().into_iter().map(|(session, _)| of_gate(session)).collect()
}

/// A session in the gate that was given its number, as one is before it is in the book.
fn numbered(relay: &gate::Relay, person: &str) -> SessionRef {
    let identity = relay.identity(person).unwrap();
    of_gate(relay.open_session(identity, Duration::from_secs(600)).unwrap())
}

/// A node that finds the sessions of these people, who are logged in nowhere. It looks for nothing itself.
async fn finds(people: &[&str]) -> (Lab, gate::Relay, gate::Planted, Vec<SessionRef>) {
    let (relay, planted) = gate::in_memory(vec![443]);
    let sessions = people.iter().map(|person| numbered(&relay, person)).collect();
    let outfit = Outfit { relay: Some(relay.clone()), judge: None };
    let lab = Lab::begin(outfit).await;
    (lab, relay, planted, sessions)
}

#[tokio::test]
async fn what_this_process_opens_is_never_left_though_it_is_not_in_the_book_yet() {
    let (lab, relay, _, _) = finds(&["local:ann", "local:bob"]).await;
    let opened = numbered(&relay, "local:ann");
    let shared = &lab.node.private.shared;
    shared.end_left(Whose::People(["local:ann".to_owned()].into())).await.unwrap();
    assert_eq!(relays(&relay).len(), 2, "of two it has ended one");
    shared.end_left(Whose::Anybody).await.unwrap();
    assert_eq!(relays(&relay), BTreeSet::from([opened]));
    assert!(shared.take_up(opened).is_none(), "nor can it be taken up");
}

#[tokio::test]
async fn what_is_being_taken_up_ends_where_nothing_comes_of_it_and_it_was_to_end_meanwhile() {
    let (lab, relay, _, sessions) = finds(&["local:ann", "local:bob"]).await;
    let shared = &lab.node.private.shared;
    let (of_ann, of_bob) = (sessions[0], sessions[1]);
    drop(shared.take_up(of_bob).unwrap());
    let (ann, bob) = (shared.take_up(of_ann).unwrap(), shared.take_up(of_bob).expect("it was left again"));
    assert!(shared.take_up(of_ann).is_none(), "once");
    shared.end_left(Whose::Ending).await.unwrap();
    shared.end_left(Whose::Anybody).await.unwrap();
    assert_eq!(relays(&relay), BTreeSet::from([of_ann, of_bob]));
    ann.keep();
    drop(bob);
    assert!(shared.take_up(of_bob).is_none(), "it was to end");
    shared.end_left(Whose::Ending).await.unwrap();
    assert_eq!(relays(&relay), BTreeSet::from([of_ann]));
    shared.end_left(Whose::Anybody).await.unwrap();
    assert_eq!(relays(&relay), BTreeSet::from([of_ann]), "it is not left any more");
}

#[tokio::test]
async fn what_the_gate_did_not_end_is_taken_up_no_more_and_tried_again() {
    let (lab, relay, planted, sessions) = finds(&["local:ann", "local:bob"]).await;
    let shared = &lab.node.private.shared;
    let leg = |port| gate::PeerAddress {
        local: ([192, 0, 2, 1], 443).into(),
        remote: ([192, 0, 2, 9], port).into(),
    };
    let SessionRef { index, generation } = sessions[0];
    let session = gate::SessionRef { index, generation };
    // Without flows nothing of it passes, whatever the gate can write.
    relay.install(&gate::FlowGrant { session, client: leg(1000), connector: leg(1001) }).unwrap();
    planted.break_it(true);
    assert!(shared.end_left(Whose::Anybody).await.is_err(), "loudly");
    planted.break_it(false);
    assert!(shared.take_up(sessions[0]).is_none());
    shared.end_left(Whose::Ending).await.unwrap();
    assert!(relays(&relay).is_empty());

    let (lab, relay, _, _) = finds(&["local:ann"]).await;
    lab.node.private.shared.end_left(Whose::Ending).await.unwrap();
    assert_eq!(relays(&relay).len(), 1, "nobody has ended it");
}

#[tokio::test]
async fn what_is_left_of_people_who_are_logged_in_nowhere_ends_at_once() {
    let (lab, relay, _, _) = finds(&["local:ann"]).await;
    let following = Arc::clone(&lab.node.private.shared).follow_logouts(CancellationToken::new());
    let ended = async {
        while !relay.sessions().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = following => assert!(relay.sessions().is_empty()),
        () = ended => {}
        () = sleep(Duration::from_secs(20)) => panic!("it goes on"),
    }
}
