//! The one place that reads the clocks and the system's random source for the daemon lane.

use std::time::Duration;

use crate::flow::{RayId, SessionId, UnixTime};

/// Now, by the wall clock.
pub fn now() -> UnixTime {
    UnixTime(time::OffsetDateTime::now_utc().unix_timestamp())
}

/// Now, by the monotonic clock: the time that the kernel's programs read with `bpf_ktime_get_ns`.
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither part of this clock is ever negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// `N` random bytes from the system.
///
/// # Panics
/// When the system has no randomness, which leaves nothing safe to do.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// Fills `bytes` with random ones from the system.
///
/// # Panics
/// When the system has no randomness, which leaves nothing safe to do.
#[expect(clippy::expect_used, reason = "without randomness no session, token or key can be made safely")]
pub fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source answers");
}

pub fn new_ray() -> RayId {
    RayId::from_bytes(random())
}

pub fn new_session_id() -> SessionId {
    SessionId::from_bytes(random())
}
