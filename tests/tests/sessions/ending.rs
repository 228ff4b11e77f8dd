//! How sessions are cut while they carry something, and what each side is told.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use portcullis_tests::access::Machine;
use portcullis_tests::private_lab::{BRIEF, CUT, Forward, Plan, PrivateLab, echo_tcp};
use portcullis_tests::process::Process;

use crate::SOON;
use crate::conversation::Conversation;

/// Reads a transfer that never ends until it is cut, which has to be an error; how long after `cut` that was.
fn cut_in_transfer(mut stream: TcpStream, cut: impl FnOnce() -> Instant) -> Duration {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    while total < 4 << 20 {
        total += stream.read(&mut buffer).unwrap();
    }
    let receiving = std::thread::spawn(move || {
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => panic!("the transfer ended as if it had been complete"),
                Ok(_) => {}
                Err(error) => return (Instant::now(), error),
            }
        }
    });
    let at = cut();
    let (ended, error) = receiving.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    ended.saturating_duration_since(at)
}

fn dial(lab: &PrivateLab, forward: &Forward) -> TcpStream {
    lab.client.enter(|| TcpStream::connect(forward.address)).unwrap().unwrap()
}

fn start(machine: &Machine, application: &str) -> Forward {
    Forward::start(machine, &["tcp", application, "--listen", "127.0.0.1:0"]).unwrap()
}

/// Waits until the process has said `why`, and says it once.
fn said(process: &mut Process, why: &str) {
    process.wait_for_output(why, SOON).unwrap();
    assert_eq!(process.output().matches(why).count(), 1, "{}", process.output());
}

#[test]
fn a_revocation_cuts_a_transfer_and_everybody_hears_why() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let mut forward = start(&ann, "chargen");
    // Others of the same login, each with a connection of its own to the node.
    let mut others: Vec<Forward> = (0..6).map(|_| start(&ann, "other")).collect();
    let took = cut_in_transfer(dial(&lab, &forward), || {
        let asked = Instant::now();
        lab.node.admin(&["session", "revoke", "--user", "ann@example.com"]).unwrap();
        asked
    });
    assert!(took < CUT, "it was cut after {took:?}");
    said(&mut forward.process, "portcullis: chargen: the session is over: an administrator revoked it\n");
    for other in &mut others {
        said(&mut other.process, "portcullis: other: the session is over: an administrator revoked it\n");
    }
    let ended = lab.events_of("disconnect", "chargen", 1).unwrap();
    assert_eq!((ended.len(), &ended[0]["detail"]), (1, &"revoked".into()));
    let number = |field: &str| ended[0][field].as_u64().unwrap();
    assert!(
        number("bytes_down") > 4 << 20 && number("bytes_up") > 0 && number("duration") > 0,
        "{}",
        ended[0]
    );
    assert_eq!(lab.events_of("disconnect", "other", 6).unwrap().len(), 6);
    // Nothing new either, and whoever connects sees a reset.
    assert!(echo_tcp(&lab.client, forward.address, b"again").is_err());
    assert!(ann.fails(&["tcp", "chargen"]).unwrap().contains("the login is over"));
}

#[test]
fn a_policy_withdrawn_by_a_reload_and_a_logout_cut_too() {
    let mut lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let mut forward = start(&ann, "chargen");
    let took = cut_in_transfer(dial(&lab, &forward), || {
        lab.let_in("nobody").unwrap();
        Instant::now()
    });
    assert!(took < CUT, "it was cut after {took:?}");
    said(&mut forward.process, "portcullis: chargen: the session is over: policy no longer allows it\n");
    assert!(echo_tcp(&lab.client, forward.address, b"again").is_err());
    forward.process.wait_for_output("you are not allowed to reach `chargen`", SOON).unwrap();

    lab.let_in("staff").unwrap();
    let took = cut_in_transfer(dial(&lab, &forward), || {
        ann.ok(&["logout"]).unwrap();
        Instant::now()
    });
    assert!(took < CUT, "it was cut after {took:?}");
    said(
        &mut forward.process,
        "portcullis: chargen: the session is over: the login is over: logged out or expired\n",
    );
    let ended = lab.events_of("disconnect", "chargen", 2).unwrap();
    assert_eq!((&ended[0]["detail"], &ended[1]["detail"]), (&"not_allowed".into(), &"login_ended".into()));
}

#[test]
fn a_session_whose_time_is_over_says_so_before_and_ends() {
    let lab = PrivateLab::start(Plan::KERNEL).unwrap();
    let ann = lab.machine("ann").unwrap();
    let began = Instant::now();
    let mut forward = start(&ann, "brief");
    // By now it has begun.
    let begun = Instant::now();
    let conversation = Conversation::start(&lab, &forward);
    let announced = "portcullis: brief: the session's time is over in ";
    forward.process.wait_for_output(announced, SOON).unwrap();
    let output = forward.process.output();
    let left = output.split_once(announced).unwrap().1.split_once(" seconds\n").unwrap().0;
    let left = Duration::from_secs(left.parse().unwrap());
    assert!(left <= BRIEF && left + began.elapsed() + Duration::from_secs(2) > BRIEF, "{output}");
    let over = "portcullis: brief: the session's time is over\n";
    assert!(!output.contains(over), "{output}");

    let error = conversation.cut();
    let lasted = (begun.elapsed(), began.elapsed());
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // Ends whose clocks are ahead of the node's, and machines that are late.
    let (ahead, late) = (Duration::from_secs(3), Duration::from_secs(10));
    assert!(BRIEF < lasted.1 + ahead && lasted.0 < BRIEF + late, "it was cut after {lasted:?}");
    said(&mut forward.process, over);
    assert_eq!(forward.process.output().matches(announced).count(), 1, "{}", forward.process.output());
    let ended = lab.events_of("disconnect", "brief", 1).unwrap();
    assert_eq!((ended.len(), &ended[0]["detail"]), (1, &"expired".into()));
    assert!(ended[0]["bytes_down"].as_u64().unwrap() > 0, "{}", ended[0]);
    // The login goes on: whoever connects has another session.
    echo_tcp(&lab.client, forward.address, b"again").unwrap();
    let text = lab.node.metrics().unwrap();
    assert!(text.contains("portcullis_private_ended_total{reason=\"expired\"} 1"), "{text}");
}
