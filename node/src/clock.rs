//! The one place that reads the wall clock and the system's random source for the daemon lane.

use crate::flow::{RayId, SessionId, UnixTime};

/// Now, by the wall clock.
pub fn now() -> UnixTime {
    UnixTime(time::OffsetDateTime::now_utc().unix_timestamp())
}

/// `N` random bytes from the system.
///
/// # Panics
/// When the system has no randomness, which leaves nothing safe to do.
#[expect(clippy::expect_used, reason = "without randomness no session, token or key can be made safely")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

pub fn new_ray() -> RayId {
    RayId::from_bytes(random())
}

pub fn new_session_id() -> SessionId {
    SessionId::from_bytes(random())
}
