use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const PING: u8 = 0x6;
const ONE: Duration = limits::H2_EMPTY_FRAME;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A client, the watched server, and what is told.
fn pair() -> (DuplexStream, Frames<DuplexStream>, Arc<Mutex<Vec<Offence>>>) {
    let (client, server) = duplex(1 << 20);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    (client, Frames::new(server, move |offence| tell.lock().unwrap().push(offence)), told)
}

/// The client says `frames`, and the server reads them.
async fn say(client: &mut DuplexStream, server: &mut Frames<DuplexStream>, said: &[u8]) -> io::Result<()> {
    client.write_all(said).await.unwrap();
    server.read_exact(&mut vec![0; said.len()]).await.map(|_| ())
}

proptest! {
    #[test]
    fn frames_are_found_however_the_bytes_are_cut(
        frames in prop::collection::vec((0_u8..12, any::<u8>(), 0_u32..1 << 31, 0_usize..40), 0..20),
        cuts in prop::collection::vec(1_usize..30, 1..20),
    ) {
        let mut bytes = vec![0; PREFACE];
        let mut expected = Vec::new();
        for (kind, flags, stream, length) in frames {
            bytes.extend(frame(kind, flags, stream, &vec![7; length]));
            let code = (kind == RST_STREAM && length == 4).then_some(0x0707_0707);
            // Two strings of seven bytes, and their lengths.
            let is_lone_field = kind == HEADERS && flags == 5 && length == 2 + 7;
            expected.push(Frame { kind, flags, stream, length, code, is_lone_field });
        }
        let (mut walker, mut found) = (Walker::behind(PREFACE), Vec::new());
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            walker.walk(now, |frame| found.push(frame.clone()));
            rest = later;
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(found, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_carry_nothing_end_a_connection_that_sends_too_many() {
    for nothing in [
        frame(PING, 0, 0, &[0; 8]),
        frame(0x4, 0, 0, &[]),
        frame(0x2, 0, 1, &[0; 5]),
        frame(0x8, 0, 0, &1_u32.to_be_bytes()),
        frame(0xbe, 0, 0, &[1; 20]),
        frame(DATA, 0, 1, &[]),
        frame(DATA, PADDED, 1, &[200; 201]),
        reset(1, 8),
    ] {
        let (mut client, mut server, told) = pair();
        say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
        for _ in 0..limits::H2_EMPTY_FRAMES {
            say(&mut client, &mut server, &nothing).await.unwrap();
        }
        assert_eq!(*told.lock().unwrap(), [], "{nothing:?}");
        let error = say(&mut client, &mut server, &nothing).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{nothing:?}");
        say(&mut client, &mut server, &nothing).await.unwrap_err();
        assert_eq!(*told.lock().unwrap(), [Offence::Flood], "told once: {nothing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_comes_back_by_time_and_by_frames_that_carry_something() {
    let (mut client, mut server, told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    let ping = frame(PING, 0, 0, &[0; 8]);
    let pings = |count: u32| ping.repeat(usize::try_from(count).unwrap());
    say(&mut client, &mut server, &pings(limits::H2_EMPTY_FRAMES)).await.unwrap();
    tokio::time::advance(ONE * 50).await;
    say(&mut client, &mut server, &pings(50)).await.unwrap();
    say(&mut client, &mut server, &frame(DATA, 0, 1, b"a")).await.unwrap();
    server.write_all(&frame(DATA, 0, 1, b"a")).await.unwrap();
    say(&mut client, &mut server, &pings(2 * limits::H2_EARNED)).await.unwrap();
    assert_eq!(*told.lock().unwrap(), []);
    say(&mut client, &mut server, &ping).await.unwrap_err();
}

/// What the dialling end of a tunnel over TCP says beside its datagrams, at its busiest: a PING every three seconds, an answer
/// to each of ours, and for each half of a window that it has read an update of the stream's and the connection's.
#[tokio::test(start_paused = true)]
async fn a_tunnel_pays_for_what_it_says_and_a_hostile_one_does_not() {
    const HALF_A_WINDOW: usize = 512 * 1024;
    const LONGEST_FRAME: usize = 16 * 1024;
    let (mut client, mut server, told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    let ping = |flags| frame(PING, flags, 0, &[0; 8]);
    let update = |stream| frame(0x8, 0, stream, &1_u32.to_be_bytes());
    for _ in 0..1200 {
        tokio::time::advance(Duration::from_secs(3)).await;
        say(&mut client, &mut server, &[ping(0), ping(1)].concat()).await.unwrap();
        for _ in 0..64 {
            let data = frame(DATA, 0, 1, b"a").repeat(HALF_A_WINDOW / LONGEST_FRAME);
            server.write_all(&data).await.unwrap();
            say(&mut client, &mut server, &[update(1), update(0)].concat()).await.unwrap();
        }
        client.read_exact(&mut vec![0; 64 * 32 * (FRAME_HEAD + 1)]).await.unwrap();
    }
    assert_eq!(*told.lock().unwrap(), []);
    // Updates that nothing was read for.
    tokio::time::advance(Duration::from_secs(3)).await;
    let flood = update(1).repeat(usize::try_from(limits::H2_EMPTY_FRAMES).unwrap());
    say(&mut client, &mut server, &flood).await.unwrap();
    say(&mut client, &mut server, &update(1)).await.unwrap_err();
    assert_eq!(*told.lock().unwrap(), [Offence::Flood]);
}

#[tokio::test(start_paused = true)]
async fn nobody_earns_more_than_there_was_at_first() {
    let (mut client, mut server, _told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    for _ in 0..limits::H2_EMPTY_FRAMES {
        say(&mut client, &mut server, &frame(DATA, 0, 1, b"a")).await.unwrap();
    }
    let ping = frame(PING, 0, 0, &[0; 8]);
    let most = ping.repeat(usize::try_from(limits::H2_EMPTY_FRAMES).unwrap());
    say(&mut client, &mut server, &most).await.unwrap();
    say(&mut client, &mut server, &ping).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn refused_streams_are_paid_for() {
    let (mut client, mut server, told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    for number in 0..=limits::H2_EMPTY_FRAMES {
        server.write_all(&reset(number * 2 + 1, REFUSED_STREAM)).await.unwrap();
    }
    assert_eq!(*told.lock().unwrap(), [Offence::Flood]);
    say(&mut client, &mut server, &frame(HEADERS, 4, 1, &[])).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_is_told_and_a_request_that_breaks_later_is_not() {
    let (mut client, mut server, told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    let head = |stream| frame(HEADERS, 0, stream, &[1, 2, 3]);
    say(&mut client, &mut server, &[head(1), frame(CONTINUATION, 4, 1, &[4])].concat()).await.unwrap();
    // One slice cut in the middle of another's reset.
    let bytes = [reset(1, PROTOCOL_ERROR), frame(PING, 1, 0, &[0; 8])].concat();
    let (one, two) = bytes.split_at(11);
    let count = server.write_vectored(&[IoSlice::new(one), IoSlice::new(two)]).await.unwrap();
    server.write_all(&bytes[count..]).await.unwrap();
    assert_eq!(*told.lock().unwrap(), [Offence::Head]);
    server.write_all(&reset(1, PROTOCOL_ERROR)).await.unwrap();
    // A request, whose body then is not as long as announced; one that was reset for another cause; one unheard of.
    say(&mut client, &mut server, &[head(3), frame(DATA, 0, 3, b"a"), head(5)].concat()).await.unwrap();
    server
        .write_all(&[reset(3, PROTOCOL_ERROR), reset(5, 8), reset(7, PROTOCOL_ERROR)].concat())
        .await
        .unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_ours_is_told_and_trailers_are_not() {
    let (mut client, mut server, told) = pair();
    say(&mut client, &mut server, &[0; PREFACE]).await.unwrap();
    const WHOLE: u8 = END_STREAM | END_HEADERS;
    let head = |stream| frame(HEADERS, WHOLE, stream, &[1, 2, 3]);
    say(&mut client, &mut server, &[head(1), head(3), head(5), head(7), head(9)].concat()).await.unwrap();
    // 431 as the library says it: a literal, which is remembered, and then by its index.
    for (stream, status) in [(1, &[0x48, 0x82, 0x68, 0x8f][..]), (3, &[0xbe])] {
        told.lock().unwrap().clear();
        for byte in [frame(HEADERS, WHOLE, stream, status), reset(stream, PROTOCOL_ERROR)].concat() {
            server.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(*told.lock().unwrap(), [Offence::Large]);
    }
    told.lock().unwrap().clear();
    // A status and a date; the same with a body; with one field of trailers; what goes on.
    server.write_all(&frame(HEADERS, WHOLE, 5, &[0xbe, 0xbf])).await.unwrap();
    server.write_all(&frame(HEADERS, END_HEADERS, 7, &[0x88, 0xbf])).await.unwrap();
    server.write_all(&frame(HEADERS, WHOLE, 7, &[0xbe])).await.unwrap();
    server.write_all(&frame(HEADERS, END_HEADERS, 9, &[0x88])).await.unwrap();
    assert_eq!(*told.lock().unwrap(), []);
}

#[tokio::test]
async fn a_connection_that_sends_without_pause_gives_way() {
    let (mut client, mut server, _told) = pair();
    let block = frame(DATA, 0, 1, b"a").repeat(usize::try_from(limits::H2_RUN).unwrap());
    client.write_all(&[vec![0; PREFACE], block.repeat(4)].concat()).await.unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut read = 0;
    let mut turns = 0;
    let reading = std::future::poll_fn(|cx| {
        turns += 1;
        loop {
            // As the library reads: a piece, and the next one.
            let mut piece = ReadBuf::new(&mut buf[..8 * 1024]);
            match Pin::new(&mut server).poll_read(cx, &mut piece) {
                Poll::Ready(result) => result.unwrap(),
                Poll::Pending if turns >= 3 => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            read += piece.filled().len();
        }
    });
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("woken by itself");
    assert!(turns == 3 && read > 0, "{turns} turns, {read} bytes");
}
