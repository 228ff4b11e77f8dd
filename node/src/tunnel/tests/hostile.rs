//! Peers that cheat: each is refused, says nothing to an origin, and leaves an event.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::client::ResolvesClientCert;
use quinn::rustls::crypto::CryptoProvider;
use quinn::rustls::pki_types::PrivateKeyDer;
use quinn::rustls::sign::{CertifiedKey, Signer, SigningKey};
use quinn::rustls::{self, SignatureAlgorithm, SignatureScheme};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Duration, Instant};

use super::lab::{Lab, TestOrigin, soon, web};
use crate::clock;
use crate::tunnel::OpenError;
use crate::tunnel::admission::PLACES_OF_NETWORK;
use crate::tunnel::control::{self, FrameReader};
use crate::tunnel::enrolment::node_key;
use crate::tunnel::identity::{PinnedNode, SERVER_NAME, TunnelKey};
use crate::tunnel::session::OPENING_TIMEOUT;
use crate::tunnel::transport::{STREAM_WINDOW, connector_config};
use crate::tunnel::wire::{
    ALPN, CloseCode, ConnectorFrame, EnrolmentSecret, Frame, NodeFrame, OpenReply, OpenRequest, Refusal,
};

fn new_key() -> TunnelKey {
    TunnelKey::from_pkcs8(TunnelKey::generate().unwrap()).unwrap()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What a forger may choose about its handshake.
async fn forged(
    lab: &Lab,
    alpn: &[u8],
    certificate: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Connection, ConnectionError> {
    let node = node_key(&lab.node.store).await.unwrap().hash();
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedNode { node, provider: provider() }));
    let mut tls = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => builder.with_client_cert_resolver(certificate),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    dial(lab.address, client).await
}

async fn dial(node: SocketAddr, client: ClientConfig) -> Result<Connection, ConnectionError> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    soon(endpoint.connect_with(client, node, SERVER_NAME).unwrap()).await
}

/// A peer with a good handshake and this key.
async fn peer(lab: &Lab, key: &TunnelKey) -> Connection {
    let node = node_key(&lab.node.store).await.unwrap().hash();
    dial(lab.address, connector_config(key, node).unwrap()).await.unwrap()
}

/// A key that the node knows as `hq`.
async fn enrolled_key(lab: &Lab) -> TunnelKey {
    let (key, secret) = (new_key(), EnrolmentSecret::from_bytes(clock::random()));
    let store = &lab.node.store;
    let now = clock::now();
    store.create_connector("hq", secret.hash(), now.after(Duration::from_secs(60)), now).await.unwrap();
    store.enrol_connector(secret.hash(), *key.hash().as_bytes(), now).await.unwrap().unwrap();
    key
}

async fn control(connection: &Connection) -> (SendStream, FrameReader) {
    let (send, recv) = connection.open_bi().await.unwrap();
    (send, FrameReader::new(recv))
}

/// How the node closed the connection.
async fn close_code(connection: &Connection) -> VarInt {
    match soon(connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code,
        other => panic!("{other:?}"),
    }
}

/// A connector of our own making, in service.
async fn serving(lab: &Lab) -> (Connection, SendStream, FrameReader) {
    let connection = peer(lab, &enrolled_key(lab).await).await;
    let (mut send, mut reader) = control(&connection).await;
    control::send(&mut send, &ConnectorFrame::Hello).await.unwrap();
    assert!(matches!(soon(reader.next()).await.unwrap(), Some(NodeFrame::Welcome { .. })));
    lab.connected(1).await;
    (connection, send, reader)
}

fn is_refused_handshake(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(_) | ConnectionError::TransportError(_))
}

#[tokio::test]
async fn without_a_certificate_there_is_no_tunnel() {
    let lab = Lab::start().await;
    // The client finishes its side of the handshake first, so the refusal may come right after.
    match forged(&lab, ALPN, None).await {
        Err(error) => assert!(is_refused_handshake(&error), "{error:?}"),
        Ok(connection) => {
            let error = soon(connection.closed()).await;
            assert!(is_refused_handshake(&error), "{error:?}");
        }
    }
    lab.logged("\"bad_request\"", 1).await;
}

#[tokio::test]
async fn a_foreign_protocol_is_refused() {
    let lab = Lab::start().await;
    let error = forged(&lab, b"h3", None).await.unwrap_err();
    assert!(is_refused_handshake(&error), "{error:?}");
    lab.logged("\"bad_request\"", 1).await;
}

/// Shows one certificate and signs with the key of another.
#[derive(Debug)]
struct Stolen {
    certificate: Arc<CertifiedKey>,
}

#[derive(Debug)]
struct ForeignSigner(Arc<dyn SigningKey>);

impl SigningKey for ForeignSigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(offered)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl ResolvesClientCert for Stolen {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certificate))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Certificates are no secrets: an enrolled connector's, without its key, must be worth nothing.
#[tokio::test]
async fn a_certificate_without_its_key_is_refused() {
    let lab = Lab::start().await;
    let victim = enrolled_key(&lab).await;
    let private: PrivateKeyDer<'static> = new_key().private_key();
    let signer = provider().key_provider.load_private_key(private).unwrap();
    let certificate = Arc::new(CertifiedKey::new(victim.chain(), Arc::new(ForeignSigner(signer))));
    if let Ok(connection) = forged(&lab, ALPN, Some(Arc::new(Stolen { certificate }))).await {
        let error = soon(connection.closed()).await;
        assert!(is_refused_handshake(&error), "{error:?}");
    }
    assert!(lab.node.registry.connectors().is_empty());
    lab.logged("\"bad_request\"", 1).await;
}

/// A token whose holder has a good key already must not wait for whoever finds it.
#[tokio::test]
async fn a_token_that_its_connector_did_not_need_is_spent_and_anothers_is_not() {
    let lab = Lab::start().await;
    let key = enrolled_key(&lab).await;
    let spare = lab.token("hq").await.secret;
    let foreign = lab.token("office").await.secret;
    for secret in [&spare, &foreign] {
        let connection = peer(&lab, &key).await;
        let (mut send, mut reader) = control(&connection).await;
        control::send(&mut send, &ConnectorFrame::Enrol(secret.clone())).await.unwrap();
        let welcome = soon(reader.next::<NodeFrame>()).await.unwrap();
        assert!(matches!(&welcome, Some(NodeFrame::Welcome { connector }) if connector.as_str() == "hq"));
    }
    let mut redeemed = Vec::new();
    for secret in [spare, foreign] {
        let stranger = *new_key().hash().as_bytes();
        let connector = lab.node.store.enrol_connector(secret.hash(), stranger, clock::now()).await.unwrap();
        redeemed.push(connector.map(|connector| connector.name));
    }
    assert_eq!(redeemed, [None, Some("office".to_owned())]);
}

#[tokio::test]
async fn an_unknown_key_gets_no_further_than_its_first_frame() {
    let lab = Lab::start().await;
    let connection = peer(&lab, &new_key()).await;
    let (mut send, mut reader) = control(&connection).await;
    control::send(&mut send, &ConnectorFrame::Hello).await.unwrap();
    let answer = soon(reader.next::<NodeFrame>()).await.unwrap();
    assert_eq!(answer, Some(NodeFrame::Refused(Refusal::UnknownKey)));
    drop(send);
    assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Refused));
    lab.logged("\"unknown_connector\"", 1).await;
    assert!(lab.node.registry.connectors().is_empty());
}

/// Revoked after the node looked its key up, before it is in service: nothing is registered yet that could be cut.
#[tokio::test]
async fn a_revocation_between_handshake_and_hello_counts() {
    let lab = Lab::start().await;
    let connection = peer(&lab, &enrolled_key(&lab).await).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.node.store.revoke_connector("hq", clock::now()).await.unwrap();
    lab.node.registry.disconnect("hq");
    let (mut send, _reader) = control(&connection).await;
    control::send(&mut send, &ConnectorFrame::Hello).await.unwrap();
    assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Refused));
    assert!(lab.node.registry.connectors().is_empty());
    lab.logged("\"unknown_connector\"", 1).await;
}

/// A key that proves itself and then says nothing holds its place for a bounded time.
#[tokio::test]
async fn a_silent_peer_is_cut() {
    let lab = Lab::start().await;
    let (without_stream, without_frame) = (peer(&lab, &new_key()).await, peer(&lab, &new_key()).await);
    let (mut send, _reader) = control(&without_frame).await;
    // The beginning of a frame, which makes the stream known to the node.
    send.write_all(&[0, 0]).await.unwrap();
    let both = async { (close_code(&without_stream).await, close_code(&without_frame).await) };
    let timed_out = VarInt::from(CloseCode::Timeout);
    assert_eq!(soon(both).await, (timed_out, timed_out));
    lab.logged("\"bad_request\"", 2).await;
}

#[tokio::test]
async fn guessed_tokens_enrol_nobody() {
    let lab = Lab::start().await;
    lab.token("hq").await;
    let connection = peer(&lab, &new_key()).await;
    let (mut send, mut reader) = control(&connection).await;
    let guess = EnrolmentSecret::from_bytes([0; 32]);
    control::send(&mut send, &ConnectorFrame::Enrol(guess)).await.unwrap();
    let answer = soon(reader.next::<NodeFrame>()).await.unwrap();
    assert_eq!(answer, Some(NodeFrame::Refused(Refusal::BadToken)));
    lab.logged("\"bad_enrolment\"", 1).await;
}

/// Bytes that are no frame, from a stranger and from an enrolled connector.
#[tokio::test]
async fn malformed_and_oversized_frames_end_the_connection() {
    let lab = Lab::start().await;
    let enrolled = enrolled_key(&lab).await;
    let oversized = (u32::try_from(ConnectorFrame::LIMIT).unwrap() + 1).to_be_bytes();
    let bad: [&[u8]; 5] =
        [&oversized, &u32::MAX.to_be_bytes(), &[0, 0, 0, 1, 0xff], &[0, 0, 0, 0], &[0, 0, 0, 2, 0, 0]];
    for key in [&new_key(), &enrolled] {
        for bytes in bad {
            let connection = peer(&lab, key).await;
            let (mut send, _reader) = control(&connection).await;
            send.write_all(bytes).await.unwrap();
            assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Protocol), "{bytes:?}");
        }
        // Cut off inside a frame.
        let connection = peer(&lab, key).await;
        let (mut send, _reader) = control(&connection).await;
        send.write_all(&[0, 0, 0, 1]).await.unwrap();
        send.finish().unwrap();
        assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Protocol));
    }
    lab.logged("\"bad_request\"", 12).await;
    // In service, too.
    let (connection, mut send, _reader) = serving(&lab).await;
    send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Protocol));
    lab.connected(0).await;
    lab.logged("\"bad_request\"", 13).await;
}

#[tokio::test]
async fn a_connector_may_open_one_stream_and_no_datagrams() {
    let lab = Lab::start().await;
    let (connection, _send, _reader) = serving(&lab).await;
    let another = tokio::time::timeout(Duration::from_millis(300), connection.open_bi()).await;
    assert!(another.is_err(), "a second stream was granted");
    let another = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(another.is_err(), "a unidirectional stream was granted");
    assert!(connection.max_datagram_size().is_none());
}

#[tokio::test]
async fn a_stranger_cannot_make_the_node_hold_more_than_its_window() {
    let lab = Lab::start().await;
    let connection = peer(&lab, &new_key()).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    // A header that promises more keeps the reader waiting; what follows must not be taken without bound. The node
    // refuses the header, so all that could be written is what its window granted before.
    let mut written = 0;
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_millis(500), send.write(&[0; 4096])).await {
        written += count;
    }
    assert!(written <= 64 * 1024, "{written} bytes were granted");
}

/// Whoever does not read makes an end hold a window for each stream, and nothing else does: at the node what origins send,
/// at the connector what people do.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_their_windows_and_no_more() {
    const STREAMS: usize = 24;
    let lab = Lab::start().await;
    let (connector, _send, _reader) = serving(&lab).await;
    let node = lab.node.registry.links("hq")[0].connection.clone();
    let (mut of_node, mut of_connector) = (Vec::new(), Vec::new());
    for _ in 0..STREAMS {
        let (mut send, recv) = node.open_bi().await.unwrap();
        send.write_all(b"?").await.unwrap();
        of_node.push((send, recv));
        of_connector.push(soon(connector.accept_bi()).await.unwrap());
    }
    for streams in [&mut of_node, &mut of_connector] {
        let (mut held, mut before) = (0, None);
        while before != Some(held) {
            before = Some(held);
            for (send, _) in &mut *streams {
                let moment = Duration::from_millis(2);
                while let Ok(written) = tokio::time::timeout(moment, send.write(&[7; 65_536])).await {
                    held += written.unwrap();
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        // What opened them counts as well.
        let most = STREAMS * STREAM_WINDOW as usize;
        assert!(held <= most && held >= most - STREAMS, "{held} of {most}");
    }
}

/// Asked past the node's registry, so that the check under test is the connector's own.
#[tokio::test]
async fn a_connector_dials_nothing_that_was_not_configured() {
    let lab = Lab::start().await;
    let (configured, hidden) = (TestOrigin::echo().await, TestOrigin::echo().await);
    let connector = lab.connector().await;
    drop(lab.open(configured.address).await);
    let link = lab.node.registry.links("hq")[0].connection.clone();
    let ask = async |epoch: u64, origin: &str| {
        let (mut send, recv) = link.open_bi().await.unwrap();
        let request = OpenRequest { epoch, origin: origin.parse().unwrap() };
        control::send(&mut send, &request).await.unwrap();
        soon(FrameReader::new(recv).next::<OpenReply>()).await.unwrap()
    };
    let hidden_authority = hidden.address.to_string();
    assert_eq!(ask(0, &hidden_authority).await, Some(OpenReply::Refused));
    assert_eq!(ask(1, &format!("localhost:{}", configured.address.port())).await, Some(OpenReply::Refused));
    assert_eq!(ask(1, &configured.address.to_string()).await, Some(OpenReply::Opened));
    assert_eq!(hidden.count(), 0);

    // What is no request at all resets that stream and no other.
    for bytes in [&u32::MAX.to_be_bytes()[..], &[0, 0, 0, 1, 0xff], b"GET / HTTP/1.1\r\n\r\n"] {
        let (mut send, mut recv): (SendStream, RecvStream) = link.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        assert!(soon(recv.read_u8()).await.is_err());
    }
    drop(lab.open(configured.address).await);
    connector.stop().await;
}

/// An enrolled connector that answers an open request with nonsense, or not at all.
#[tokio::test]
async fn a_connector_that_answers_nonsense_is_cut() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let permit = lab.permit(origin.address);
    let (connection, _send, _reader) = serving(&lab).await;
    let answers = async {
        let (mut send, _recv) = connection.accept_bi().await.unwrap();
        send.write_all(&[0xff; 16]).await.unwrap();
    };
    let (opened, ()) = soon(async { tokio::join!(lab.node.registry.open(web(&permit)), answers) }).await;
    assert_eq!(opened.unwrap_err(), OpenError::ConnectorGone);
    assert_eq!(close_code(&connection).await, VarInt::from(CloseCode::Protocol));
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn a_connection_lost_while_opening_is_made_up_for_by_another() {
    let lab = Lab::start().await;
    let origin = TestOrigin::echo().await;
    let permit = lab.permit(origin.address);
    let key = enrolled_key(&lab).await;
    let (dying, living) = (peer(&lab, &key).await, peer(&lab, &key).await);
    let mut controls = Vec::new();
    for connection in [&dying, &living] {
        let (mut send, reader) = control(connection).await;
        control::send(&mut send, &ConnectorFrame::Hello).await.unwrap();
        controls.push((send, reader));
    }
    lab.connected(2).await;
    tokio::spawn(async move {
        let _stream = dying.accept_bi().await;
        dying.close(0_u8.into(), b"");
    });
    let answers = tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Ok((mut send, recv)) = living.accept_bi().await {
            control::send(&mut send, &OpenReply::Opened).await.unwrap();
            streams.push((send, recv));
        }
    });
    // The second is opened while the first is in use, so both connections are asked.
    let first = soon(lab.node.registry.open(web(&permit))).await.unwrap();
    let second = soon(lab.node.registry.open(web(&permit))).await.unwrap();
    lab.connected(1).await;
    drop((first, second, controls));
    answers.abort();
}

/// Strangers of one network fill its places, by Retry from some point on, and are then refused; a connector in another
/// network comes through meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_keeps_no_connector_out() {
    const STRANGERS: usize = 100;
    let lab = Lab::start().await;
    let node = node_key(&lab.node.store).await.unwrap().hash();
    let client = connector_config(&new_key(), node).unwrap();
    let endpoint = Endpoint::client((Ipv4Addr::new(127, 0, 1, 1), 0).into()).unwrap();
    let handshakes: Vec<_> = (0..STRANGERS)
        .map(|_| endpoint.connect_with(client.clone(), lab.address, SERVER_NAME).unwrap())
        .map(tokio::spawn)
        .collect();
    let mut silent = Vec::new();
    let mut refused = 0;
    let began = Instant::now();
    for handshake in handshakes {
        match soon(handshake).await.unwrap() {
            Ok(connection) => silent.push(connection),
            Err(_) => refused += 1,
        }
    }
    // Who says nothing has to leave after a while, and his place is given again.
    let times = began.elapsed().as_secs() / OPENING_TIMEOUT.as_secs() + 1;
    let most = PLACES_OF_NETWORK * usize::try_from(times).unwrap();
    assert!(silent.len() <= most, "{} places were given in {:?}", silent.len(), began.elapsed());
    assert_eq!(silent.len() + refused, STRANGERS);
    let connector = lab.connector().await;
    connector.stop().await;
    assert!(!silent.is_empty());
}
