//! What the gate would do with a packet now, and why: the function that the kernel runs, on the maps that the
//! kernel uses, with every question and answer written down.
//!
//! Nothing is changed: no token is taken, nothing is counted, and the frame is a copy.

mod socket;
mod traced;

use std::path::Path;

use portcullis_common::layout::Settings;
use portcullis_common::{DropReason, Frame, FrameMut, PacketMeta, Transport, Verdict, parse, process};

use super::GateError;
use super::control::monotonic;
use super::pin::PinDir;
use traced::{LiveMaps, Traced};

/// Reads the pinned maps. Needs no daemon; needs the right to open BPF objects, and to be in the network
/// namespace of the gate, whose sockets are asked.
pub struct Explainer {
    maps: LiveMaps,
}

/// What happened to one packet on its way through the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the packet is, then each question that was asked and its answer.
    pub steps: Vec<String>,
    pub verdict: Verdict,
    /// Interface that a relayed packet leaves by.
    pub egress: Option<u32>,
    /// Whether a drop is done, or only counted: audit mode.
    pub enforced: bool,
}

impl Explainer {
    /// # Errors
    ///
    /// When no gate is pinned there, or its maps cannot be read.
    pub fn open(pin: &Path) -> Result<Self, GateError> {
        Ok(Self { maps: LiveMaps::open(&PinDir::new(pin))? })
    }

    /// Takes an Ethernet frame through [`process`] as if it arrived by the interface of that index.
    pub fn explain(&self, frame: &[u8], ingress: u32) -> Explanation {
        let now = monotonic();
        let lookup = Traced::new(&self.maps, ingress, now);
        lookup.note(describe(frame));
        let outcome = process(&mut Copied(frame.to_vec()), &lookup, ingress, now);
        Explanation {
            steps: lookup.into_steps(),
            verdict: outcome.verdict,
            egress: matches!(outcome.verdict, Verdict::Relay(_)).then_some(outcome.egress),
            enforced: self.maps.settings().is_none_or(|settings: Settings| settings.enforces(now)),
        }
    }
}

/// The packet in one line, as the parser sees it.
fn describe(frame: &[u8]) -> String {
    let length = frame.len();
    match parse(frame) {
        Err(reason) => format!("{length} bytes that are no packet: {}", reason.meaning()),
        Ok(PacketMeta::Arp) => format!("{length} bytes of ARP"),
        Ok(PacketMeta::Ip(ip)) => {
            let (from, to) = (std::net::IpAddr::from(ip.source), std::net::IpAddr::from(ip.destination));
            let between = |source: u16, destination: u16| {
                let [source, destination] =
                    [(from, source), (to, destination)].map(|(ip, port)| std::net::SocketAddr::new(ip, port));
                format!("{source} → {destination}")
            };
            let what = match ip.transport {
                Transport::Tcp { source, destination, flags, .. } => {
                    let kind = if flags.is_open() { " (an opening)" } else { "" };
                    format!("TCP {}{kind}", between(source, destination))
                }
                Transport::Udp { source, destination, payload } => {
                    format!("UDP {}, {} bytes of payload", between(source, destination), payload.length)
                }
                Transport::Icmp(icmp) => format!("ICMP {from} → {to}: {icmp:?}"),
            };
            format!("{length} bytes: {what}")
        }
    }
}

/// A frame that may be rewritten.
struct Copied(Vec<u8>);

impl Frame for Copied {
    type Bytes<const N: usize> = [u8; N];

    fn length(&self) -> usize {
        self.0.len()
    }

    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.as_slice().read(at)
    }
}

impl FrameMut for Copied {
    type Place<'a, const N: usize> = &'a mut [u8; N];

    fn place<const N: usize>(&mut self, at: usize) -> Result<&mut [u8; N], DropReason> {
        let place = self.0.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
        place.ok_or(DropReason::RelayNoHop)
    }

    fn cut_front(&mut self, bytes: i32) -> Result<(), DropReason> {
        let count = usize::try_from(bytes.unsigned_abs()).map_err(|_| DropReason::RelayNoHop)?;
        if bytes < 0 {
            self.0.splice(..0, std::iter::repeat_n(0, count));
        } else if count <= self.0.len() {
            self.0.drain(..count);
        } else {
            return Err(DropReason::RelayNoHop);
        }
        Ok(())
    }
}
