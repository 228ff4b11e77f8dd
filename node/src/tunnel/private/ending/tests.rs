use futures_util::future::join_all;

use super::*;
use crate::flow::{PersonId, Session, UnixTime};
use crate::store::SessionFilter;
use crate::tunnel::private::book::ControlId;
use crate::tunnel::private::book::tests::about;
use crate::tunnel::tests::lab::{Lab, Outfit, soon};

const CLIENTS: u32 = 1024;
const OF_CLIENT: u32 = 8;
const ALL: u32 = CLIENTS * OF_CLIENT;

/// Each of them is told of by its login, by its connection, and by whoever revokes.
#[tokio::test(flavor = "multi_thread")]
async fn all_logins_end_at_once_with_work_in_proportion_to_their_sessions() {
    let (relay, _) = gate::in_memory(vec![443]);
    let outfit = Outfit { relay: Some(relay), judge: None };
    let lab = Lab::begin(outfit).await;
    let login = Session {
        id: SessionId::from_bytes([9; 16]),
        expires_at: UnixTime(i64::MAX),
        ..(*about(0, "hq").login).clone()
    };
    let live = lab.desk.sessions.create(login).await.unwrap();
    let shared = &lab.node.private.shared;
    let now = clock::monotonic();
    let ids = (0..CLIENTS).map(|client| ClientId::from_bytes(u128::from(client).to_be_bytes()));
    let ids: Vec<_> = ids.collect();
    for (client, id) in (0..CLIENTS).zip(&ids) {
        for number in 0..OF_CLIENT {
            let person = PersonId { provider: "local".into(), subject: client.to_string() };
            let login = Arc::new(Session { person, ..(*live.session).clone() });
            let expires = now + Duration::from_secs(3600);
            let about = About { login, client: *id, expires, ..Arc::into_inner(about(0, "hq")).unwrap() };
            // So that those of a client lie among those of all others.
            let session = SessionRef { index: client + CLIENTS * number, generation: 1 };
            let mut inner = shared.lock();
            inner.book.open(session, Arc::new(about), ControlId(u64::from(client)), now).unwrap();
        }
        shared.watch_login(&live, *id);
    }
    lab.desk.sessions.revoke_by_administrator(&SessionFilter::All, clock::now()).await.unwrap();
    let private = &lab.node.private;
    let conversations = join_all(ids.iter().map(|id| private.end_client(*id, EndReason::Revoked)));
    let logins = [live.session.id];
    let ended = async { tokio::join!(private.end_logins(&logins, EndReason::Revoked), conversations) };
    let (of_all, of_each) = soon(ended).await;
    assert!(of_all.is_ok() && of_each.iter().all(Result::is_ok));
    let inner = shared.lock();
    assert!(inner.book.iter().next().is_none() && inner.cutting.matching(|_| true).is_empty());
    let looks = inner.book.looks.count.get() + inner.cutting.looks.count.get();
    assert!(looks <= 8 * ALL as usize, "{looks} looks for {ALL} sessions of {CLIENTS} clients");
    drop(inner);
    let ended = lab.desk.metrics.private_ended.with_label_values(&["revoked"]).get();
    assert_eq!(ended, u64::from(ALL), "each of them once");
}

#[test]
fn whoever_waits_for_sessions_hears_when_all_are_cut_or_one_is_not() {
    let mut inner = Inner::default();
    let session = |index| SessionRef { index, generation: 1 };
    for index in 0..4 {
        inner.cutting.begin(session(index), about(u8::try_from(index / 2).unwrap(), "hq"));
    }
    let cutting = &mut inner.cutting;
    let of_first = ClientId::from_bytes([0; 16]);
    assert_eq!(cutting.of_client(of_first), [session(0), session(1)]);
    let mut waits = vec![session(0), session(1), session(9)];
    let Outcome::Pending(first) = cutting.outcome(&mut waits) else { panic!("the gate is told") };
    cutting.settle(session(0), Some("the gate says no".into()));
    assert!(first.has_changed().is_ok(), "that was another one");
    assert!(matches!(cutting.outcome(&mut waits), Outcome::Pending(_)), "which may still pass");
    cutting.settle(session(1), None);
    assert!(first.has_changed().is_err(), "it is woken");
    let Outcome::Known(Err(error)) = cutting.outcome(&mut waits) else { panic!("the gate has said no") };
    assert_eq!((&*error, cutting.of_client(of_first)), ("the gate says no", vec![session(0)]));
    assert_eq!(cutting.take_failed(), [session(0)]);
    let Outcome::Pending(again) = cutting.outcome(&mut waits) else { panic!("it is tried again") };
    cutting.settle(session(0), Some("no".into()));
    assert!(again.has_changed().is_err(), "woken by a no, too");
    cutting.take_failed();
    cutting.settle(session(0), None);
    assert!(matches!(cutting.outcome(&mut waits), Outcome::Known(Ok(()))));
    assert!(waits.is_empty() && cutting.take_failed().is_empty());
    assert_eq!(cutting.matching(|_| true), [session(2), session(3)]);
}
