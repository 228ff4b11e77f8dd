use super::*;
use crate::flow::PersonId;
use crate::store::SessionFilter;

const NOW: UnixTime = UnixTime(100);
const SESSION: SessionId = SessionId::from_bytes([1; 16]);

async fn store(directory: &std::path::Path) -> Store {
    let store = Store::open(directory).unwrap();
    let session = Session {
        id: SESSION,
        person: PersonId { provider: "local".into(), subject: "ann".into() },
        is_local: None,
        email: None,
        display_name: "x".into(),
        groups: vec![],
        amr: vec![],
        address: [192, 0, 2, 1].into(),
        authenticated_at: None,
        created_at: UnixTime(0),
        expires_at: UnixTime(1000),
    };
    store.insert_session(&session).await.unwrap();
    store
}

async fn grant(store: &Store, id: u8) -> [u8; 16] {
    store.insert_saas_grant([id; 16], SESSION, "git", &"body", UnixTime(160), NOW).await.unwrap();
    [id; 16]
}

async fn good(store: &Store, id: [u8; 16], now: i64) -> Option<u32> {
    let grant = store.saas_grant::<String>(id, UnixTime(now)).await.unwrap()?;
    assert_eq!((grant.session, grant.application.as_str(), grant.body.as_str()), (SESSION, "git", "body"));
    Some(grant.generation)
}

#[tokio::test]
async fn a_code_is_redeemed_once_in_time_and_its_replay_ends_the_grant() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let late = grant(&store, 1).await;
    let redeem = |id, now| store.redeem_saas_grant(id, UnixTime(900), UnixTime(now));
    assert_eq!(redeem(late, 160).await.unwrap(), Redemption::Gone);
    let id = grant(&store, 2).await;
    assert_eq!(redeem(id, 159).await.unwrap(), Redemption::First);
    assert_eq!((good(&store, id, 899).await, good(&store, id, 900).await), (Some(1), None));
    assert_eq!(redeem(id, 161).await.unwrap(), Redemption::Again);
    assert_eq!(good(&store, id, 161).await, None, "its tokens are gone too");
    assert_eq!(redeem(id, 161).await.unwrap(), Redemption::Gone);
}

#[tokio::test]
async fn a_spent_refresh_token_ends_the_grant() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let id = grant(&store, 1).await;
    let turn = |presented| store.turn_saas_grant(id, presented, NOW);
    store.redeem_saas_grant(id, UnixTime(900), NOW).await.unwrap();
    assert_eq!(turn(1).await.unwrap(), Turn::Next(2));
    assert_eq!(turn(2).await.unwrap(), Turn::Next(3));
    assert_eq!(turn(1).await.unwrap(), Turn::Reused);
    assert_eq!(turn(3).await.unwrap(), Turn::Gone);
    let unredeemed = grant(&store, 2).await;
    assert_eq!(store.turn_saas_grant(unredeemed, 0, NOW).await.unwrap(), Turn::Reused);
}

#[tokio::test]
async fn a_grant_never_outlives_its_session_and_the_application_is_told_until_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let (id, other) = (grant(&store, 1).await, grant(&store, 2).await);
    store.redeem_saas_grant(id, UnixTime(5000), NOW).await.unwrap();
    store.redeem_saas_grant(other, UnixTime(5000), NOW).await.unwrap();
    assert_eq!((good(&store, id, 999).await, good(&store, id, 1000).await), (Some(1), None));
    let untold = |now| store.ended_saas_logins(10, UnixTime(now));
    assert_eq!(untold(100).await.unwrap(), []);
    store.revoke_sessions(&SessionFilter::Id(SESSION), NOW).await.unwrap();
    assert_eq!(good(&store, id, 100).await, None);
    let ended = untold(100).await.unwrap();
    assert_eq!((ended.len(), ended[0].application.as_str(), ended[0].tries), (1, "git", 0));
    store.saas_login_later(SESSION, "git", UnixTime(130)).await.unwrap();
    assert_eq!(untold(129).await.unwrap(), []);
    assert_eq!(untold(130).await.unwrap()[0].tries, 1);
    store.saas_login_told(SESSION, "git", UnixTime(131)).await.unwrap();
    assert_eq!(untold(999).await.unwrap(), []);
}

#[tokio::test]
async fn an_application_is_told_by_the_name_that_it_heard_last() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let name = |value: &str| NameId::new("f", value);
    let sign_in = async |session, who, over_at| {
        store.insert_saml_login(session, "crm", &name(who), UnixTime(over_at)).await
    };
    sign_in(SESSION, "one", 580).await.unwrap();
    sign_in(SESSION, "two", 600).await.unwrap();
    let written = || {
        store.run(|connection| {
            Ok(connection.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0))?)
        })
    };
    let before = written().await.unwrap();
    sign_in(SESSION, "two", 600).await.unwrap();
    sign_in(SESSION, "two", 590).await.unwrap();
    assert_eq!(written().await.unwrap(), before, "what is known already costs no write");
    let by_application = store.sessions_matching(&SessionFilter::Application("crm".into()), NOW).await;
    assert_eq!(by_application.unwrap().len(), 1);
    let other = SessionId::from_bytes([9; 16]);
    assert!(sign_in(other, "x", 600).await.is_err());
    let login =
        SaasLogin { session: SESSION, application: "crm".into(), answers_over_at: Some(UnixTime(600)) };
    assert_eq!(store.saas_logins(vec![other, SESSION]).await.unwrap(), [login]);
    store.revoke_sessions(&SessionFilter::Id(SESSION), NOW).await.unwrap();
    let ended = store.ended_saas_logins(10, NOW).await.unwrap();
    assert_eq!((ended.len(), ended[0].name_id.clone()), (1, Some(name("two"))));
}

#[tokio::test]
async fn an_application_is_told_again_when_the_last_answer_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let name = NameId::new("f", "ann");
    let due = async |now| {
        let due = store.ended_saas_logins(10, UnixTime(now)).await.unwrap();
        due.first().map(|login| (login.is_told, login.tries))
    };
    let told = async |now| store.saas_login_told(SESSION, "crm", UnixTime(now)).await.unwrap();
    store.insert_saml_login(SESSION, "crm", &name, UnixTime(600)).await.unwrap();
    store.revoke_sessions(&SessionFilter::Id(SESSION), NOW).await.unwrap();
    store.saas_login_later(SESSION, "crm", UnixTime(105)).await.unwrap();
    assert_eq!(due(105).await, Some((false, 1)));
    told(106).await;
    assert_eq!((due(599).await, due(600).await), (None, Some((true, 0))));
    store.saas_login_later(SESSION, "crm", UnixTime(605)).await.unwrap();
    assert_eq!((due(604).await, due(605).await), (None, Some((true, 1))));
    told(606).await;
    assert_eq!(due(10_000).await, None, "that was the last time");
    // An answer that was under way when the session ended.
    store.insert_saml_login(SESSION, "crm", &name, UnixTime(700)).await.unwrap();
    assert!(due(700).await.is_some());
    told(700).await;
    assert_eq!(due(10_000).await, None);
}

#[tokio::test]
async fn a_session_has_a_bounded_number_of_grants() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    for number in 0..300_u16 {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        store.insert_saas_grant(id, SESSION, "git", &"body", UnixTime(160), NOW).await.unwrap();
    }
    let count: i64 = store
        .run(|connection| Ok(connection.query_row("SELECT count(*) FROM saas_grant", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(count, MOST_OF_SESSION);
    let mut newest = [0; 16];
    newest[..2].copy_from_slice(&299_u16.to_be_bytes());
    assert_eq!(good(&store, newest, 100).await, Some(0));
    assert_eq!(good(&store, [0; 16], 100).await, None, "the oldest went");
}
