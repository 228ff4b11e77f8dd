//! The right person reaches both applications, through the tunnel.

use anyhow::{Result, ensure};

use crate::demo::lab::{ALICE, CHAT, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};
use crate::portcullis::START;

pub(super) const STEP: Step = Step {
    name: "app",
    claim: "the right password reaches the private applications",
    run,
    fault: Fault {
        what: "the office's connector is not running",
        plant: Lab::stop_connector,
        heal: Lab::start_connector,
        symptom: "503",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let browser = lab.browser()?;
    let path = "/app-step";
    let url = format!("{WIKI}{path}");
    let page = browser.log_in(&url, ALICE.name, ALICE.password)?;
    ensure!(page.status == 200 && page.body.contains("Lab wiki"), "the wiki: {}", page.summary());
    let seen = format!("GET {path} {}", ALICE.email);
    lab.office.await_request(&seen)?;
    evidence.see(format!("{}; nginx logged “{seen}”", page.summary()));

    // The chat is another host: opening it hands the session over without a second login.
    browser.open(&CHAT.replace("wss://", "https://"))?;
    let mut chat = browser.websocket(CHAT)?;
    chat.wait_for_output(&format!("hello {}", ALICE.email), START)?;
    chat.wait_for_output("message 5", START)?;
    evidence.see(format!("WebSocket {CHAT}: “hello {}”, and every message comes back", ALICE.email));

    // A connector that is told to go lets open streams finish first.
    drop(chat);
    lab.stop_connector()?;
    let page = browser.open(&url)?;
    ensure!(page.status == 503, "without the connector the wiki answered {}", page.summary());
    let retry = page.header("retry-after").unwrap_or("none").to_owned();
    lab.start_connector()?;
    evidence
        .control(format!("with the connector stopped: 503, Retry-After {retry}: there is no other way in"));
    Ok(())
}
