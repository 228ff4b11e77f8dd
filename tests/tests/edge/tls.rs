//! TLS on both sides, and the address of a client on a dual-stack listener.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portcullis_tests::ca::Ca;
use portcullis_tests::origin::Origin;
use rustls::NamedGroup;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};

use crate::node::{Node, WIKI, status};

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_spoken_and_the_exchange_resists_quantum_computers() {
    let node = Node::start().await;
    let stream = node.connect(WIKI, &["h2", "http/1.1"]).await;
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));

    let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(node.roots())
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(node.address).await.unwrap();
    connector.connect(WIKI.try_into().unwrap(), stream).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv4_client_on_a_dual_stack_listener_gets_the_ipv4_verdict() {
    let recording = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let more = format!(
        "[[policy]]\nname = \"here\"\naction = \"bypass\"\ninclude = [{{ ip = \"127.0.0.0/8\" }}]\n\
         [[application]]\nname = \"near\"\nurl = \"https://near.example.com\"\norigin = \"http://{}\"\npolicies = [\"here\"]\n",
        recording.address()
    );
    let node = Node::start_with(recording, &more).await;
    for (address, code) in [("127.0.0.1", 200), ("::1", 403)] {
        node.origin.clear();
        let address = SocketAddr::new(address.parse().unwrap(), node.dual_stack.port());
        let stream = node.connect_to(address, "near.example.com", &[]).await;
        let fields = "X-Forwarded-For: 127.0.0.1\r\n";
        let response = node.get_on(stream, "near.example.com", "/", fields).await;
        assert_eq!(status(&response), code, "{address}: {response}");
        let seen = node.origin.requests();
        assert_eq!(seen.len(), usize::from(code == 200));
        assert!(seen.iter().all(|request| request.header("x-forwarded-for") == ["127.0.0.1"]), "{seen:?}");
    }
    let events = node.wait_for_events(2).await;
    assert_eq!((&events[0]["ip_address"], &events[1]["ip_address"]), (&"127.0.0.1".into(), &"::1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn origins_are_verified_by_name_and_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new("origin's own").unwrap();
    let ca_file = ca.write(dir.path()).unwrap();
    let origin = tls_origin(&ca, "wiki.internal").await;
    let application = |name: &str, scheme: &str, more: &str| {
        format!(
            "[[application]]\nname = \"{name}\"\nurl = \"https://{name}.example.com\"\n\
             origin = \"{scheme}://{origin}\"\npolicies = [\"anybody\"]\n{more}\n"
        )
    };
    let authority = format!("origin_ca = \"{}\"\n", ca_file.display());
    let name = "origin_server_name = \"wiki.internal\"\n";
    let other_name = "origin_server_name = \"other.internal\"\n";
    let both = format!("{authority}{name}");
    let more = [
        application("verified", "https", &both),
        application("two", "h2", &both),
        application("stranger", "https", name),
        application("misnamed", "https", &format!("{authority}{other_name}")),
        application("unnamed", "https", &authority),
    ]
    .concat();
    let recording = Origin::start(None, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let node = Node::start_with(recording, &more).await;
    for (name, expected) in [
        ("verified", Some("HTTP/1.1 verified.example.com")),
        ("two", Some("HTTP/2.0 two.example.com")),
        ("stranger", None),
        ("misnamed", None),
        ("unnamed", None),
    ] {
        let response = node.get(&format!("{name}.example.com"), "/", "").await;
        match expected {
            Some(text) => assert!(response.ends_with(text), "{name}: {response}"),
            None => {
                assert_eq!(status(&response), 502, "{name}: {response}");
                assert!(!response.contains("127.0.0.1") && !response.contains("internal"), "{response}");
            }
        }
    }
}

/// An origin that speaks TLS as `name`, and says which version and host it was asked with.
async fn tls_origin(ca: &Ca, name: &str) -> SocketAddr {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let issued = ca.issue(&[name]).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async move {
                    let host = match request.uri().host() {
                        Some(host) => host.to_owned(),
                        None => request.headers()["host"].to_str().unwrap().to_owned(),
                    };
                    let text = format!("{:?} {host}", request.version());
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from(text))))
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}
