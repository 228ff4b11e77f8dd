//! The demo of the demo: every promise holds, and for every step the fault it guards against makes that step fail,
//! for that reason, and no other step.

use std::process::Command;

use portcullis_tests::demo::{self, Lab, Silent};

/// The steps that scan all ports take most of the time; faults of other steps are planted without them here. One
/// fault goes through everything below.
const SCANS: [&str; 2] = ["scan", "office"];

#[test]
fn demo_every_fault_fails_its_own_step_and_no_other() {
    let mut lab = Lab::new(&|_| {}).unwrap();
    for outcome in demo::run(&mut lab, demo::all(), None, &mut Silent).unwrap() {
        assert_eq!(outcome.failure, None, "{} without any fault", outcome.step);
        assert!(
            outcome.evidence.iter().any(|line| line.starts_with("control: ")),
            "{}: no control",
            outcome.step
        );
    }
    for broken in demo::all() {
        let scans = SCANS.contains(&broken.name);
        let steps = demo::all().into_iter().filter(|step| scans || !SCANS.contains(&step.name));
        for outcome in demo::run(&mut lab, steps, Some(broken.name), &mut Silent).unwrap() {
            if outcome.step == broken.name {
                let failure = outcome.failure.unwrap_or_else(|| panic!("{}: fault not seen", broken.name));
                let symptom = broken.fault.symptom;
                assert!(failure.contains(symptom), "{}: expected “{symptom}” in: {failure}", broken.name);
            } else {
                assert_eq!(outcome.failure, None, "{} with the fault of {}", outcome.step, broken.name);
            }
        }
    }
}

#[test]
fn demo_exit_status_says_whether_all_held() {
    let status = |args: &[&str]| {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
        let output = demo.args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, out) = status(&["--break", "denied"]);
    assert_eq!(code, Some(1), "{out}");
    let crosses: Vec<_> = out.lines().filter(|line| line.starts_with('✘')).collect();
    assert_eq!(crosses.len(), 2, "one at the step, one in the summary: {out}");
    assert!(crosses.iter().all(|line| line.contains("denied")), "{out}");
    assert_eq!(status(&["--break", "nosuch"]).0, Some(2));
    assert!(status(&["--list"]).1.contains("denied"));
}
