use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::Active;
use crate::event::EventSettings;
use crate::store::{EventFilter, Store};

const PROTOCOL: &str = "urn:oasis:names:tc:SAML:2.0:protocol";

/// Who publishes metadata of an identity provider at `/idp` and of an application at `/sp`, while it does.
async fn publisher(up: Arc<Mutex<bool>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let pem = rcgen::CertificateParams::default().self_signed(&pair).unwrap().pem();
    let certificate: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let service = |name: &str, binding: &str, place: &str| {
        format!("<{name} Binding='urn:oasis:names:tc:SAML:2.0:bindings:{binding}' Location='{place}'/>")
    };
    let entity = |id: &str, role: &str, inside: String| {
        format!(
            "<EntityDescriptor xmlns='urn:oasis:names:tc:SAML:2.0:metadata' entityID='{id}'><{role} \
             protocolSupportEnumeration='{PROTOCOL}'>{inside}</{role}></EntityDescriptor>"
        )
    };
    let key = format!(
        "<KeyDescriptor><KeyInfo xmlns='http://www.w3.org/2000/09/xmldsig#'><X509Data><X509Certificate>{certificate}\
         </X509Certificate></X509Data></KeyInfo></KeyDescriptor>"
    );
    let sign_on = service("SingleSignOnService", "HTTP-Redirect", "https://idp.example/sso");
    let idp = entity("urn:idp", "IDPSSODescriptor", key + &sign_on);
    let consumer = service("AssertionConsumerService", "HTTP-POST", "https://sp.example/acs");
    let sp = entity("urn:sp", "SPSSODescriptor", consumer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 2048];
            let read = stream.read(&mut request).await.unwrap_or_default();
            let body = if request[..read].starts_with(b"GET /idp") { &idp } else { &sp };
            let status = if *up.lock().unwrap() { "200 OK" } else { "503 Away" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close", body.len());
            let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
        }
    });
    url
}

fn config(directory: &std::path::Path, idp: &str, sp: &str) -> Active {
    std::fs::write(directory.join("file"), "x").unwrap();
    let text = format!(
        "[node]\ndomain = \"access.example.com\"\nlisten = \"[::]:443\"\n[[node.certificate]]\ncert = \"file\"\nkey = \
         \"file\"\n[gate]\ndataplane = \"userspace\"\nungated = true\n[[policy]]\nname = \"staff\"\naction = \
         \"allow\"\ninclude = [{{ everyone = true }}]\n[[identity_provider]]\nname = \"adfs\"\ntype = \"saml\"\nmetadata = \
         \"{idp}\"\n[[application]]\nname = \"crm\"\ntype = \"saas\"\npolicies = [\"staff\"]\nsaml = {{ metadata = {sp} }}\n"
    );
    Active::new(Config::parse(&text, &directory.join("node.toml")).unwrap())
}

fn crm(active: &Active) -> SamlApplication {
    match &active.policies.application("crm").unwrap().kind {
        Kind::Saas(crate::flow::Saas { protocol: SaasProtocol::Saml(saml), .. }) => saml.clone(),
        _ => panic!(),
    }
}

#[tokio::test]
async fn a_reload_keeps_documents_whose_place_stays() {
    let up = Arc::new(Mutex::new(true));
    let url = publisher(Arc::clone(&up)).await;
    let directory = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let store = Store::open(directory.path()).unwrap();
    let settings = EventSettings { file: None, retention: Duration::from_secs(3600), max_size: 1 << 20 };
    let events = Events::start(settings, store.clone(), Arc::clone(&metrics)).unwrap();
    let metadata = Metadata::default();
    let (idp, sp) = (format!("{url}/idp"), format!("\"{url}/sp\""));
    let first = config(directory.path(), &idp, &sp);
    metadata.configure(&first.config, &events, &metrics).unwrap();
    metadata.renew().await;
    *up.lock().unwrap() = false;

    let now = clock::now();
    let again = config(directory.path(), &idp, &sp);
    metadata.configure(&again.config, &events, &metrics).unwrap();
    assert_eq!(metadata.service(&crm(&again), now).await.unwrap().entity_id, "urn:sp");
    let provider = metadata.provider("adfs").unwrap();
    assert_eq!(provider.current(now).await.unwrap().entity_id, "urn:idp");

    // What is configured otherwise is asked for anew, and what is not configured any more is nobody's.
    let other = config(directory.path(), &format!("{idp}/other"), &format!("{sp}, entity_id = \"urn:sp\""));
    metadata.configure(&other.config, &events, &metrics).unwrap();
    assert!(metadata.provider("adfs").unwrap().current(now).await.is_err());
    assert_eq!(metadata.service(&crm(&other), now).await, Err(Unpublished::Status(503)));
    assert_eq!(metadata.service(&crm(&again), now).await, Err(Unpublished::Unknown));

    let text = metrics.render().unwrap();
    for (kind, name) in [("identity provider", "adfs"), ("application", "crm")] {
        for result in ["good", "failed"] {
            let line = format!(
                "portcullis_metadata_fetches_total{{kind=\"{kind}\",name=\"{name}\",result=\"{result}\"}} 1\n"
            );
            assert!(text.contains(&line), "{line} not in\n{text}");
        }
    }
    events.flush().await;
    let filter = EventFilter { limit: 10, ..EventFilter::default() };
    let told = store.events(filter).await.unwrap().all().await.unwrap();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().all(|(_, event)| event.contains("cannot be fetched: metadata: status 503")),
        "{told:?}"
    );
}
