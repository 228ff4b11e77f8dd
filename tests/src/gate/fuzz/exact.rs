//! The host's side of a comparison: the model with budgets and counts that move as the kernel's do.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;

use portcullis_common::layout::{CidKey, FlowEntry, Hop, HostFlowKey, PortSets, Session, Settings};
use portcullis_common::{
    Ack, Address, Flow, Lookup, Outcome, RateClass, TcpSocket, Verdict, process, take_token,
};

use crate::gate::model::{Bytes, INGRESS_IFINDEX, Model};

pub struct Exact {
    pub model: Model,
    flows: HashMap<HostFlowKey, usize>,
    recent: HashSet<u64>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Words of `BUCKET` that are not 0, and more.
    words: HashMap<u32, u64>,
    /// Packets and bytes of each flow.
    relayed: Vec<(u64, u64)>,
    journal: Vec<Change>,
    /// Buckets that the last packet asked, whether or not they gave.
    asked: Vec<u32>,
    /// The same of all packets since [`Exact::commit`].
    asked_by_all: HashSet<u32>,
}

/// What [`Exact::undo`] takes back.
#[derive(Clone, Copy)]
enum Change {
    Word { slot: u32, old: u64 },
    Count { index: usize, length: u16 },
}

impl Exact {
    /// `recent` are hashes of networks with a recent login.
    pub fn new(model: Model, recent: HashSet<u64>) -> Self {
        let flows = model.flows.iter().enumerate().map(|(index, (flow, _))| (HostFlowKey::udp(flow), index));
        let state = State { relayed: vec![(0, 0); model.flows.len()], ..State::default() };
        Self { flows: flows.collect(), recent, state: RefCell::new(state), model }
    }

    /// The verdict on a frame at `now`; the frame is left as the program would leave it.
    pub(in crate::gate) fn process(&self, frame: &mut Bytes, now: u64) -> Outcome {
        self.state.borrow_mut().asked.clear();
        process(frame, self, INGRESS_IFINDEX, now)
    }

    /// Buckets that the last packet asked.
    pub fn asked(&self) -> Vec<u32> {
        self.state.borrow().asked.clone()
    }

    pub fn verdict(&self, frame: &[u8], now: u64) -> Verdict {
        self.process(&mut Bytes(frame.to_vec()), now).verdict
    }

    pub fn word(&self, slot: u32) -> u64 {
        self.state.borrow().words.get(&slot).copied().unwrap_or_default()
    }

    /// How many changes there were so far.
    pub fn mark(&self) -> usize {
        self.state.borrow().journal.len()
    }

    /// Takes back what changed since `mark`; words that did, as they are again.
    pub fn undo(&self, mark: usize) -> HashMap<u32, u64> {
        let state = &mut *self.state.borrow_mut();
        let mut undone = HashMap::new();
        for change in state.journal.drain(mark..).rev() {
            match change {
                Change::Word { slot, old } => {
                    state.words.insert(slot, old);
                    undone.insert(slot, old);
                }
                Change::Count { index, length } => {
                    state.relayed[index].0 -= 1;
                    state.relayed[index].1 -= u64::from(length);
                }
            }
        }
        undone
    }

    /// Buckets that packets asked since [`Exact::commit`].
    pub fn asked_by_all(&self) -> Vec<u32> {
        self.state.borrow().asked_by_all.iter().copied().collect()
    }

    /// Nothing before now is taken back any more.
    pub fn commit(&self) {
        let state = &mut *self.state.borrow_mut();
        state.journal.clear();
        state.asked_by_all.clear();
    }

    pub fn set_word(&self, slot: u32, word: u64) {
        self.state.borrow_mut().words.insert(slot, word);
    }

    /// Packets and bytes of each flow of the model.
    pub fn relayed(&self) -> Vec<(u64, u64)> {
        self.state.borrow().relayed.clone()
    }
}

pub struct Entry {
    index: usize,
    entry: FlowEntry,
}

impl Deref for Entry {
    type Target = FlowEntry;

    fn deref(&self) -> &FlowEntry {
        &self.entry
    }
}

impl Lookup for Exact {
    type Entry = Entry;
    type Hop = Box<Hop>;

    fn settings(&self) -> Option<Settings> {
        self.model.settings()
    }

    fn ports(&self, port: u16) -> PortSets {
        self.model.ports(port)
    }

    fn is_admin(&self, protocol: u8, port: u16, remote: Address) -> bool {
        self.model.is_admin(protocol, port, remote)
    }

    fn tcp_socket(&self, flow: &Flow, ack: Option<Ack>) -> TcpSocket {
        self.model.tcp_socket(flow, ack)
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<u64> {
        self.model.host_flow(key)
    }

    fn take(&self, class: RateClass, hash: u64, now: u64) -> bool {
        let state = &mut *self.state.borrow_mut();
        let slot = class.slot(hash);
        state.asked.push(slot);
        state.asked_by_all.insert(slot);
        let word = state.words.entry(slot).or_default();
        let Some(next) = take_token(*word, now, class) else { return false };
        state.journal.push(Change::Word { slot, old: std::mem::replace(word, next) });
        true
    }

    fn is_recent(&self, network_hash: u64) -> bool {
        self.recent.contains(&network_hash)
    }

    fn cid_key(&self, slot: u32) -> Option<CidKey> {
        self.model.cid_key(slot)
    }

    fn is_device_revoked(&self, device: u32) -> bool {
        self.model.is_device_revoked(device)
    }

    fn tunnel(&self, key: &HostFlowKey) -> Option<u64> {
        self.model.tunnel(key)
    }

    fn flow(&self, flow: &Flow) -> Option<Entry> {
        let index = *self.flows.get(&HostFlowKey::udp(flow))?;
        Some(Entry { index, entry: self.model.flows[index].1 })
    }

    fn session(&self, index: u32) -> Option<Session> {
        self.model.session(index)
    }

    fn identity_epoch(&self, index: u32) -> Option<u64> {
        self.model.identity_epoch(index)
    }

    fn hop(&self, index: u32) -> Option<Box<Hop>> {
        self.model.hop(index)
    }

    fn count(&self, entry: &Entry, length: u16) {
        let state = &mut *self.state.borrow_mut();
        state.relayed[entry.index].0 += 1;
        state.relayed[entry.index].1 += u64::from(length);
        state.journal.push(Change::Count { index: entry.index, length });
    }
}
