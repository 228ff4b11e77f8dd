//! What an idle session costs.

use super::super::lab::{TestOrigin, soon};
use super::*;

const SESSIONS: usize = 300;

/// Bytes of memory that are in use.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Both ends and the test's node are in this process, so each of them costs less than this. An endpoint for each session
/// would have a receive buffer of three megabytes, and end this test.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_costs_tens_of_kilobytes() {
    let origin = TestOrigin::echo().await;
    let world = World::start(Protocol::Tcp, host(origin.address)).await;
    let open = async |n: usize| {
        let session = soon(world.client.session(&format!("app-{n}"), None)).await.unwrap();
        let (mut send, mut recv) = soon(session.open_tcp()).await.unwrap();
        send.write_all(b"x").await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(recv.read_to_end(10)).await.unwrap(), b"x");
    };
    for n in 0..20 {
        open(n).await;
    }
    let before = resident();
    for n in 20..20 + SESSIONS {
        open(n).await;
    }
    let each = resident().saturating_sub(before) / SESSIONS;
    println!("{each} bytes for each idle session, both ends and the node together");
    assert!(each < 200 * 1024, "{each} bytes for each");
    assert_eq!(world.client.sessions().len(), SESSIONS + 20);
}
