//! The wire, by an independent client against the running node, a real connector and a real target.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::{Duration, Instant};

use portcullis::clock;
use portcullis_tests::process::wait_until;
use portcullis_tests::realm::{PASSWORD, WIKI};
use serde_json::{Value, json};

use crate::world::{DOWN, ECHO, OTHER, ROBOTS, SOON, World};

fn token(jwt: &str) -> Value {
    json!({ "Cf-Access-Token": jwt })
}

#[test]
fn who_is_let_in_reaches_the_target_and_nobody_else() {
    let mut world = World::start();
    let robot = world.service_token("ci");
    let ann = world.session("ann");
    let input: Vec<u8> = (0..300_000u32).flat_map(u32::to_be_bytes).collect();

    let (echo, told) = world.try_wire(ECHO, &robot, &input);
    assert!(echo == input, "{told}");
    let end = world.last_event("disconnect", "echo", 1);
    assert_eq!((&end["allowed"], &end["service_token"]), (&json!(true), &json!("ci")));
    assert_eq!(end["bytes"], json!(2 * input.len()), "both ways");
    assert!(end["duration"].is_u64() && end["detail"].is_string(), "{end}");
    let begin = world.last_event("request", "echo", 1);
    assert_eq!(
        (&begin["status"], &begin["policy"], &begin["connector"]),
        (&json!(101), &json!("ci"), &json!("hq"))
    );

    let of_ann = world.app_token(&ann, "echo");
    let (echo, told) = world.try_wire(ECHO, &token(&of_ann), b"hello");
    assert_eq!(echo, b"hello", "{told}");
    assert_eq!(world.last_event("request", "echo", 2)["user_email"], "ann@example.com");

    // Nobody, and who is nobody here: the login, as a client of this wire looks for it.
    let a_day_ago = clock::now().before(Duration::from_secs(86_400 + 60));
    let expired = world.app_token_of(&ann, "echo", a_day_ago);
    for headers in [
        json!({}),
        token(&world.app_token(&ann, "other")),
        token(&expired),
        token(&world.org_token("ann")),
        token("not.a.token"),
        json!({ "Cookie": format!("CF_Authorization={of_ann}") }),
    ] {
        let (echo, told) = world.try_wire(ECHO, &headers, b"x");
        assert!(
            echo.is_empty() && told.contains("refused 302 https://access.example.com:"),
            "{headers} {told}"
        );
        assert!(told.contains("/cdn-cgi/access/login/echo.example.com?kid="), "{told}");
    }
    let mut wrong = robot.clone();
    wrong["Cf-Access-Client-Secret"] = json!("0".repeat(64));
    assert_eq!(world.refused(ECHO, &wrong), 401);
    assert_eq!(world.refused(ROBOTS, &json!({})), 403);
    assert_eq!(world.refused(DOWN, &robot), 502);
    let mut jump = robot.clone();
    jump["Cf-Access-Jump-Destination"] = json!("127.0.0.1:22");
    assert_eq!(world.refused(ECHO, &jump), 400, "a client cannot name another target");
    let bad = |events: Vec<Value>| events.iter().filter(|event| event["status"] == json!(400)).count();
    wait_until("the one event of it", SOON, || {
        Ok((bad(world.realm.events("request", 0)?) == 1).then_some(()))
    })
    .unwrap();

    // A person whom policy lets in no more, with a token that was good.
    let bob = world.session("bob");
    let of_bob = world.app_token(&bob, "echo");
    let config = std::fs::read_to_string(world.realm.node.config()).unwrap();
    let without = config.replacen(
        "include = [{ email_domain = \"example.com\" }]",
        "include = [{ email_domain = \"example.com\" }]\nexclude = [{ email = \"bob@example.com\" }]",
        1,
    );
    assert_ne!(config, without);
    std::fs::write(world.realm.node.config(), without).unwrap();
    wait_until("the reload", SOON, || Ok((world.refusal(ECHO, &token(&of_bob)) == Some(403)).then_some(())))
        .unwrap();
    let denied = world.event_for("request", "echo", "no_match");
    assert_eq!((&denied["user_email"], &denied["app_name"]), (&json!("bob@example.com"), &json!("echo")));

    world.connector.process.kill().unwrap();
    wait_until("the connector to be gone", SOON, || {
        Ok((world.refusal(ECHO, &robot) == Some(503)).then_some(()))
    })
    .unwrap();
    world.event_for("request", "echo", "connector_gone");
    // Events are written in order: by now a second one of the other target would be there.
    assert_eq!(bad(world.realm.events("request", 0).unwrap()), 1);
}

#[test]
fn what_does_not_belong_on_the_wire_is_refused_by_its_code() {
    let world = World::start();
    let robot = world.service_token("ci");
    for (more, code, why) in [
        (json!({ "text": "hello" }), 1003, "the client sent text"),
        (json!({ "long": 256 * 1024 + 1 }), 1009, "the client sent a message that is too long"),
        (json!({ "long": 64 << 20 }), 1009, "the client sent a message that is too long"),
    ] {
        let ended = world.realm.events("disconnect", 0).unwrap().len();
        let child = world.wire(ECHO, &robot, more.clone());
        let told = String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned();
        assert!(told.contains(&format!("closed {code} ")), "{more}: {told}");
        let events = world.realm.events("disconnect", ended + 1).unwrap();
        assert_eq!(events[ended]["detail"], why);
        assert_eq!(events[ended]["bytes"], 0);
    }

    // A page of another site, with the cookies of somebody who is logged in.
    let web = world.realm.web("ann");
    let wiki = world.realm.url(WIKI, "/");
    assert_eq!(world.realm.log_in(&web, &wiki, "ann", PASSWORD).unwrap().status, 200);
    let echo = crate::older::browser(&world, "ann");
    let page = echo.follow(echo.get(&world.realm.url(ECHO, "/")).unwrap(), None).unwrap();
    assert_eq!(page.status, 200, "how to connect");
    let jar = std::fs::read_to_string(world.realm.dir.path().join("ann.jar")).unwrap();
    let cookies: Vec<String> = jar
        .lines()
        .filter(|line| line.contains(ECHO))
        .filter_map(|line| {
            let mut fields = line.split('\t').skip(5);
            Some(format!("{}={}", fields.next()?, fields.next()?))
        })
        .collect();
    let with = |origin: &str| json!({ "Cookie": cookies.join("; "), "Origin": origin });
    assert_eq!(world.refused(ECHO, &with("https://evil.example")), 403);
    world.event_for("request", "echo", "foreign_origin");
    assert_eq!(world.refused(ECHO, &with("https://wiki.example.com")), 403, "a sibling is another origin");
    let (answer, told) = world.try_wire(ECHO, &with(&format!("https://{ECHO}:{}", world.realm.port)), b"own");
    assert_eq!(answer, b"own", "{told}");
    let mut robot = robot;
    robot["Origin"] = json!("https://evil.example");
    assert_eq!(world.try_wire(ECHO, &robot, b"x").0, b"x", "no page can send this header");
}

#[test]
fn a_revocation_cuts_within_a_second_and_says_so() {
    let world = World::start();
    let robot = world.service_token("ci");
    let ann = world.session("ann");
    for (headers, revoke) in [
        (token(&world.app_token(&ann, "echo")), vec!["session", "revoke", "--user", "ann@example.com"]),
        (robot, vec!["service-token", "revoke", "ci"]),
    ] {
        let ended = world.realm.events("disconnect", 0).unwrap().len();
        let mut child = world.wire(ECHO, &headers, json!({}));
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        stdin.write_all(b"x").unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        assert!(told.next().unwrap().unwrap().ends_with(" open"));
        // Bytes are on their way all the time.
        let flow = std::thread::spawn(move || while stdin.write_all(&[7; 1024]).is_ok() {});
        let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        std::thread::sleep(Duration::from_millis(300));
        world.realm.node.admin(&revoke).unwrap();
        let cut = Instant::now();
        let line =
            told.find(|line| line.as_ref().is_ok_and(|line| line.contains("closed"))).unwrap().unwrap();
        // The promise is a second, and a busy machine is late with it; nothing else cuts so early.
        assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
        assert!(line.contains("closed 1008 the permission for this connection is over"), "{line}");
        child.wait().unwrap();
        drop((flow.join(), drain.join()));
        let events = world.realm.events("disconnect", ended + 1).unwrap();
        let end = &events[ended];
        assert_eq!((&end["allowed"], &end["reason"]), (&json!(false), &json!("session_ended")));
        assert!(end["bytes"].as_u64().unwrap() > 1024 && end["duration"].as_u64().unwrap() >= 300, "{end}");
    }
    assert_eq!(
        world.refused(OTHER, &token(&world.app_token(&ann, "other"))),
        302,
        "and nothing new is opened"
    );
}
