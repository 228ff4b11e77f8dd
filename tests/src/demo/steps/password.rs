//! A wrong password opens nothing.

use anyhow::{Result, ensure};

use crate::demo::lab::{ALICE, CAROL, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};

const WRONG: &str = "correct horse battery stapler";

pub(super) const STEP: Step = Step {
    name: "password",
    claim: "a wrong password is refused",
    run,
    fault: Fault {
        what: "the wrong password is the account's password",
        plant: |lab| set_password(lab, WRONG),
        heal: |lab| set_password(lab, CAROL.password),
        symptom: "a wrong password led to 200 at https://wiki",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let browser = lab.browser()?;
    let path = "/password-step";
    let url = format!("{WIKI}{path}");
    let page = browser.log_in(&url, CAROL.name, WRONG)?;
    ensure!(page.is_login(), "a wrong password led to {}", page.summary());
    ensure!(browser.open(&url)?.is_login(), "after a wrong password the wiki is open");
    let refused = page.summary();

    let unknown = lab.browser()?.log_in(&url, "nobody-of-that-name", WRONG)?;
    ensure!(unknown.is_login() && unknown.status == page.status, "an unknown user got {}", unknown.summary());

    let control = "/password-step-control";
    let page = lab.browser()?.log_in(&format!("{WIKI}{control}"), ALICE.name, ALICE.password)?;
    ensure!(
        page.status == 200 && page.body.contains("Lab wiki"),
        "the right password led to {}",
        page.summary()
    );
    lab.office.await_request(&format!("GET {control} {}", ALICE.email))?;
    ensure!(lab.office.seen_at(path)?.is_empty(), "the application saw a request");
    evidence.see(format!("{refused}; the next request is sent to log in again"));
    evidence.see("an unknown user gets the same answer");
    evidence.control("the right password in the same form leads to the wiki");
    Ok(())
}

fn set_password(lab: &Lab, password: &str) -> Result<()> {
    let args = ["user", "passwd", CAROL.name, "--password-stdin"];
    lab.node.admin_with_stdin(&args, &format!("{password}\n")).map(drop)
}
