//! Origins that take a connection for a person: what one person has done on a line must not be done for another.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use portcullis_tests::origin::Origin;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::node::{Node, SOON, field, read_to_end, status, write};

const MAIL: &str = "mail.example.com";

/// Answers who it takes the connection for: whoever has said so once, by NTLM or Negotiate, as IIS does it. Counts the
/// connections that it accepts.
async fn integrated_origin(connections: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn serve(stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut user: Option<String> = None;
    loop {
        let (mut target, mut said) = (None, None);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            target.get_or_insert_with(|| line.split(' ').nth(1).unwrap().to_owned());
            if let Some((_, value)) =
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
                && let Some((scheme, name)) = value.split_once(' ')
            {
                said = Some((scheme.to_ascii_lowercase(), name.to_owned()));
            }
        }
        let mut more = "";
        match (said, target.as_deref()) {
            (Some((scheme, name)), _) if scheme == "ntlm" || scheme == "negotiate" => user = Some(name),
            // Whatever else made the origin take the connection for somebody's: it says so.
            (_, Some("/certificate")) => (user, more) = (Some("ann".into()), "Persistent-Auth: true\r\n"),
            (_, Some("/continued")) => {
                (user, more) =
                    (Some("ann".into()), "WWW-Authenticate: Basic realm=\"x\", Negotiate oRswGaADCgEA\r\n");
            }
            (_, Some("/told")) => {
                (user, more) = (Some("ann".into()), "Authentication-Info: Negotiate oRswGaADCgEA\r\n")
            }
            _ => {}
        }
        let answer = match &user {
            Some(name) => format!("HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n{name}", name.len()),
            None => "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_the_origin_takes_for_one_person_is_not_given_to_another() {
    let connections = Arc::new(AtomicUsize::new(0));
    let origin = integrated_origin(Arc::clone(&connections)).await;
    let more = format!(
        "[[application]]\nname = \"mail\"\nurl = \"https://{MAIL}\"\norigin = \"http://{origin}\"\npolicies = [\"people\"]\n"
    );
    let recording = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let node = Node::start_with(recording, &more).await;
    let (ann, mallory) = (node.log_in(MAIL).await, node.log_in(MAIL).await);
    let get = async |cookies: String, target: &str, more: &str| {
        node.get(MAIL, target, &format!("Cookie: {cookies}\r\n{more}")).await
    };

    // Otherwise lines are used again by whoever comes, and this test shows something.
    let until = Instant::now() + SOON;
    loop {
        let before = connections.load(Ordering::SeqCst);
        assert_eq!(status(&get(mallory.cookies(), "/", "Authorization: Basic YTpi\r\n").await), 401);
        if connections.load(Ordering::SeqCst) == before {
            break;
        }
        assert!(Instant::now() < until, "each request had a line of its own");
    }

    for (target, said) in [
        ("/", "Authorization: NTLM ann\r\n"),
        ("/", "Authorization: Negotiate ann\r\n"),
        ("/", "authorization: nTLM ann\r\n"),
        ("/certificate", ""),
        ("/continued", ""),
        ("/told", ""),
    ] {
        let hers = get(ann.cookies(), target, said).await;
        assert!(status(&hers) == 200 && hers.ends_with("ann"), "{said}{hers}");
        assert_eq!(
            field(&hers, "persistent-auth"),
            None,
            "it speaks of a connection that is not the client's"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        for _ in 0..4 {
            let his = get(mallory.cookies(), "/", "").await;
            assert_eq!(status(&his), 401, "after {target} {said}: {his}");
        }
    }

    // On one connection of hers too: the node keeps no line for anybody.
    let mut stream = node.connect(MAIL, &[]).await;
    let request =
        |rest: &str| format!("GET / HTTP/1.1\r\nHost: {MAIL}\r\nCookie: {}\r\n{rest}\r\n", ann.cookies());
    let both = request("Authorization: NTLM ann\r\n") + &request("Connection: close\r\n");
    write(&mut stream, both).await.unwrap();
    let answers = read_to_end(&mut stream).await;
    assert!(answers.starts_with("HTTP/1.1 200 ") && answers.contains("HTTP/1.1 401 "), "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_origin_shared_by_all_never_hears_of_such_a_login() {
    let node = Node::start().await;
    let ann = node.log_in("grpc.example.com").await;
    for (said, arrives) in [("NTLM ann", false), ("Negotiate ann", false), ("Bearer ntlm.x", true)] {
        node.origin.clear();
        let fields = format!("Cookie: {}\r\nAuthorization: {said}\r\n", ann.cookies());
        assert_eq!(status(&node.get("grpc.example.com", "/x", &fields).await), 200);
        let requests = node.origin.requests();
        assert_eq!(requests[0].header("authorization").len(), usize::from(arrives), "{said}");
    }
}
