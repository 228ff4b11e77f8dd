//! Floods of HTTP/2 frames (CVE-2023-44487 and its kin): the connection is ended, memory stays flat, and somebody else's
//! requests are answered as before, although the flood comes again and again.

use std::time::Duration;

use portcullis_tests::h2_flood::{self, Flood};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, SOON, WIKI, status};
use crate::{FLAT, resident};

pub async fn are_ended() {
    let node = Node::start().await;
    let calm = waits(&node).await;
    for flood in h2_flood::all() {
        let before = resident();
        let events = node.events().await.len();
        let others = CancellationToken::new();
        let (floods, meanwhile) = tokio::join!(repeat(&node, &flood, &others), async {
            let _over = others.clone().drop_guard();
            waits(&node).await
        });
        let grown = resident().saturating_sub(before);
        println!("{}: {floods} times, {} KiB, others {meanwhile} (calm {calm})", flood.name, grown >> 10);
        assert!(grown < FLAT, "{}: grew by {} MiB", flood.name, grown >> 20);
        assert!(
            meanwhile.median < calm.median * 4 + Duration::from_millis(300),
            "{}: others wait {meanwhile} (calm {calm})",
            flood.name
        );
        // The connection's end is seen before it is written.
        let written = async {
            while !node.events().await[events..].iter().any(|event| event["reason"] == "bad_request") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, written).await.unwrap_or_else(|_| panic!("{}: no event", flood.name));
    }
    assert_eq!(node.origin.requests(), []);
}

/// Floods on one connection after the other, each until the node ends it, while the others are at it; how often.
async fn repeat(node: &Node, flood: &Flood, others: &CancellationToken) -> usize {
    let (bytes, mut times) = (flood.bytes(), 0);
    while times == 0 || !others.is_cancelled() {
        let mut stream = node.connect(WIKI, &["h2"]).await;
        timeout(SOON, h2_flood::send(&mut stream, &bytes))
            .await
            .unwrap_or_else(|_| panic!("{}: not ended", flood.name));
        times += 1;
    }
    times
}

/// How long somebody else waits for an answer.
struct Waits {
    median: Duration,
    p99: Duration,
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:?}, p99 {:?}", self.median, self.p99)
    }
}

/// Each time a new connection and a request, all of which are answered. Of how long it takes only the median decides:
/// whatever else this machine does makes some slow.
async fn waits(node: &Node) -> Waits {
    let mut waits = Vec::new();
    for _ in 0..100 {
        let started = Instant::now();
        assert_eq!(status(&node.get(WIKI, "/", "").await), 302);
        waits.push(started.elapsed());
    }
    waits.sort();
    Waits { median: waits[50], p99: waits[98] }
}
