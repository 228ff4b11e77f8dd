use std::time::Duration;

use portcullis_tests::flood::{Load, run};

/// A fixed number of packets, as fast as this machine makes them: enough to use every stranger's budget up many times
/// over. How many strangers are served besides is nobody's promise.
#[test]
fn who_knocks_and_who_logged_in_lately_is_served_while_strangers_flood() {
    let load =
        Load { packets: 300_000, per_second: u64::MAX, attempts: 128, patience: Duration::from_secs(30) };
    let outcome = run(false, load, 12, Duration::from_millis(100)).unwrap();
    assert!(outcome.counted * 10 >= outcome.sent * 9, "control: the flood arrives, {outcome:?}");
    assert!(outcome.passed * 2 < outcome.counted, "control: it is beyond the budgets, {outcome:?}");
    for served in [outcome.knocking, outcome.recent] {
        assert_eq!((served.tried, served.completed), (12, 12), "{outcome:?}");
    }
}
