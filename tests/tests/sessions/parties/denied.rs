//! Whom policy does not know is told so, whatever they run, and the log says so once for each.

use portcullis_tests::desk::Screen;
use portcullis_tests::private_lab::{Plan, PrivateLab};
use serde_json::Value;

use super::launch;

#[test]
fn who_may_not_is_told_so_and_noted_once() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let bob = lab.machine("bob").unwrap();
    let screen = Screen::start(&lab.dir).unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    for (application, command) in [
        ("shell", bob.command(&["ssh", "shell"])),
        ("db", bob.command(&[&["tcp", "db"], &listen[..]].concat())),
        ("dns", bob.command(&[&["udp", "dns"], &listen[..]].concat())),
        ("perf", bob.command(&[&["tcp", "perf"], &listen[..]].concat())),
        ("perf-udp", bob.command(&[&["udp", "perf-udp"], &listen[..]].concat())),
        ("desk", Ok(launch(&bob, &screen, &[]))),
    ] {
        let output = command.unwrap().output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{application}: {told}");
        let why = format!("you are not allowed to reach `{application}`: ask who runs the node");
        assert_eq!(told.matches(&why).count(), 1, "{application}: {told}");
        assert!(output.stdout.is_empty(), "{application} says where it listens");
        let events: Vec<Value> = lab.events_of("connect", application, 1).unwrap();
        let [event] = &events[..] else { panic!("{application}: {events:?}") };
        assert_eq!((&event["allowed"], &event["reason"]), (&false.into(), &"no_match".into()), "{event}");
        assert_eq!(
            (&event["user_email"], &event["ip_address"]),
            (&"bob@example.com".into(), &"192.0.2.2".into())
        );
        // What the person reads leads to it.
        let ray = event["ray_id"].as_str().unwrap();
        assert!(told.contains(ray), "{application}: {ray} is not in {told}");
    }
    assert_eq!(screen.colours().unwrap(), 1, "no client was launched");
    assert!(lab.events("disconnect").unwrap().iter().all(|event| event["app_name"].is_null()));
}
