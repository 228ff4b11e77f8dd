use crate::{Address, Family, KnockKeys, SipKey};

/// What the program asks in one look: modes, clocks and secrets. All zeroes, as a map is made: everything is
/// enforced, nothing is dark, no knock is right.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// From then on drops are counted but not done; monotonic, nanoseconds. 0: never.
    pub audit_from: u64,
    /// Wall clock minus monotonic clock in nanoseconds, modulo 2^64.
    pub wall_offset: u64,
    /// Not 0: the tunnel's port answers only those who knock.
    pub dark: u64,
    /// Secret of [`network_hash`](Self::network_hash).
    pub seed: SipKey,
    pub knock: KnockKeys,
}

impl Settings {
    /// Whether a drop is to be done at `now`.
    #[inline(always)]
    pub const fn enforces(&self, now: u64) -> bool {
        self.audit_from == 0 || now < self.audit_from
    }

    #[inline(always)]
    pub const fn is_dark(&self) -> bool {
        self.dark != 0
    }

    /// Hash of the network that pays for a packet: /24 of IPv4, /56 of IPv6.
    #[inline(always)]
    pub fn network_hash(&self, family: Family, address: Address) -> u64 {
        self.seed.hash([address.network(family)])
    }

    /// Wall-clock nanoseconds at `now`.
    #[inline(always)]
    pub const fn wall(&self, now: u64) -> u64 {
        now.wrapping_add(self.wall_offset)
    }
}

/// A key of connection IDs. An empty slot is all zeroes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CidKey {
    pub key: SipKey,
    /// Monotonic nanoseconds from which it verifies nothing.
    pub expires: u64,
}

const _: () = {
    assert!(size_of::<Settings>() == 72);
    assert!(size_of::<CidKey>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_settings_enforce() {
        assert!(Settings::default().enforces(0));
        assert!(Settings::default().enforces(u64::MAX));
    }

    #[test]
    fn a_trial_ends_by_itself() {
        let trial = Settings { audit_from: 100, ..Settings::default() };
        assert!(trial.enforces(99));
        assert!(!trial.enforces(100));
    }
}
