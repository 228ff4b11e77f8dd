//! A client and a target in memory, and a clock that jumps.

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

struct Carried {
    client: WebSocketStream<DuplexStream>,
    target: DuplexStream,
    carrying: JoinHandle<(End, u64)>,
    stop: tokio::sync::oneshot::Sender<Stop>,
}

async fn start() -> Carried {
    let (client_end, node_end) = duplex(64 * 1024);
    let (target, node_to_target) = duplex(64 * 1024);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let carrying = tokio::spawn(async move {
        let carried = AtomicU64::new(0);
        let stopped = async {
            match stopped.await {
                Ok(stop) => stop,
                Err(_) => std::future::pending().await,
            }
        };
        let end = carry(node_end, node_to_target, &carried, stopped).await;
        (end, carried.into_inner())
    });
    let client = WebSocketStream::from_raw_socket(client_end, Role::Client, None).await;
    Carried { client, target, carrying, stop }
}

async fn close_code(client: &mut WebSocketStream<DuplexStream>) -> u16 {
    loop {
        match client.next().await {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_whatever_the_messages() {
    let Carried { client, mut target, carrying, stop: _stop } = start().await;
    let sent: Vec<u8> = (0..500_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (up, down) = (sent.clone(), sent.clone());
    let (mut from_target, mut to_target) = tokio::io::split(&mut target);
    let (mut to_client, mut from_client) = client.split();
    let told = async {
        for (index, part) in up.chunks(70_000).enumerate() {
            to_client.send(Message::Binary(Bytes::copy_from_slice(part))).await.unwrap();
            if index == 2 {
                to_client.send(Message::Binary(Bytes::new())).await.unwrap();
                to_client.send(Message::Ping(Bytes::new())).await.unwrap();
            }
        }
    };
    let echoed = async { to_target.write_all(&down).await.unwrap() };
    let mut arrived = vec![0; sent.len()];
    let read = async { from_target.read_exact(&mut arrived).await.unwrap() };
    let heard = async {
        let mut heard = Vec::new();
        while heard.len() < sent.len() {
            if let Message::Binary(part) = from_client.next().await.unwrap().unwrap() {
                assert!(part.len() <= BLOCK && !part.is_empty());
                heard.extend_from_slice(&part);
            }
        }
        heard
    };
    let (_, _, _, heard) = tokio::join!(told, echoed, read, heard);
    assert!(arrived == sent && heard == sent);
    to_client.send(Message::Close(None)).await.unwrap();
    assert_eq!(target.read(&mut [0; 8]).await.unwrap(), 0, "the target reads the end of its input");
    assert_eq!(carrying.await.unwrap(), (End::Client, 1_000_000));
}

#[tokio::test(start_paused = true)]
async fn when_the_target_ends_the_client_is_told_after_the_last_byte() {
    let Carried { mut client, mut target, carrying, stop: _stop } = start().await;
    target.write_all(b"last words").await.unwrap();
    target.shutdown().await.unwrap();
    let words = client.next().await.unwrap().unwrap();
    assert_eq!(words, Message::Binary(Bytes::from_static(b"last words")));
    assert_eq!(close_code(&mut client).await, 1000);
    // Its answer goes out with the next look; then there is nothing more.
    assert!(client.next().await.is_none_or(|end| end.is_err()));
    assert_eq!(carrying.await.unwrap(), (End::Target, 10));
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sends_after_the_target_has_ended_still_arrives() {
    let Carried { mut client, mut target, carrying, stop: _stop } = start().await;
    target.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The client has not looked yet: it is on its way when the node's close message comes.
    client.send(Message::Binary(Bytes::from_static(b"late"))).await.unwrap();
    let mut late = [0; 4];
    target.read_exact(&mut late).await.unwrap();
    assert_eq!(&late, b"late");
    let begun = Instant::now();
    assert_eq!(carrying.await.unwrap(), (End::Target, 4));
    assert!(begun.elapsed() <= GRACE + FAREWELL, "a client that never answers is not waited for");
}

#[tokio::test(start_paused = true)]
async fn text_and_long_messages_are_refused() {
    let fragments = |count: usize| {
        use tokio_tungstenite::tungstenite::protocol::frame::Frame;
        use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
        (0..count)
            .map(|index| {
                let kind = if index == 0 { Data::Binary } else { Data::Continue };
                Message::Frame(Frame::message(vec![7; LONGEST / 2], OpCode::Data(kind), index + 1 == count))
            })
            .collect::<Vec<_>>()
    };
    for (messages, code, end) in [
        (vec![Message::Text("hello".into())], 1003, End::Text),
        (vec![Message::Binary(vec![0; LONGEST + 1].into())], 1009, End::TooLong),
        (fragments(3), 1009, End::TooLong),
    ] {
        let Carried { mut client, mut target, carrying, stop: _stop } = start().await;
        let (mut to_client, from_client) = client.split();
        let sending = tokio::spawn(async move {
            for message in messages {
                // The node stops reading in the middle of it.
                if to_client.send(message).await.is_err() {
                    break;
                }
            }
            to_client
        });
        client = sending.await.unwrap().reunite(from_client).unwrap();
        assert_eq!(close_code(&mut client).await, code);
        assert_eq!(carrying.await.unwrap(), (end, 0));
        assert_eq!(target.read(&mut [0; 8]).await.unwrap_or(0), 0, "nothing of it arrives");
    }
    let Carried { mut client, mut target, carrying, stop: _stop } = start().await;
    let longest = Message::Binary(vec![7; LONGEST].into());
    let (sent, read) =
        tokio::join!(client.send(longest), async { target.read_exact(&mut vec![0; LONGEST]).await });
    sent.unwrap();
    read.unwrap();
    drop(client);
    assert_eq!(carrying.await.unwrap(), (End::ClientLost, LONGEST as u64));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_is_told_so() {
    let Carried { client, target: _target, carrying, stop: _stop } = start().await;
    let mut raw = client.into_inner();
    // A frame without a mask, which no client may send (RFC 6455 §5.1).
    raw.write_all(&[0x82, 1, 7]).await.unwrap();
    let mut answer = [0; 4];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[0], u16::from_be_bytes([answer[2], answer[3]])), (0x88, 1002));
    assert_eq!(carrying.await.unwrap().0, End::Protocol);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_gone_and_one_that_does_is_not() {
    let Carried { client, target: _target, carrying, stop: _stop } = start().await;
    let begun = Instant::now();
    assert_eq!(carrying.await.unwrap().0, End::Silent);
    assert!(begun.elapsed() >= SILENCE && begun.elapsed() <= SILENCE + 2 * PING_EVERY);
    drop(client);

    let Carried { mut client, target: _target, carrying, stop } = start().await;
    let answering = tokio::spawn(async move { while let Some(Ok(_)) = client.next().await {} });
    tokio::time::sleep(10 * SILENCE).await;
    assert!(!carrying.is_finished());
    stop.send(Stop::Leaving).unwrap();
    assert_eq!(carrying.await.unwrap().0, End::Stopped(Stop::Leaving));
    answering.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_read_is_not_the_clients_silence() {
    let Carried { mut client, mut target, carrying, stop: _stop } = start().await;
    let sending = tokio::spawn(async move {
        for _ in 0..8 {
            client.send(Message::Binary(vec![7; 64 * 1024].into())).await.unwrap();
        }
        client
    });
    tokio::time::sleep(10 * SILENCE).await;
    assert!(!carrying.is_finished() && !sending.is_finished(), "the client is held up by the target");
    target.read_exact(&mut vec![0; 8 * 64 * 1024]).await.unwrap();
    drop(sending.await.unwrap());
    assert_eq!(carrying.await.unwrap(), (End::ClientLost, 8 * 64 * 1024));
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_it_at_once_and_says_why_even_to_a_client_that_does_not_read() {
    for (stop_it, code) in [(Stop::Over, 1008), (Stop::Leaving, 1001)] {
        let Carried { mut client, target: _target, carrying, stop } = start().await;
        stop.send(stop_it).unwrap();
        assert_eq!(close_code(&mut client).await, code);
        assert_eq!(carrying.await.unwrap().0, End::Stopped(stop_it));
    }
    let Carried { client: _client, mut target, carrying, stop } = start().await;
    let flood = tokio::spawn(async move { while target.write_all(&[7; 4096]).await.is_ok() {} });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    stop.send(Stop::Over).unwrap();
    assert_eq!(carrying.await.unwrap().0, End::Stopped(Stop::Over));
    assert!(begun.elapsed() <= 2 * FAREWELL, "cut within a second");
    flood.await.unwrap();
}

/// A target whose shutdown can be told from its loss.
#[tokio::test(start_paused = true)]
async fn input_that_was_cut_short_does_not_look_complete() {
    let shut = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for (goodbye, complete) in [(true, true), (false, false)] {
        shut.store(false, Ordering::Relaxed);
        let (client_end, node_end) = duplex(1024);
        let target = Watched { inner: duplex(1024).0, shut: std::sync::Arc::clone(&shut) };
        let carrying =
            tokio::spawn(
                async move { carry(node_end, target, &AtomicU64::new(0), std::future::pending()).await },
            );
        let mut client = WebSocketStream::from_raw_socket(client_end, Role::Client, None).await;
        if goodbye {
            client.send(Message::Close(None)).await.unwrap();
        }
        drop(client);
        carrying.await.unwrap();
        assert_eq!(shut.load(Ordering::Relaxed), complete);
    }
}

struct Watched {
    inner: DuplexStream,
    shut: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.shut.store(true, Ordering::Relaxed);
        std::task::Poll::Ready(Ok(()))
    }
}
