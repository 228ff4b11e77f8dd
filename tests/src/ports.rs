//! Ports for servers on loopback.
//!
//! Binding port 0 and closing it again races with every other test. Instead a port is reserved by a lock on a file
//! named after it, which every test process respects and the kernel releases when the process ends. The range lies
//! below the kernel's ephemeral ports, so no outgoing connection can take one meanwhile.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Mutex;

use anyhow::{Result, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port that is free for TCP and UDP in both families and stays reserved until this process ends.
pub fn free() -> Result<u16> {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let dir = std::env::temp_dir().join("portcullis-ports");
    fs::create_dir_all(&dir)?;
    let seed = (RandomState::new().build_hasher().finish() % u64::from(COUNT)) as u16;
    for n in 0..COUNT {
        let port = FIRST + (seed + n) % COUNT;
        let file = File::options().create(true).append(true).open(dir.join(port.to_string()))?;
        if file.try_lock().is_ok() && is_free(port) {
            HELD.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(file);
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT - 1)
}

fn is_free(port: u16) -> bool {
    // Wildcard addresses conflict with any listener on a single address. Dual stack is the default of [::].
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
        && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let ports: BTreeSet<u16> = (0..50).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_port_in_use_is_not_free() {
        let port = free().unwrap();
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(!is_free(port));
    }
}
