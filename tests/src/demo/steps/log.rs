//! Each of these is in the access log.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::demo::lab::{ALICE, BOB, CAROL, Lab, OFFICE, WIKI};
use crate::demo::{Evidence, Fault, Step};
use crate::process::wait_until;

pub(super) const STEP: Step = Step {
    name: "log",
    claim: "every one of these is in the access log",
    run,
    fault: Fault {
        what: "the office has a side door: its firewall is gone and people go straight to the wiki",
        plant: |lab| {
            lab.side_door = true;
            lab.office.remove_firewall()
        },
        heal: |lab| {
            lab.side_door = false;
            lab.office.raise_firewall()
        },
        symptom: "no event: carol's",
    },
};

/// An event that must be there.
struct Expected {
    what: &'static str,
    matches: fn(&Value) -> bool,
}

const EXPECTED: [Expected; 6] = [
    Expected {
        what: "a request without a session, sent to log in",
        matches: |event| is(event, "request", false) && event["path"] == "/log-step-nobody",
    },
    Expected {
        what: "a login with a wrong password",
        matches: |event| is(event, "login", false) && names(event, "log-step-unknown"),
    },
    Expected {
        what: "carol's login",
        matches: |event| is(event, "login", true) && event["user_email"] == CAROL.email,
    },
    Expected {
        what: "carol's request to the wiki, allowed by the policy staff",
        matches: |event| {
            is(event, "request", true)
                && event["path"] == "/log-step-carol"
                && event["user_email"] == CAROL.email
                && event["app_name"] == "wiki"
                && event["policy"] == "staff"
        },
    },
    Expected {
        what: "bob, denied the wiki",
        matches: |event| {
            event["allowed"] == false && event["user_email"] == BOB.email && event["app_name"] == "wiki"
        },
    },
    Expected {
        what: "the revocation of alice's sessions",
        matches: |event| event["action"] == "revoke" && event.to_string().contains(ALICE.email),
    },
];

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let before = lab.events()?.len();
    lab.browser()?.open_once(&format!("{WIKI}/log-step-nobody"))?;
    lab.browser()?.log_in(&format!("{WIKI}/"), "log-step-unknown", "wrong wrong wrong")?;
    if lab.side_door {
        lab.stranger.run(&format!("curl -sS --max-time 5 http://{}:8080/log-step-carol", OFFICE.v4))?;
    } else {
        lab.logged_in(&CAROL)?.open(&format!("{WIKI}/log-step-carol"))?;
    }
    lab.browser()?.log_in(&format!("{WIKI}/log-step-bob"), BOB.name, BOB.password)?;
    lab.logged_in(&ALICE)?;
    lab.node.admin(&["session", "revoke", "--user", ALICE.email])?;

    // Events are written behind the answer.
    let mut events = Vec::new();
    let complete = wait_until("all events", Duration::from_secs(15), || {
        events = lab.events()?.split_off(before);
        Ok(EXPECTED.iter().all(|expected| count(&events, expected) > 0).then_some(()))
    });
    for expected in EXPECTED {
        ensure!(count(&events, &expected) > 0, "no event: {}", expected.what);
        evidence.see(expected.what);
    }
    complete?;
    let none = events.iter().filter(|event| event["path"] == "/log-step-never-asked").count();
    ensure!(none == 0, "the log has an event of a request that nobody made");
    let text = serde_json::to_string(&events)?;
    for secret in [ALICE.password, BOB.password, CAROL.password, "wrong wrong wrong"] {
        ensure!(!text.contains(secret), "the access log holds a password");
    }
    evidence.control("a request that nobody made is not there, and neither is any password");
    Ok(())
}

fn count(events: &[Value], expected: &Expected) -> usize {
    events.iter().filter(|event| (expected.matches)(event)).count()
}

fn is(event: &Value, action: &str, allowed: bool) -> bool {
    event["action"] == action && event["allowed"] == allowed
}

/// Whether an event speaks of a name that somebody typed: as the claimed user.
fn names(event: &Value, user: &str) -> bool {
    event["user_id"] == user || event["user_email"] == user
}
