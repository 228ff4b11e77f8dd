//! A person whom policy denies is told so.

use anyhow::{Context, Result, ensure};

use crate::demo::lab::{ALICE, Access, BOB, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};
use crate::portcullis::START;
use crate::process::wait_until;

pub(super) const STEP: Step = Step {
    name: "denied",
    claim: "a person whom policy denies is refused, with a page that says so and a ray id",
    run,
    fault: Fault {
        what: "policy allows everyone who has an account",
        plant: |lab| lab.set_access(Access::Everyone),
        heal: |lab| lab.set_access(Access::StaffOnly),
        symptom: "bob got 200 at https://wiki",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let path = "/denied-step";
    let url = format!("{WIKI}{path}");
    let page = lab.browser()?.log_in(&url, BOB.name, BOB.password)?;
    ensure!(page.status == 403, "bob got {}", page.summary());
    let ray = page.ray().context("the page shows no ray id")?.to_owned();
    let denied = page.summary();

    // It is written when the answer is done, which whoever reads it may know first.
    let event = wait_until(&format!("an event with ray id {ray}"), START, || {
        Ok(lab.events()?.into_iter().find(|event| event["ray_id"] == ray.as_str()))
    })?;
    ensure!(
        event["allowed"] == false && event["user_email"] == BOB.email,
        "the event of that ray id says otherwise: {event}"
    );
    let logged = format!("{}, reason {}", event["user_email"], event["reason"]);

    let page = lab.browser()?.log_in(&url, ALICE.name, ALICE.password)?;
    ensure!(page.status == 200, "alice got {}", page.summary());
    lab.office.await_request(&format!("GET {path} {}", ALICE.email))?;
    ensure!(lab.office.seen_at(path)? == [ALICE.email], "the application saw bob's request");
    evidence.see(format!("{denied}, ray id {ray}; the application saw nothing"));
    evidence.see(format!("the access log has that ray id: {logged}"));
    evidence.control("alice, at the same address, gets in");
    Ok(())
}
