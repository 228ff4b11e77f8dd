use super::*;

const TOLD: Told<'static> = Told {
    origin_host: "wiki.example.com",
    public_host: "wiki.example.com",
    address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
    ray: RayId::from_bytes([1; 8]),
    bearer: Some(("a.b.c", Some("ann@example.com"))),
};

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    headers
}

fn to_origin(fields: &[(&str, &str)], told: &Told<'_>) -> HeaderMap {
    let mut headers = map(fields);
    for_origin(&mut headers, told, false).unwrap();
    headers
}

#[test]
fn an_identity_from_outside_never_arrives() {
    let forged: Vec<(&str, &str)> = [
        "Cf-Access-Jwt-Assertion",
        "CF_ACCESS_JWT_ASSERTION",
        "cf.access.jwt.assertion",
        "cf-access_authenticated-user~email",
        "Cf-Access-Authenticated-User-Email",
        "Cf-Access-Client-Id",
        "cf-connecting-ip",
        "Cf_Connecting_Ip",
        "Cf-Ray",
        "X-Forwarded-For",
        "x_forwarded_for",
        "X-Forwarded-User",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Real-IP",
        "x_real_ip",
        "True-Client-IP",
        "X-Original-URL",
        "X_Rewrite_Url",
        "Proxy",
        "Early-Data",
    ]
    .into_iter()
    .flat_map(|name| [(name, "forged"), (name, "twice")])
    .collect();
    for told in [TOLD, Told { bearer: None, ..TOLD }] {
        let headers = to_origin(&forged, &told);
        for (name, value) in &headers {
            assert!(!value.as_bytes().starts_with(b"forged") && value != "twice", "{name}");
        }
        let expected = if told.bearer.is_some() { 8 } else { 5 };
        assert_eq!(headers.len(), expected, "{headers:?}");
    }
}

#[test]
fn connection_cannot_name_the_assertion_away() {
    let headers = to_origin(
        &[
            ("Connection", "close, cf-access-jwt-assertion, X-Hop, cookie, host"),
            ("Connection", "x-forwarded-for"),
            ("X-Hop", "a"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("Accept", "*/*"),
        ],
        &TOLD,
    );
    assert_eq!(headers[ASSERTION], "a.b.c");
    assert_eq!(headers[EMAIL], "ann@example.com");
    assert_eq!(headers[header::COOKIE], "CF_Authorization=a.b.c");
    assert_eq!(headers[FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers[header::HOST], "wiki.example.com");
    assert_eq!(headers[header::ACCEPT], "*/*");
    for gone in ["connection", "x-hop", "keep-alive", "te", "upgrade", "http2-settings"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[test]
fn no_spelling_of_a_framing_field_arrives() {
    let sent = [
        ("Transfer_Encoding", "chunked"),
        ("transfer.encoding", "chunked"),
        ("Content_Length", "0"),
        ("content~length", "0"),
        ("Keep_Alive", "1"),
        ("Proxy_Authorization", "x"),
        ("HTTP2_Settings", "x"),
    ];
    let mut headers = map(&sent);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("3"));
    headers.insert("x_mine", HeaderValue::from_static("1"));
    for_origin(&mut headers, &Told { bearer: None, ..TOLD }, false).unwrap();
    for (name, _) in sent {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert_eq!(
        (&headers[header::CONTENT_LENGTH], &headers["x_mine"]),
        (&"3".parse().unwrap(), &"1".parse().unwrap())
    );
    let mut found = map(&sent);
    trailers(&mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_connection_may_be_somebodys() {
    for (name, value, bound) in [
        ("authorization", "NTLM TlRMTVNTUAABAAAA", true),
        ("authorization", "negotiate YII", true),
        ("authorization", "NEGOTIATE", true),
        ("authorization", "Basic x, NTLM y", true),
        ("authorization", "Basic bnRsbTo=", false),
        ("authorization", "Bearer a.ntlm.b", false),
        ("www-authenticate", "Basic realm=\"x\", NTLM", true),
        ("www-authenticate", "Negotiate oRswGaAD", true),
        ("www-authenticate", "Bearer realm=\"x\"", false),
        ("authentication-info", "Negotiate x", true),
        ("authentication-info", "nextnonce=\"x\"", false),
        ("persistent-auth", "false", true),
        ("x-ntlm", "NTLM", false),
    ] {
        assert_eq!(binds_connection(&map(&[(name, value)])), bound, "{name}: {value}");
    }
    let ours = map(&[("authorization", "Basic x"), ("authorization", "NTLM y")]);
    assert!(binds_connection(&ours), "on any line");
}

#[test]
fn an_origin_clears_its_own_site_data_only() {
    for (lines, kept) in [
        (&["\"cache\", \"cookies\", \"storage\""][..], Some("\"cache\", \"storage\"")),
        (&["\"storage\"", "\"cookies\""], Some("\"storage\"")),
        (
            &["\"*\""],
            Some(
                "\"cache\", \"clientHints\", \"executionContexts\", \"prefetchCache\", \"prerenderCache\", \"storage\"",
            ),
        ),
        (&["\"cookies\""], None),
        (&["\"Cookies\",\"all\", cookies"], None),
    ] {
        let lines: Vec<(&str, &str)> = lines.iter().map(|line| ("clear-site-data", *line)).collect();
        let mut headers = map(&lines);
        for_client(&mut headers);
        let found: Vec<_> = headers.get_all("clear-site-data").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(found, kept.into_iter().collect::<Vec<_>>(), "{lines:?}");
    }
}

#[test]
fn own_cookies_are_replaced_and_others_kept() {
    let sent = &[
        ("Cookie", "a=1; CF_Authorization=other.app.token; cf.authorization=x;__Host-CF_Binding=secret"),
        ("Cookie", "CF_AppSession=y; b=caf\u{e9}"),
    ];
    let headers = to_origin(sent, &TOLD);
    assert_eq!(headers[header::COOKIE].as_bytes(), "CF_Authorization=a.b.c; a=1; b=caf\u{e9}".as_bytes());
    let bypass = to_origin(sent, &Told { bearer: None, ..TOLD });
    assert_eq!(bypass[header::COOKIE].as_bytes(), "a=1; b=caf\u{e9}".as_bytes());
    assert!(!bypass.contains_key(ASSERTION) && !bypass.contains_key(EMAIL));
    let none = to_origin(&[("Cookie", "CF_AppSession=y")], &Told { bearer: None, ..TOLD });
    assert!(!none.contains_key(header::COOKIE));
}

#[test]
fn an_origin_cannot_set_our_cookies_or_move_the_client() {
    let mut headers = map(&[
        ("Set-Cookie", "CF_Authorization=x; Path=/"),
        ("Set-Cookie", "__host-cf_binding=x; Secure; Path=/"),
        ("Set-Cookie", " CF_AppSession =x"),
        ("Set-Cookie", "mine=1"),
        ("Set-Cookie", "CF_Authorization2=1"),
        ("Alt-Svc", "h3=\":443\""),
        ("CF-Access-Domain", "evil.example"),
        ("Connection", "x-inner"),
        ("X-Inner", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Content-Type", "text/html"),
    ]);
    for_client(&mut headers);
    let cookies: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["mine=1", "CF_Authorization2=1"]);
    assert_eq!(headers.len(), 3, "{headers:?}");
}

#[test]
fn trailers_bring_no_identity() {
    let mut found = map(&[
        ("cf_access_jwt_assertion", "x"),
        ("x-forwarded-for", "x"),
        ("cookie", "CF_Authorization=x"),
        ("content-length", "3"),
        ("grpc-status", "0"),
    ]);
    trailers(&mut found);
    assert_eq!(found, map(&[("grpc-status", "0")]));
}

#[test]
fn te_trailers_reaches_http2_origins_only() {
    for (http2, kept) in [(true, true), (false, false)] {
        let mut headers = map(&[("te", "gzip;q=0.5, trailers")]);
        for_origin(&mut headers, &TOLD, http2).unwrap();
        assert_eq!(headers.contains_key(header::TE), kept);
    }
}
