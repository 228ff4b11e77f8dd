//! Devices that wait for their person (RFC 8628): from the request of a device without a browser to the word of somebody
//! who has typed its code.
//!
//! Strangers can start these at will, so they live in memory and are bounded: in total, for each network, and to one for
//! each device key. The last quarter of the room is for networks with a recent login. No I/O: time and randomness are
//! handed in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::flow::SessionId;
use crate::places::network;

/// How long a person has to type the code.
pub(super) const LIFE: Duration = Duration::from_secs(600);
/// How often the device may ask, at first.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// What it costs to ask more often (RFC 8628 §3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// A device that comes late is told so this long.
const AFTERLIFE: Duration = Duration::from_secs(60);

const MOST: usize = 4096;
/// Of these, for networks without a recent login.
const MOST_OF_STRANGERS: usize = MOST / 4 * 3;
const MOST_OF_NETWORK: usize = 16;

/// No vowels, so that no word comes up, and nothing that looks like something else: 20^8 codes, some 34 bits.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// What a person types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserCode([u8; 8]);

/// A device that wants in.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// SHA-256 of its key's SubjectPublicKeyInfo.
    pub(super) key: [u8; 32],
    /// What it calls itself.
    pub(super) name: String,
    /// Where it asked from.
    pub(super) address: IpAddr,
}

/// The answer to a device that asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Poll {
    /// Its person let it in, by that name. It is told so once.
    Approved(SessionId, String),
    Denied,
    Waiting,
    /// Too early: it has to wait longer from now on.
    TooFast,
    Expired,
    /// No such code, or that of another device.
    Unknown,
}

/// There is no room for another one at the moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Every device that waits, by the hash of its device code.
#[derive(Default)]
pub(super) struct Pending {
    waiting: BTreeMap<[u8; 32], Entry>,
}

struct Entry {
    code: UserCode,
    device: Device,
    state: State,
    expires_at: Duration,
    next_poll: Duration,
    interval: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Approved(SessionId),
    Denied,
}

impl Pending {
    /// Keeps `device` under `hash` and the code that `random` gives. `known` says that its network has had a login
    /// lately.
    pub(super) fn add(
        &mut self,
        hash: [u8; 32],
        device: Device,
        random: &[u8; 16],
        known: bool,
        now: Duration,
    ) -> Result<UserCode, Full> {
        self.waiting.retain(|_, entry| {
            entry.device.key != device.key && now < entry.expires_at.saturating_add(AFTERLIFE)
        });
        let place = network(device.address);
        let of_network = self.waiting.values().filter(|entry| network(entry.device.address) == place).count();
        let room = if known { MOST } else { MOST_OF_STRANGERS };
        let code = UserCode::new(random);
        // Two with one code would make the person let in either. It does not happen by chance.
        let taken = self.waiting.values().any(|entry| entry.code == code);
        if self.waiting.len() >= room || of_network >= MOST_OF_NETWORK || taken {
            return Err(Full);
        }
        let entry = Entry {
            code,
            device,
            state: State::Waiting,
            expires_at: now.saturating_add(LIFE),
            next_poll: now,
            interval: INTERVAL,
        };
        self.waiting.insert(hash, entry);
        Ok(code)
    }

    /// The device that shows this code, if it still waits.
    pub(super) fn find(&self, code: UserCode, now: Duration) -> Option<([u8; 32], Device)> {
        self.waiting
            .iter()
            .find(|(_, entry)| entry.code == code && entry.waits(now))
            .map(|(hash, entry)| (*hash, entry.device.clone()))
    }

    /// A person's word about the device under `hash`: in, with their session, or not. Nothing where it does not wait.
    pub(super) fn settle(
        &mut self,
        hash: &[u8; 32],
        allowed: Option<SessionId>,
        now: Duration,
    ) -> Option<Device> {
        let entry = self.waiting.get_mut(hash).filter(|entry| entry.waits(now))?;
        entry.state = allowed.map_or(State::Denied, State::Approved);
        Some(entry.device.clone())
    }

    /// The device that holds `key` asks.
    pub(super) fn poll(&mut self, hash: &[u8; 32], key: &[u8; 32], now: Duration) -> Poll {
        let Some(entry) = self.waiting.get_mut(hash).filter(|entry| entry.device.key == *key) else {
            return Poll::Unknown;
        };
        let answer = match entry.state {
            _ if now >= entry.expires_at => Poll::Expired,
            _ if now < entry.next_poll => {
                entry.interval = entry.interval.saturating_add(SLOWER);
                entry.next_poll = now.saturating_add(entry.interval);
                return Poll::TooFast;
            }
            State::Waiting => {
                entry.next_poll = now.saturating_add(entry.interval);
                return Poll::Waiting;
            }
            State::Approved(session) => Poll::Approved(session, entry.device.name.clone()),
            State::Denied => Poll::Denied,
        };
        self.waiting.remove(hash);
        answer
    }
}

impl Entry {
    fn waits(&self, now: Duration) -> bool {
        self.state == State::Waiting && now < self.expires_at
    }
}

impl UserCode {
    /// The same for every letter, but for one part in 2^11.
    fn new(random: &[u8; 16]) -> Self {
        let mut letters = [b'B'; 8];
        for (letter, pair) in letters.iter_mut().zip(random.as_chunks::<2>().0) {
            let at = usize::from(u16::from_be_bytes(*pair)) % LETTERS.len();
            *letter = LETTERS.get(at).copied().unwrap_or(b'B');
        }
        Self(letters)
    }

    /// Reads what a person typed: case, blanks and hyphens do not count.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let typed: Vec<u8> = text
            .bytes()
            .filter(|byte| !matches!(byte, b' ' | b'-'))
            .map(|byte| byte.to_ascii_uppercase())
            .take(9)
            .collect();
        let letters: [u8; 8] = typed.try_into().ok()?;
        letters.iter().all(|letter| LETTERS.contains(letter)).then_some(Self(letters))
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, rest @ ..] = self.0.map(char::from);
        write!(f, "{a}{b}{c}{d}-{}", rest.iter().collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const SESSION: SessionId = SessionId::from_bytes([3; 16]);

    fn device(number: u16, address: &str) -> Device {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        Device { key, name: "box".into(), address: address.parse().unwrap() }
    }

    fn hash(number: u16) -> [u8; 32] {
        device(number, "192.0.2.1").key
    }

    /// Another code for each number.
    fn random(number: u16) -> [u8; 16] {
        let mut random = [0; 16];
        for (at, byte) in (0..8).zip(0..) {
            random[at * 2 + 1] = u8::try_from((usize::from(number) / 20_usize.pow(byte)) % 20).unwrap();
        }
        random
    }

    fn add(pending: &mut Pending, number: u16, address: &str, known: bool) -> Result<UserCode, Full> {
        pending.add(hash(number), device(number, address), &random(number), known, NOW)
    }

    fn seconds(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    #[test]
    fn a_device_waits_for_its_person_and_learns_it_once() {
        let mut pending = Pending::default();
        let code = add(&mut pending, 1, "192.0.2.1", false).unwrap();
        let ask = |pending: &mut Pending, at| pending.poll(&hash(1), &hash(1), seconds(at));
        assert_eq!(ask(&mut pending, 0), Poll::Waiting);
        assert_eq!(ask(&mut pending, 4), Poll::TooFast, "the interval is 5 s");
        assert_eq!(ask(&mut pending, 13), Poll::TooFast, "and 10 s by now");
        assert_eq!(ask(&mut pending, 28), Poll::Waiting);
        assert_eq!(pending.poll(&hash(1), &hash(2), seconds(60)), Poll::Unknown, "of another device");
        assert_eq!(pending.poll(&hash(2), &hash(1), seconds(60)), Poll::Unknown);

        let (found, device) = pending.find(code, seconds(60)).unwrap();
        assert_eq!((found, device.name.as_str()), (hash(1), "box"));
        assert!(pending.settle(&found, Some(SESSION), seconds(60)).is_some());
        assert!(pending.settle(&found, None, seconds(60)).is_none(), "said is said");
        assert!(pending.find(code, seconds(60)).is_none());
        assert_eq!(ask(&mut pending, 60), Poll::Approved(SESSION, "box".into()));
        assert_eq!(ask(&mut pending, 120), Poll::Unknown);
    }

    #[test]
    fn a_refusal_and_an_expiry_are_told() {
        let mut pending = Pending::default();
        add(&mut pending, 1, "192.0.2.1", false).unwrap();
        let late = add(&mut pending, 2, "192.0.2.1", false).unwrap();
        pending.settle(&hash(1), None, NOW).unwrap();
        assert_eq!(pending.poll(&hash(1), &hash(1), NOW), Poll::Denied);
        assert!(pending.find(late, NOW + LIFE - Duration::from_secs(1)).is_some());
        assert!(pending.find(late, NOW + LIFE).is_none());
        assert!(pending.settle(&hash(2), Some(SESSION), NOW + LIFE).is_none());
        assert_eq!(pending.poll(&hash(2), &hash(2), NOW + LIFE), Poll::Expired);
        assert_eq!(pending.poll(&hash(2), &hash(2), NOW + LIFE), Poll::Unknown);

        let approved = add(&mut pending, 3, "192.0.2.1", false);
        assert!(approved.is_ok() && pending.settle(&hash(3), Some(SESSION), NOW).is_some());
        assert_eq!(pending.poll(&hash(3), &hash(3), NOW + LIFE), Poll::Expired, "too late to be let in");
    }

    #[test]
    fn strangers_fill_neither_the_table_nor_a_network_for_others() {
        let mut pending = Pending::default();
        for number in 0..16 {
            assert!(add(&mut pending, number, &format!("192.0.2.{number}"), false).is_ok());
        }
        assert_eq!(add(&mut pending, 16, "192.0.2.99", true), Err(Full), "one network has 16");
        assert!(add(&mut pending, 3, "192.0.2.99", false).is_ok(), "the same device again takes no room");
        let mut next = 16;
        for network in 0..1000_u16 {
            let address = format!("198.18.{}.{}", network / 4, network % 4 * 64);
            let address = if network < 512 { address } else { format!("2001:db8:{network:x}::1") };
            for _ in 0..4 {
                let _ = add(&mut pending, next, &address, false);
                next += 1;
            }
        }
        assert_eq!(pending.waiting.len(), MOST_OF_STRANGERS);
        assert!(
            add(&mut pending, 60_000, "203.0.113.1", true).is_ok(),
            "a known network has a share of its own"
        );
        let after = NOW + LIFE + AFTERLIFE;
        pending.add(hash(60_001), device(60_001, "203.0.113.9"), &random(60_001), false, after).unwrap();
        assert_eq!(pending.waiting.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let code = UserCode::parse("BCDF-GHJK").unwrap();
        assert_eq!(code.to_string(), "BCDF-GHJK");
        for text in ["bcdfghjk", " bcdf ghjk ", "B-C-D-F-G-H-J-K"] {
            assert_eq!(UserCode::parse(text), Some(code), "{text}");
        }
        for text in ["", "BCDF-GHJ", "BCDF-GHJKL", "BCDF-GHJA", "BCDF-GHJ1", "BCDF-GHJ\u{212a}", "BCDF_GHJK"]
        {
            assert_eq!(UserCode::parse(text), None, "{text}");
        }
        assert_eq!(UserCode::new(&[0xff; 16]).to_string(), UserCode::parse("TTTTTTTT").unwrap().to_string());
    }
}
