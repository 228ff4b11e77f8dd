//! Without a session the way leads to the login page, and the application sees nothing.

use anyhow::{Context, Result, ensure};

use crate::demo::lab::{ALICE, AUTH, Access, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};

pub(super) const STEP: Step = Step {
    name: "login",
    claim: "a person without a session is sent to log in",
    run,
    fault: Fault {
        what: "the wiki's policy is a bypass",
        plant: |lab| lab.set_access(Access::Bypass),
        heal: |lab| lab.set_access(Access::StaffOnly),
        symptom: "answered 200",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let (mut asked, mut led) = (Vec::new(), Vec::new());
    for (family, browser) in [("IPv4", lab.browser()?), ("IPv6", lab.browser6()?)] {
        let path = format!("/login-step-{family}");
        let url = format!("{WIKI}{path}");
        let first = browser.open_once(&url)?;
        ensure!(first.status == 302, "{family}: the wiki answered {} to nobody", first.status);
        let location = first.header("location").context("a redirect without a location")?.to_owned();
        let page = browser.open(&url)?;
        ensure!(
            page.status == 200 && page.url.starts_with(AUTH) && page.is_login(),
            "{family}: led to {} instead of a login page",
            page.summary()
        );
        let short = location.split('?').next().unwrap_or_default();
        led.push(format!("{family}: 302 to {short}, then {}; the application saw nothing", page.summary()));
        asked.push(path);
    }

    let path = "/login-step-control";
    let page = lab.logged_in(&ALICE)?.open(&format!("{WIKI}{path}"))?;
    ensure!(page.status == 200, "with a session: {}", page.summary());
    lab.office.await_request(&format!("GET {path} {}", ALICE.email))?;
    for (path, led) in asked.iter().zip(led) {
        ensure!(lab.office.seen_at(path)?.is_empty(), "the application saw the request for {path}");
        evidence.see(led);
    }
    evidence.control("the same request with a session reaches the application");
    Ok(())
}
