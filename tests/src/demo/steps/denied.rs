//! A person whom policy denies is told so.

use anyhow::{Context, Result, ensure};

use crate::demo::lab::{ALICE, Access, BOB, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};

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
    ensure!(!lab.office.has_seen(path)?, "the application saw bob's request");
    evidence.see(format!("{}, ray id {ray}; the application saw nothing", page.summary()));

    let event = lab.events()?.into_iter().find(|event| event["ray_id"] == ray.as_str());
    let event = event.with_context(|| format!("no event has ray id {ray}"))?;
    ensure!(
        event["allowed"] == false && event["user_email"] == BOB.email,
        "the event of that ray id says otherwise: {event}"
    );
    evidence
        .see(format!("the access log has that ray id: {}, reason {}", event["user_email"], event["reason"]));

    let page = lab.browser()?.log_in(&url, ALICE.name, ALICE.password)?;
    ensure!(page.status == 200 && lab.office.has_seen(path)?, "alice got {}", page.summary());
    evidence.control("alice, at the same address, gets in");
    Ok(())
}
