use std::sync::Mutex as Cell;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

/// A document of these tests: `entity text until refresh`, where `-` stands for nothing.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    entity: String,
    text: String,
    validity: Validity,
}

impl Document for Words {
    fn validity(&self) -> Validity {
        self.validity
    }

    fn entity_id(&self) -> &str {
        &self.entity
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn read(bytes: &[u8]) -> Result<Words, Unpublished> {
    let text = std::str::from_utf8(bytes).map_err(|error| Unpublished::Fetch(error.to_string()))?;
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(Unpublished::Document(MetadataError::Entity));
    Ok(Words {
        entity: word()?.to_owned(),
        text: word()?.to_owned(),
        validity: Validity {
            until: word()?.parse().ok().map(|after: i64| UnixTime(NOW.0 + after)),
            refresh: word()?.parse().ok().map(Duration::from_secs),
        },
    })
}

/// A publisher, what it answers next (`None`: nothing at all), how often it was asked, and what was told of it.
struct World {
    published: Published<Words>,
    answer: Arc<Cell<Option<&'static str>>>,
    asked: Arc<Cell<u32>>,
    told: Arc<Cell<Vec<String>>>,
    start: Instant,
}

impl World {
    async fn new(first: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metadata", listener.local_addr().unwrap());
        let (answer, asked) = (Arc::new(Cell::new(Some(first))), Arc::new(Cell::new(0)));
        let (answers, count) = (Arc::clone(&answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *count.lock().unwrap() += 1;
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let answer = *answers.lock().unwrap();
                let head = if answer.is_some() { "200 OK" } else { "500 Broken" };
                let body = answer.unwrap_or_default();
                let length = body.len();
                let reply =
                    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        let told = Arc::new(Cell::new(Vec::new()));
        let telling = Arc::clone(&told);
        let tell = move |fetched: Fetched<'_>| telling.lock().unwrap().push(format!("{fetched:?}"));
        let published = Published::new(&url, None, read, tell).unwrap();
        Self { published, answer, asked, told, start: Instant::now() }
    }

    fn answers(&self, with: Option<&'static str>) {
        *self.answer.lock().unwrap() = with;
    }

    /// So many seconds after the start, by both clocks.
    fn at(&self, seconds: u64) -> Moment {
        let now = UnixTime(NOW.0 + i64::try_from(seconds).unwrap());
        Moment { now, at: self.start + Duration::from_secs(seconds) }
    }

    /// What a request gets then.
    async fn text(&self, seconds: u64) -> Result<String, String> {
        let found = self.published.current(self.at(seconds)).await;
        found.map(|words| words.text.clone()).map_err(|error| error.to_string())
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    fn asked(&self) -> u32 {
        *self.asked.lock().unwrap()
    }
}

#[tokio::test]
async fn a_document_is_renewed_when_it_is_due() {
    let world = World::new("me one - 600").await;
    assert_eq!(world.text(0).await.as_deref(), Ok("one"));
    world.answers(Some("me two - -"));
    world.published.renew(world.at(599)).await;
    assert_eq!((world.text(599).await.as_deref(), world.asked()), (Ok("one"), 1));
    world.published.renew(world.at(600)).await;
    assert_eq!((world.text(600).await.as_deref(), world.asked()), (Ok("two"), 2));
    assert_eq!(world.told(), ["First", "Changed"]);
    // Without a word of its own, after an hour; and requests never wait for that.
    world.published.renew(world.at(600 + 3599)).await;
    assert_eq!((world.text(600 + 3600).await.as_deref(), world.asked()), (Ok("two"), 2));
    world.published.renew(world.at(600 + 3600)).await;
    assert_eq!((world.asked(), world.told()), (3, vec!["Same { recovered: false }".to_owned()]));
}

#[tokio::test]
async fn what_it_says_of_when_to_ask_again_is_bounded() {
    for (document, least) in [("me one - 1", 300), ("me one - 9999999", 86_400)] {
        let world = World::new(document).await;
        world.published.renew(world.at(0)).await;
        world.published.renew(world.at(least - 1)).await;
        assert_eq!(world.asked(), 1, "{document}");
        world.published.renew(world.at(least)).await;
        assert_eq!(world.asked(), 2, "{document}");
    }
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_last_good_one_until_that_is_over() {
    let world = World::new("me one 7200 -").await;
    assert_eq!(world.text(0).await.as_deref(), Ok("one"));
    world.answers(None);
    world.published.renew(world.at(3600)).await;
    assert_eq!(world.told(), ["First", "Failed { error: Status(500), again: false }"]);
    assert_eq!(world.text(3600).await.as_deref(), Ok("one"));
    assert_eq!(world.text(7199).await.as_deref(), Ok("one"));
    assert_eq!(world.asked(), 2, "no request waits while there is a good one");
    assert_eq!(world.text(7200).await.unwrap_err(), "metadata: status 500");
    world.answers(Some("me two - -"));
    assert_eq!(world.text(7200).await.unwrap_err(), "metadata: status 500", "a failure answers for a while");
    assert_eq!(world.text(7230).await.as_deref(), Ok("two"));
    assert_eq!(world.told(), ["Failed { error: Status(500), again: true }", "Changed"]);
}

#[tokio::test]
async fn the_last_good_one_is_good_for_a_week_at_most() {
    let world = World::new("me one - -").await;
    world.published.renew(world.at(0)).await;
    world.answers(None);
    world.published.renew(world.at(3600)).await;
    assert_eq!(world.text(7 * 86_400 - 1).await.as_deref(), Ok("one"));
    assert!(world.text(7 * 86_400).await.is_err());
}

#[tokio::test]
async fn a_newer_one_is_asked_for_before_the_old_one_is_over() {
    let world = World::new("me one 1000 -").await;
    world.published.renew(world.at(0)).await;
    world.answers(Some("me one 2000 -"));
    world.published.renew(world.at(939)).await;
    assert_eq!(world.asked(), 1);
    world.published.renew(world.at(940)).await;
    assert_eq!((world.asked(), world.text(1500).await.as_deref()), (2, Ok("one")));
}

#[tokio::test]
async fn a_wrong_document_takes_nobodys_place() {
    let world = World::new("me one - -").await;
    world.published.renew(world.at(0)).await;
    let mut time = 3600;
    for (wrong, error) in [
        ("you one - -", "Entity(\"you\")"),
        ("nonsense", "Document(Entity)"),
        ("me two 3600 -", "Over(1800003600)"),
    ] {
        world.told();
        world.answers(Some(wrong));
        world.published.renew(world.at(time)).await;
        assert!(world.told()[0].starts_with(&format!("Failed {{ error: {error}")), "{wrong}");
        assert_eq!(world.text(time).await.as_deref(), Ok("one"), "{wrong}");
        time += 900;
    }
    world.answers(Some("me one - -"));
    world.published.renew(world.at(time)).await;
    assert_eq!(world.told(), ["Same { recovered: true }"]);
}

#[tokio::test]
async fn pauses_between_failures_grow() {
    let world = World::new("me one - -").await;
    world.answers(None);
    let mut asked = Vec::new();
    for second in 0..4000 {
        let before = world.asked();
        world.published.renew(world.at(second)).await;
        if world.asked() > before {
            asked.push(second);
        }
    }
    assert_eq!(asked, [0, 30, 90, 210, 450, 930, 1830, 2730, 3630]);
}

#[tokio::test]
async fn one_that_lacked_something_is_asked_for_early_but_not_often() {
    let world = World::new("me one - -").await;
    let first = world.published.current(world.at(0)).await.unwrap();
    world.answers(Some("me two - -"));
    assert_eq!(world.published.newer(&first, world.at(29)).await.unwrap().text, "one");
    let second = world.published.newer(&first, world.at(30)).await.unwrap();
    assert_eq!((second.text.as_str(), world.asked()), ("two", 2));
    // Whoever still has the first one gets the second, without a fetch.
    assert_eq!(world.published.newer(&first, world.at(90)).await.unwrap().text, "two");
    assert_eq!(world.asked(), 2);
}

#[tokio::test]
async fn a_reload_keeps_what_is_from_the_same_place() {
    let world = World::new("me one - -").await;
    world.published.renew(world.at(0)).await;
    let again = |url: &str, ca| {
        let next = Published::new(url, ca, read, |_| {}).unwrap();
        next.follow(&world.published);
        next.good(world.at(1)).map(|words| words.text.clone())
    };
    assert_eq!(again(&world.published.url, None).as_deref(), Some("one"));
    assert_eq!(again("http://127.0.0.1:1/", None), None);
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(again(&world.published.url, Some(file.path())), None);
}
