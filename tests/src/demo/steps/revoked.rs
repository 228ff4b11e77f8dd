//! A revoked session ends at once, whatever it had open.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::demo::browser::Browser;
use crate::demo::lab::{ALICE, Access, CAROL, CHAT, Lab, Person, WIKI};
use crate::demo::{Evidence, Fault, Step};
use crate::portcullis::START;
use crate::process::Process;

/// What is claimed is a second, and a machine that does other things is late with it; nothing else closes a WebSocket so early.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) const STEP: Step = Step {
    name: "revoked",
    claim: "a revoked session is cut within a second, an open WebSocket included",
    run,
    fault: Fault {
        what: "the applications' policy is a bypass, so no session is behind the WebSocket",
        plant: |lab| lab.set_access(Access::Bypass),
        heal: |lab| lab.set_access(Access::StaffOnly),
        symptom: "was still open",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let (alice, mut alices) = chatting(lab, &ALICE)?;
    let (carol, mut carols) = chatting(lab, &CAROL)?;

    let asked = Instant::now();
    lab.node.admin(&["session", "revoke", "--user", ALICE.email])?;
    let cut = alices.wait_for_output(" closed ", LIMIT.saturating_sub(asked.elapsed()));
    let took = asked.elapsed();
    ensure!(cut.is_ok(), "alice's WebSocket was still open {took:?} after the revocation was asked for");
    let page = alice.open(&format!("{WIKI}/revoked-step"))?;
    ensure!(page.is_login(), "alice's next request got {}", page.summary());
    evidence.see(format!(
        "the WebSocket was closed {} ms after the command was given; the next request: {}",
        took.as_millis(),
        page.summary()
    ));

    let before = messages(&carols);
    carols.wait_until("go on", START, |process| Ok((messages(process) > before + 3).then_some(())))?;
    let page = carol.open(&format!("{WIKI}/revoked-step"))?;
    ensure!(page.status == 200 && !page.is_login(), "carol's session ended too: {}", page.summary());
    evidence.control("carol's WebSocket, opened the same way, goes on, and so does her session");
    Ok(())
}

/// A browser of a person, and a WebSocket of it that has exchanged messages.
fn chatting(lab: &Lab, person: &Person) -> Result<(Browser, Process)> {
    let browser = lab.browser()?;
    let page = browser.open(&format!("{WIKI}/"))?;
    if page.is_login() {
        browser.log_in(&format!("{WIKI}/"), person.name, person.password)?;
    }
    browser.open(&CHAT.replace("wss://", "https://"))?;
    let mut chat = browser.websocket(CHAT)?;
    chat.wait_for_output("message 3", START)?;
    Ok((browser, chat))
}

fn messages(process: &Process) -> usize {
    process.output().lines().filter(|line| line.contains(" message ")).count()
}
