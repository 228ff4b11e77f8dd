//! Who gets through, with which header fields, and the one event of every request.

use portcullis::flow::{Facts, Host};
use portcullis::policy::{Decision, PolicySet, decide};

use crate::node::{Node, WIKI, field, read_to_end, status, write};

/// The event that a request left: exactly one.
async fn only_event(node: &Node) -> serde_json::Value {
    let events = node.wait_for_events(1).await;
    assert_eq!(events.len(), 1, "{events:#?}");
    events.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_reaches_the_application_and_it_learns_who_asks() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let fields = format!(
        "Cookie: a=1; {}; b=2\r\nCf-Access-Jwt-Assertion: forged\r\nCF_ACCESS_JWT_ASSERTION: forged\r\n\
         Cf-Access-Authenticated-User-Email: eve@example.com\r\nX-Forwarded-For: 10.0.0.1\r\n\
         X_Forwarded_For: 10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-Own: kept\r\n",
        ann.cookies()
    );
    let response = node.get("WIKI.Example.com.", "/%61?q=%2F", &fields).await;
    assert_eq!(status(&response), 200, "{response}");

    let requests = node.origin.requests();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(request.target, "/a?q=%2F");
    assert_eq!(request.header("cf-access-jwt-assertion"), [ann.token.as_str()]);
    assert_eq!(request.header("cf-access-authenticated-user-email"), ["ann@example.com"]);
    assert_eq!(request.header("cookie"), [format!("CF_Authorization={}; a=1; b=2", ann.token)]);
    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header("x-forwarded-proto"), ["https"]);
    assert_eq!(request.header("x-forwarded-host"), [WIKI]);
    assert_eq!(request.header("host"), [WIKI]);
    assert_eq!(request.header("x-own"), ["kept"]);
    let text = format!("{:?}", request.headers);
    for gone in ["forged", "eve@", "10.0.0.1", &ann.binding, "connection"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }

    let event = only_event(&node).await;
    assert_eq!(event["action"], "request");
    assert_eq!(event["allowed"], true);
    assert_eq!(event["user_email"], "ann@example.com");
    assert_eq!(event["app_name"], "wiki");
    assert_eq!(event["policy"], "people");
    assert_eq!(event["status"], 200);
    assert_eq!(event["path"], "/a");
    assert_eq!(event["method"], "GET");
    assert_eq!(event["ip_address"], "127.0.0.1");
    assert_eq!(request.header("cf-ray"), [event["ray_id"].as_str().unwrap()]);
    assert!(event["bytes"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_cannot_name_the_assertion_away() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {WIKI}\r\nCookie: {}\r\nX-Hop: 1\r\n\
         Connection: close, x-hop, cf-access-jwt-assertion, cookie, x-forwarded-for\r\n\r\n",
        ann.cookies()
    );
    assert_eq!(status(&node.raw(WIKI, request.as_bytes()).await), 200);
    let requests = node.origin.requests();
    assert_eq!(requests[0].header("cf-access-jwt-assertion"), [ann.token.as_str()]);
    assert_eq!(requests[0].header("x-forwarded-for"), ["127.0.0.1"]);
    assert!(requests[0].header("x-hop").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_proof_gets_through() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let bob = node.log_in(WIKI).await;
    let ended = node.log_in(WIKI).await;
    node.revoke(&ended).await;
    let other = Host::parse("other.example.com").unwrap();
    let of_other = node.token_for(&ann.live, &other);
    let binding_of_other = node.context.tokens.binding(&ann.live.session.id, &other);
    let global = node.context.tokens.mint_global(&ann.live.session, portcullis::clock::now()).unwrap();
    let mut tampered = ann.token.clone();
    tampered.replace_range(tampered.len() - 4.., "AAAA");
    let cookies = |token: &str, binding: &str| {
        format!("Cookie: CF_Authorization={token}; __Host-CF_Binding={binding}\r\n")
    };
    for (fields, reason) in [
        (String::new(), "no_session"),
        (format!("Cookie: __Host-CF_Binding={}\r\n", ann.binding), "no_session"),
        (format!("Cf-Access-Jwt-Assertion: {}\r\n", ann.token), "no_session"),
        (cookies("x", &ann.binding), "bad_token"),
        (cookies(&tampered, &ann.binding), "bad_token"),
        (cookies(&of_other, &ann.binding), "bad_token"),
        (cookies(&global, &ann.binding), "bad_token"),
        (format!("Cookie: CF_Authorization={}\r\n", ann.token), "bad_binding"),
        (cookies(&ann.token, &bob.binding), "bad_binding"),
        (cookies(&ann.token, &binding_of_other), "bad_binding"),
        (cookies(&ended.token, &ended.binding), "session_ended"),
    ] {
        let before = node.events().await.len();
        let response = node.get(WIKI, "/", &fields).await;
        assert_eq!(status(&response), 302, "{reason}: {response}");
        assert!(field(&response, "location").unwrap().contains("/cdn-cgi/access/login"), "{response}");
        let events = node.wait_for_events(before + 1).await;
        assert_eq!(events.len(), before + 1, "{reason}");
        let event = events.last().unwrap();
        assert_eq!(event["reason"], reason, "{fields}");
        assert_eq!(event["allowed"], false);
        assert_eq!(event["status"], 302);
    }
    assert_eq!(node.origin.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tossed_cookie_does_not_evict_the_real_one() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    for order in [
        format!("CF_Authorization=tossed; {}; __Host-CF_Binding=tossed", ann.cookies()),
        format!("__Host-CF_Binding=tossed; {}; CF_Authorization=tossed", ann.cookies()),
    ] {
        let response = node.get(WIKI, "/", &format!("Cookie: {order}\r\n")).await;
        assert_eq!(status(&response), 200);
    }
    for request in node.origin.requests() {
        assert_eq!(request.header("cookie"), [format!("CF_Authorization={}", ann.token)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_says_nothing_about_anybody() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    // A token for this very application, from when a policy of it still asked who people are.
    let active = node.context.active();
    let mut before = portcullis::flow::Application::clone(active.policies.application("open").unwrap());
    before.policies = vec!["people".into()];
    let policies = PolicySet::new(vec![before.clone()], active.config.policies.clone());
    let facts = Facts {
        application: &before,
        session: Some(&ann.live.session),
        service: None,
        address: [127, 0, 0, 1].into(),
    };
    let Decision::Allow(permit) = decide(&policies, &facts, portcullis::clock::now()) else {
        panic!("allowed")
    };
    let tokens = &node.context.tokens;
    let token = tokens.mint_application(&permit, portcullis::clock::now()).unwrap().unwrap();
    let binding = tokens.binding(&ann.live.session.id, &Host::parse("open.example.com").unwrap());
    let cookies = format!("CF_Authorization={token}; __Host-CF_Binding={binding}");
    let fields = format!("Cookie: {cookies}; a=1\r\nCf-Access-Jwt-Assertion: x\r\n");
    let response = node.get("open.example.com", "/", &fields).await;
    assert_eq!(status(&response), 200);
    let requests = node.origin.requests();
    assert_eq!(requests[0].header("cookie"), ["a=1"]);
    for name in ["cf-access-jwt-assertion", "cf-access-authenticated-user-email"] {
        assert!(requests[0].header(name).is_empty(), "{name}");
    }
    let event = only_event(&node).await;
    assert_eq!(event["allowed"], true);
    assert!(event["user_email"].is_null() && event["session_id"].is_null(), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_why_and_leaves_one_event() {
    let node = Node::start().await;
    let ann = node.log_in(WIKI).await;
    let cookie_for = |host: &str| {
        let host = Host::parse(host).unwrap();
        let token = node.token_for(&ann.live, &host);
        let binding = node.context.tokens.binding(&ann.live.session.id, &host);
        format!("Cookie: CF_Authorization={token}; __Host-CF_Binding={binding}\r\n")
    };
    let cases = [
        ("closed.example.com", String::new(), 403, "no_policy", false),
        ("unknown.example.com", String::new(), 404, "no_application", false),
        ("down.example.com", cookie_for("down.example.com"), 502, "origin_down", true),
        ("gone.example.com", cookie_for("gone.example.com"), 503, "connector_gone", true),
    ];
    for (number, (host, fields, code, reason, allowed)) in cases.into_iter().enumerate() {
        let response = node.get(host, "/", &fields).await;
        assert_eq!(status(&response), code, "{host}: {response}");
        assert!(field(&response, "strict-transport-security").is_some(), "{host}");
        assert_eq!(field(&response, "retry-after").is_some(), code == 503, "{host}");
        assert!(!response.contains("127.0.0.1") && !response.contains("10.0.0.5"), "{response}");
        let events = node.wait_for_events(number + 1).await;
        assert_eq!(events.len(), number + 1, "{host}");
        let event = &events[number];
        assert_eq!(event["reason"], reason, "{event}");
        assert_eq!(event["allowed"], allowed, "{event}");
        assert_eq!(event["status"], code, "{event}");
        assert!(response.contains(event["ray_id"].as_str().unwrap()), "the page shows the ray id");
    }
    assert_eq!(node.origin.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_head_has_no_body() {
    let node = Node::start().await;
    let request = "HEAD / HTTP/1.1\r\nHost: unknown.example.com\r\nConnection: close\r\n\r\n";
    let response = node.raw(WIKI, request.as_bytes()).await;
    assert_eq!(status(&response), 404);
    assert!(response.ends_with("\r\n\r\n"), "{response}");
    assert_ne!(field(&response, "content-length"), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_only_the_names_of_its_certificate() {
    let node = Node::start().await;
    for (sni, host, code) in [
        ("wiki.example.com", "other.example.com", 302),
        ("wiki.example.com", "wiki.example.net", 421),
        ("wiki.example.net", "wiki.example.net", 302),
        ("wiki.example.net", "wiki.example.com", 421),
        ("wiki.example.com", "127.0.0.1", 421),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let response = node.raw(sni, request.as_bytes()).await;
        assert_eq!(status(&response), code, "{sni} {host}");
    }
    let misdirected =
        node.wait_for_events(5).await.iter().filter(|event| event["reason"] == "misdirected").count();
    assert_eq!(misdirected, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_certificates_is_for_new_connections() {
    let node = Node::start().await;
    let mut old = node.connect(WIKI, &[]).await;
    let files = node.context.active().config.node.certificates.clone();
    node.tls.reload(&files[1..]).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {WIKI}\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&node.raw("wiki.example.net", request.as_bytes()).await), 421);
    write(&mut old, request).await.unwrap();
    assert_eq!(status(&read_to_end(&mut old).await), 302);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_slash_passes_where_the_application_says_so() {
    let node = Node::start().await;
    let host = "slashes.example.com";
    let ann = node.log_in(host).await;
    let fields = format!("Cookie: {}\r\n", ann.cookies());
    assert_eq!(status(&node.get(host, "/a%2fb", &fields).await), 200);
    assert_eq!(node.origin.requests()[0].target, "/a%2Fb");
    assert_eq!(status(&node.get(host, "/a/..%2fb", &fields).await), 400);
    assert_eq!(node.origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_portal_gets_bounded_requests_on_every_host() {
    let node = Node::start().await;
    for host in ["access.example.com", WIKI] {
        let response = node.get(host, "/cdn-cgi/access/certs", "").await;
        assert_eq!(status(&response), 200, "{host}: {response}");
    }
    let length = 64 * 1024 + 1;
    let request = format!(
        "POST /cdn-cgi/access/login HTTP/1.1\r\nHost: access.example.com\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{}",
        "a".repeat(length)
    );
    let response = node.raw("access.example.com", request.as_bytes()).await;
    assert_eq!(status(&response), 413, "{response}");
    let unknown = node.get("unknown.example.com", "/cdn-cgi/access/certs", "").await;
    assert_eq!(status(&unknown), 404);
    assert_eq!(node.origin.requests(), []);
}
