use proptest::prelude::*;

use super::*;
use crate::flow::{Aud, Host, Kind, PersonId, Private, SessionId, Target};

const CLIENT: ControlId = ControlId(1);
const LINK: ControlId = ControlId(2);
const HOUR: Duration = Duration::from_secs(3600);
const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn session(index: u32) -> SessionRef {
    SessionRef { index, generation: 7 }
}

/// Whose login has each client: four clients are a person's.
fn person(client: u8) -> PersonId {
    PersonId { provider: "local".into(), subject: (client / 4).to_string() }
}

fn room(book: &Book, client: u8, connector: &str) -> Result<(), Full> {
    book.room(ClientId::from_bytes([client; 16]), &person(client), &connector.parse().unwrap())
}

pub(in super::super) fn about(client: u8, connector: &str) -> Arc<About> {
    let host = Host::parse("10.0.0.5").unwrap();
    let login = Session {
        id: SessionId::from_bytes([client; 16]),
        person: person(client),
        is_local: None,
        email: None,
        display_name: "ann".into(),
        groups: vec![],
        amr: vec![],
        address: HOME,
        authenticated_at: None,
        created_at: UnixTime(0),
        expires_at: UnixTime(3600),
    };
    let application = Application {
        name: "db".into(),
        aud: Aud::derive(&host, "db"),
        policies: vec![],
        providers: vec![],
        session: None,
        launcher: true,
        kind: Kind::Private(Private {
            protocol: crate::flow::Protocol::Tcp,
            target: Target::Single { host: host.clone(), port: 5432 },
            connector: connector.into(),
            host: None,
            ssh: None,
        }),
    };
    Arc::new(About {
        login: Arc::new(login),
        client: ClientId::from_bytes([client; 16]),
        client_key: KeyHash::from_bytes([client; 32]),
        connector: connector.parse().unwrap(),
        connector_key: KeyHash::from_bytes([0; 32]),
        application: Arc::new(application),
        protocol: Protocol::Tcp,
        destination: None,
        reach: Reach::Host("10.0.0.5:5432".parse().unwrap()),
        address: HOME,
        since: Duration::ZERO,
        expires: HOUR,
        not_after: UnixTime(3600),
    })
}

/// One session, offered at 0.
fn offered() -> Book {
    let mut book = Book::default();
    book.open(session(0), about(1, "hq"), CLIENT, at(0)).unwrap();
    book.offered(session(0), LINK, Instance(1), at(0));
    book
}

/// One session that packets pass on.
fn live() -> Book {
    let mut book = offered();
    book.taken(session(0), LINK);
    book.ready(session(0), RelayPath::Kernel, HOME);
    book
}

fn due(book: &Book, now: u64) -> Option<EndReason> {
    book.due(at(now), Duration::ZERO).first().map(|(_, reason)| *reason)
}

#[test]
fn time_ends_what_is_not_answered_not_bound_and_not_renewed() {
    let mut book = offered();
    assert_eq!((due(&book, 9), due(&book, 10)), (None, Some(EndReason::ConnectorGone)));
    book.taken(session(0), ControlId(9));
    assert_eq!(due(&book, 10), Some(EndReason::ConnectorGone), "another's word counts for nothing");
    book.taken(session(0), LINK);
    assert_eq!((due(&book, 29), due(&book, 30)), (None, Some(EndReason::NotBound)));
    book.ready(session(0), RelayPath::Kernel, HOME);
    assert_eq!((due(&book, 3599), due(&book, 3600)), (None, Some(EndReason::Expired)));
    assert!(book.due(at(3604), at(5)).is_empty(), "with grace");
    assert!(book.remove(session(0)).is_some() && book.remove(session(0)).is_none(), "once");
    assert_eq!(due(&book, 9999), None);
}

#[test]
fn an_end_has_its_time_to_come_back() {
    let mut book = live();
    book.client_gone(ControlId(9), at(100));
    assert_eq!(due(&book, 200), None, "that was another's");
    book.client_gone(CLIENT, at(100));
    assert_eq!((due(&book, 129), due(&book, 130)), (None, Some(EndReason::ClientGone)));
    book.resumed(session(0), ControlId(5));
    // The connection that was replaced ends only now.
    book.client_gone(CLIENT, at(131));
    assert_eq!(due(&book, 1000), None);

    book.link_gone(LINK, at(200));
    assert_eq!(book.unserved(&"hq".parse().unwrap()), [session(0)]);
    assert!(book.unserved(&"branch".parse().unwrap()).is_empty());
    assert_eq!((due(&book, 229), due(&book, 230)), (None, Some(EndReason::ConnectorGone)));
    book.offered(session(0), ControlId(6), Instance(1), at(225));
    assert!(book.is_of_link(session(0), ControlId(6)) && !book.is_of_link(session(0), LINK));
    assert_eq!((due(&book, 234), due(&book, 235)), (None, Some(EndReason::ConnectorGone)), "not answered");
    book.taken(session(0), ControlId(6));
    assert_eq!(due(&book, 1000), None);
}

#[test]
fn each_bound_holds_and_is_given_back() {
    let mut book = Book::default();
    let mut next = 0;
    let mut fill = |book: &mut Book, client: u8, connector: &str, count: usize| {
        for _ in 0..count {
            book.open(session(next), about(client, connector), CLIENT, at(0)).unwrap();
            next += 1;
        }
    };
    fill(&mut book, 0, "hq", MAX_OF_CLIENT);
    assert_eq!(room(&book, 0, "x"), Err(Full::Client));
    for client in 1..16 {
        fill(&mut book, client, "hq", MAX_OF_CLIENT);
    }
    assert_eq!(room(&book, 99, "hq"), Err(Full::Connector));
    assert_eq!(
        book.open(session(70_000), about(99, "hq"), CLIENT, at(0)).unwrap_err(),
        Full::Connector,
        "whoever forgot to ask"
    );
    for (index, connector) in ["b", "c", "d"].into_iter().enumerate() {
        for client in 0..16 {
            fill(&mut book, u8::try_from(20 + 16 * index + client).unwrap(), connector, MAX_OF_CLIENT);
        }
    }
    assert_eq!(room(&book, 99, "e"), Err(Full::Node));
    book.remove(session(0)).unwrap();
    assert_eq!(room(&book, 0, "hq"), Ok(()));
    assert_eq!(book.on_path(None), MAX_SESSIONS as usize - 1);
}

/// However often he logs in.
#[test]
fn one_person_takes_no_connector_and_no_node() {
    let mut book = Book::default();
    let mut next = 0;
    let mut fill = |book: &mut Book, client: u8, connector: &str, count: usize| {
        for _ in 0..count {
            book.open(session(next), about(client, connector), CLIENT, at(0)).unwrap();
            next += 1;
        }
    };
    for client in 0..4 {
        fill(&mut book, client, "hq", MAX_OF_PERSON_AT_CONNECTOR / 4);
    }
    assert_eq!(MAX_OF_PERSON_AT_CONNECTOR / 4, MAX_OF_CLIENT, "or the bound of a client comes first");
    let by_another = |id: u8| ClientId::from_bytes([id; 16]);
    let of_person =
        |book: &Book, connector: &str| book.room(by_another(200), &person(0), &connector.parse().unwrap());
    assert_eq!(of_person(&book, "hq"), Err(Full::Person), "by yet another login");
    assert_eq!((room(&book, 4, "hq"), of_person(&book, "branch")), (Ok(()), Ok(())));
    for (client, connector) in (100..).zip(["b", "b", "b", "b"]) {
        for _ in 0..MAX_OF_CLIENT {
            let mut about = Arc::into_inner(about(client, connector)).unwrap();
            about.login = Arc::new(Session { person: person(0), ..(*about.login).clone() });
            book.open(session(20_000 + next_of(&book)), Arc::new(about), CLIENT, at(0)).unwrap();
        }
    }
    assert_eq!(MAX_OF_PERSON, 2 * MAX_OF_PERSON_AT_CONNECTOR);
    assert_eq!(of_person(&book, "c"), Err(Full::Person));
    assert_eq!(room(&book, 4, "c"), Ok(()));
    book.remove(session(0)).unwrap();
    assert_eq!((of_person(&book, "c"), of_person(&book, "b")), (Ok(()), Err(Full::Person)));
}

fn next_of(book: &Book) -> u32 {
    u32::try_from(book.iter().count()).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Open(u32),
    Offered(u32, u64),
    Taken(u32, u64),
    Ready(u32),
    Resumed(u32, u64),
    ClientGone(u64),
    LinkGone(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u32).prop_map(Step::Open),
        (0..4u32, 10..13u64).prop_map(|(s, l)| Step::Offered(s, l)),
        (0..4u32, 10..13u64).prop_map(|(s, l)| Step::Taken(s, l)),
        (0..4u32).prop_map(Step::Ready),
        (0..4u32, 1..4u64).prop_map(|(s, c)| Step::Resumed(s, c)),
        (1..4u64).prop_map(Step::ClientGone),
        (10..13u64).prop_map(Step::LinkGone),
        (0..40u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: what is left after nobody has come back for so long, or after its expiry, is
    /// nothing, each session is taken out once, and the counts agree with what is there.
    #[test]
    fn every_session_ends_once_and_the_counts_agree(steps in prop::collection::vec(step(), 0..60)) {
        let (mut book, mut now) = (Book::default(), Duration::ZERO);
        for step in steps {
            match step {
                Step::Open(index) if book.get(session(index)).is_none() => {
                    book.open(session(index), about(1, "hq"), CLIENT, now).unwrap();
                }
                Step::Open(_) => {}
                Step::Offered(index, link) => book.offered(session(index), ControlId(link), Instance(1), now),
                Step::Taken(index, link) => book.taken(session(index), ControlId(link)),
                Step::Ready(index) => book.ready(session(index), RelayPath::Userspace, HOME),
                Step::Resumed(index, client) => book.resumed(session(index), ControlId(client)),
                Step::ClientGone(client) => book.client_gone(ControlId(client), now),
                Step::LinkGone(link) => {
                    book.link_gone(ControlId(link), now);
                }
                Step::Wait(seconds) => {
                    now += at(seconds);
                    for (session, _) in book.due(now, Duration::ZERO) {
                        prop_assert!(book.remove(session).is_some());
                        prop_assert!(book.remove(session).is_none());
                    }
                    prop_assert!(book.due(now, Duration::ZERO).is_empty());
                }
            }
            let all = book.iter().count();
            prop_assert_eq!(book.on_path(None) + book.on_path(Some(RelayPath::Userspace)), all);
            prop_assert_eq!(book.of_client(ClientId::from_bytes([1; 16])).len(), all);
            prop_assert_eq!(book.of_connector.count(&"hq".parse().unwrap()), all);
            prop_assert_eq!(book.of_person.of(&person(1)), all);
            for link in 10..13 {
                let served = book.iter().filter(|(_, entry)| entry.connector == Seat::Taken(ControlId(link)));
                prop_assert_eq!(book.load(ControlId(link)), served.count());
            }
            for client in 1..4 {
                let has = |entry: &Entry| entry.client == Seat::Taken(ControlId(client));
                let seats = book.iter().filter(|(_, entry)| has(entry)).map(|(session, _)| session);
                prop_assert_eq!(book.by_client.of(&ControlId(client)).collect::<Vec<_>>(), seats.collect::<Vec<_>>());
            }
        }
        for control in 1..13 {
            book.client_gone(ControlId(control), now);
            book.link_gone(ControlId(control), now);
        }
        let over = book.due(now + REATTACH_TIMEOUT, Duration::ZERO);
        prop_assert_eq!(over.len(), book.iter().count());
    }
}
