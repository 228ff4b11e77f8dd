//! Forwards as programs see them: local sockets, through a node of the tunnel's tests, a real connector, real origins.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::access::wire::{NodeInfo, TokenResponse};
use crate::clock;
use crate::tunnel::access_wire::Denial;
use crate::tunnel::grant::Protocol;
use crate::tunnel::tests::ends::node::TestNode;
use crate::tunnel::tests::ends::{Connector, host};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it does not hang")
}

struct World {
    node: TestNode,
    forwards: Forwards,
    _connector: Connector,
    _directory: tempfile::TempDir,
}

/// One application, `app`, that leads to `origin`; whoever is logged in may reach it.
async fn world(protocol: Protocol, origin: SocketAddr) -> World {
    let directory = tempfile::tempdir().unwrap();
    let node = TestNode::start(protocol, host(origin)).await;
    let connector = Connector::start(&node, directory.path(), None).await;
    node.connector().await;
    let profile = Profile::prepare(directory.path(), "https://access.example.com", None).unwrap();
    assert!(Forwards::new(profile.clone()).unwrap_err().to_string().starts_with("logged out"));
    let answer = TokenResponse {
        access_token: "good.to.ken".to_owned(),
        token_type: "DPoP".to_owned(),
        expires_in: 3600,
        refresh_token: "refresh".to_owned(),
        login_expires_in: 36_000,
        person: "ann".to_owned(),
        node: NodeInfo {
            ticket: None,
            address: node.address().to_string(),
            key: node.key().to_string(),
            device: URL_SAFE_NO_PAD.encode([7; 36]),
        },
    };
    profile.keep(&answer, clock::now(), true).unwrap();
    let forwards = Forwards::new(profile).unwrap();
    World { node, forwards, _connector: connector, _directory: directory }
}

fn app() -> Target {
    Target { application: "app".to_owned(), destination: None }
}

/// Sends back what it gets, up to its end, and then says so.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.write_all(b"END").await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_port_leads_to_the_application_and_ends_as_it_does() {
    let world = world(Protocol::Tcp, echo().await).await;
    let forward = world.forwards.listen_tcp(&app(), ANY, Admits::OwnUser).await.unwrap();
    let address = forward.address();
    tokio::spawn(forward.run());
    let sent: Vec<u8> = (0..3_000_000_usize).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let writing = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let reading = async {
        let mut received = Vec::new();
        from.read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), received) = soon(async { tokio::join!(writing, reading) }).await;
    let (echoed, end) = received.split_at(sent.len());
    assert!(echoed == sent && end == b"END", "the answer to the end of input came too");
    let [status] = &world.forwards.status()[..] else { panic!("one forward") };
    assert_eq!((status.listen, status.path.as_deref()), (Some(address), Some("userspace")));
    assert!(status.expires_at.unwrap() > clock::now().0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_denied_is_reset_and_the_port_stays() {
    let world = world(Protocol::Tcp, echo().await).await;
    let forward = world.forwards.listen_tcp(&app(), ANY, Admits::OwnUser).await.unwrap();
    let address = forward.address();
    tokio::spawn(forward.run());
    world.node.state().deny = Some(Denial::NotAllowed);
    let error = world.forwards.prepare(&app()).await.unwrap_err();
    assert_eq!(error.to_string(), "app: this is not for you (0101010101010101)");
    // The reset may be there before the program looks at its connection for the first time.
    let error = match TcpStream::connect(address).await {
        Ok(mut stream) => soon(stream.read(&mut [0; 1])).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.node.state().deny = None;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon(stream.read_u8()).await.unwrap(), b'x');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_on_loopback_takes_no_other_users_connection_unless_it_is_to() {
    use std::os::unix::process::CommandExt as _;

    let world = world(Protocol::Tcp, echo().await).await;
    let says = |address: SocketAddr, uid: Option<u32>| async move {
        let script = format!(
            "import socket\ns = socket.create_connection(('{}', {}), 20)\ns.sendall(b'x')\nprint(s.recv(1) == b'x')",
            address.ip(),
            address.port()
        );
        let mut program = std::process::Command::new("python3");
        program.args(["-c", &script]);
        if let Some(uid) = uid {
            program.uid(uid).current_dir("/");
        }
        let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (String::from_utf8_lossy(&output.stdout).trim() == "True", error)
    };
    for host in ["127.0.0.1:0", "[::1]:0"] {
        for (admits, is_admitted) in [(Admits::OwnUser, false), (Admits::Everybody, true)] {
            let forward = world.forwards.listen_tcp(&app(), host.parse().unwrap(), admits).await.unwrap();
            let address = forward.address();
            let serving = tokio::spawn(forward.run());
            let (passed, error) = says(address, None).await;
            assert!(passed, "one's own: {error}");
            let (passed, error) = says(address, Some(65_534)).await;
            assert_eq!(passed, is_admitted, "{host} {admits:?}: {error}");
            assert!(passed || error.contains("ConnectionResetError"), "{error}");
            serving.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_peer_of_a_udp_port_is_a_flow_of_its_own() {
    let origin = UdpSocket::bind(ANY).await.unwrap();
    let address = origin.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = origin.recv_from(&mut buffer).await {
            origin.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let world = world(Protocol::Udp, address).await;
    let forward = world.forwards.listen_udp(&app(), ANY).unwrap();
    let address = forward.address();
    tokio::spawn(forward.run());
    let mut peers = Vec::new();
    for _ in 0..20 {
        let peer = UdpSocket::bind(ANY).await.unwrap();
        peer.connect(address).await.unwrap();
        peers.push(peer);
    }
    for length in [1, 1200, 40_000] {
        for (n, peer) in peers.iter().enumerate() {
            let payload = vec![u8::try_from(n).unwrap(); length];
            peer.send(&payload).await.unwrap();
            let mut buffer = vec![0; 65_536];
            let received = soon(peer.recv(&mut buffer)).await.unwrap();
            assert!(buffer[..received] == payload, "{received} of {length} bytes");
        }
    }
    assert_eq!(world.forwards.status()[0].connections, 20);
}

impl stdio::End for DuplexStream {
    fn end(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_output_are_one_connection() {
    let world = world(Protocol::Tcp, echo().await).await;
    let (session, send, recv) = open_tcp(&world.forwards.client, &app()).await.unwrap();
    let (input, mut types) = tokio::io::duplex(1000);
    let (output, mut shown) = tokio::io::duplex(1000);
    let carried = tokio::spawn(stdio::carry(input, output, send, recv));
    types.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    soon(shown.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"hello");
    drop(types);
    let mut rest = Vec::new();
    soon(shown.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"END");
    assert_eq!(soon(carried).await.unwrap(), Ok(()));

    // And one that is cut ends with an error, not as if all had come.
    let (send, recv) = session.open_tcp().await.unwrap();
    let (input, mut types) = tokio::io::duplex(1000);
    let (output, mut shown) = tokio::io::duplex(1000);
    let carried = tokio::spawn(stdio::carry(input, output, send, recv));
    types.write_all(b"x").await.unwrap();
    soon(shown.read_u8()).await.unwrap();
    world.node.end(world.node.live()[0], crate::tunnel::wire::EndReason::Revoked);
    assert!(soon(carried).await.unwrap().is_err());
}
