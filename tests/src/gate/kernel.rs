//! The compiled program in the kernel, attached to nothing and with maps of its own.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use portcullis::gate;
use portcullis_common::layout::{
    AdminKey, CidKey, Counter, FlowEntry, FlowKey4, FlowKey6, Hop, HostFlowKey, IPPROTO_TCP, IPPROTO_UDP,
    PortSet, Session, Settings,
};
use portcullis_common::{Address, Family, RateClass, RelayReason, Verdict};

use super::model::Model;

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
pub const XDP_REDIRECT: u32 = 4;

/// Loaded programs. Runs see the sockets of the network namespace of the calling thread.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    /// Counters after the last run; only runs move them.
    counted: Option<HashMap<Verdict, u64>>,
    /// Buckets of the networks that the model names.
    payers: Vec<u32>,
}

impl Kernel {
    pub fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(gate::OBJECT)?;
        let ingress: &mut Xdp = ebpf.program_mut(gate::INGRESS).context("no ingress")?.try_into()?;
        ingress.load()?;
        let egress: &mut SchedClassifier = ebpf.program_mut(gate::EGRESS).context("no egress")?.try_into()?;
        egress.load()?;
        Ok(Self { ebpf, counted: None, payers: Vec::new() })
    }

    /// Makes the maps say what the model says.
    pub fn adopt(&mut self, model: &Model) -> Result<()> {
        let mut words = BTreeMap::new();
        for set in PortSet::ALL {
            for port in (0..=u16::MAX).filter(|port| model.holds(set, *port)) {
                *words.entry(PortSet::slot(port)).or_insert(0u64) |= set.bit(port);
            }
        }
        let mut ports: Array<_, u64> = self.ebpf.map_mut("PORTS").context("PORTS")?.try_into()?;
        for (slot, word) in words {
            ports.set(slot, word, 0)?;
        }
        let mut admin: LpmTrie<_, AdminKey, u32> = self.ebpf.map_mut("ADMIN").context("ADMIN")?.try_into()?;
        for rule in &model.admin {
            let protocol = match rule.protocol {
                gate::AdminProtocol::Tcp => IPPROTO_TCP,
                gate::AdminProtocol::Udp => IPPROTO_UDP,
            };
            let bits =
                32 + if rule.prefix.addr().is_ipv4() { 96 } else { 0 } + u32::from(rule.prefix.prefix_len());
            let key = AdminKey::new(protocol, rule.port, Address::from(rule.prefix.network()));
            admin.insert(&Key::new(bits, key), 1, 0)?;
        }
        let mut flows: BpfHashMap<_, HostFlowKey, u64> =
            self.ebpf.map_mut("HOSTFLOW").context("HOSTFLOW")?.try_into()?;
        for (key, at) in &model.host_flows {
            flows.insert(key, at, 0)?;
        }
        self.adopt_tunnels(model)?;
        self.adopt_sessions(model)?;
        self.payers = model.payers();
        self.set_budgets(model.exhausted)
    }

    fn adopt_tunnels(&mut self, model: &Model) -> Result<()> {
        let mut settings: Array<_, Settings> = self.map_mut("SETTINGS")?;
        settings.set(0, model.settings, 0)?;
        let mut keys: Array<_, CidKey> = self.map_mut("CID_KEY")?;
        for (slot, key) in &model.cid_keys {
            keys.set(*slot, key, 0)?;
        }
        let mut tunnels: BpfHashMap<_, HostFlowKey, u64> = self.map_mut("TUNNEL")?;
        for (key, ends) in &model.tunnels {
            tunnels.insert(key, ends, 0)?;
        }
        let mut revoked: BpfHashMap<_, u32, u64> = self.map_mut("REVOKED")?;
        for device in &model.revoked {
            revoked.insert(device, 1, 0)?;
        }
        Ok(())
    }

    fn adopt_sessions(&mut self, model: &Model) -> Result<()> {
        for (flow, entry) in &model.flows {
            match flow.family {
                Family::V4 => {
                    let mut flows: BpfHashMap<_, FlowKey4, FlowEntry> = self.map_mut("FLOW4")?;
                    flows.insert(FlowKey4::new(flow), entry, 0)?;
                }
                Family::V6 => {
                    let mut flows: BpfHashMap<_, FlowKey6, FlowEntry> = self.map_mut("FLOW6")?;
                    flows.insert(FlowKey6::new(flow), entry, 0)?;
                }
            }
        }
        let mut sessions: Array<_, Session> = self.map_mut("SESSION")?;
        for (index, session) in &model.sessions {
            sessions.set(*index, session, 0)?;
        }
        let mut epochs: Array<_, u64> = self.map_mut("IDENTITY_EPOCH")?;
        for (index, epoch) in &model.epochs {
            epochs.set(*index, epoch, 0)?;
        }
        let mut hops: Array<_, Hop> = self.map_mut("NEXTHOP")?;
        for (index, hop) in &model.hops {
            hops.set(2 * index, hop, 0)?;
        }
        Ok(())
    }

    pub(super) fn map_mut<'a, T>(&'a mut self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut Map, Error = MapError>,
    {
        Ok(self.ebpf.map_mut(name).with_context(|| name.to_owned())?.try_into()?)
    }

    /// Fills every budget, or uses it up for good.
    pub fn set_budgets(&mut self, exhausted: bool) -> Result<()> {
        let mut bucket: Array<_, u64> = self.ebpf.map_mut("BUCKET").context("BUCKET")?.try_into()?;
        for class in RateClass::ALL.into_iter().filter(|class| class.slot(u64::MAX) == class.slot(0)) {
            bucket.set(class.slot(0), if exhausted { u64::MAX / 2 } else { 0 }, 0)?;
        }
        // Those that are spread are as many as packets: these are the ones that the tests pay from.
        for slot in &self.payers {
            bucket.set(*slot, 0, 0)?;
        }
        Ok(())
    }

    /// Runs the ingress program on a frame; the verdict is the one whose counter moved.
    pub fn verdict(&mut self, frame: &[u8]) -> Result<Verdict> {
        Ok(self.process(frame)?.0)
    }

    /// The verdict on a frame, and the frame as the program left it.
    pub fn process(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let (verdict, taken, out) = self.run(frame)?;
        let action = match verdict {
            Verdict::Pass(_) => XDP_PASS,
            Verdict::Drop(_) => XDP_DROP,
            Verdict::Relay(RelayReason::Transmit) => XDP_TX,
            Verdict::Relay(RelayReason::Redirect) => XDP_REDIRECT,
        };
        ensure!(taken == action, "{verdict:?} counted, but the action is {taken}");
        Ok((verdict, out))
    }

    /// The verdict that was counted, and whether the packet passed all the same.
    pub fn audited(&mut self, frame: &[u8]) -> Result<(Verdict, bool)> {
        let (verdict, taken, _) = self.run(frame)?;
        Ok((verdict, taken == XDP_PASS))
    }

    /// What was counted, what was done, and what became of the frame.
    fn run(&mut self, frame: &[u8]) -> Result<(Verdict, u32, Vec<u8>)> {
        let before = match self.counted.take() {
            Some(counted) => counted,
            None => self.counters()?,
        };
        let program: &Xdp = self.ebpf.program(gate::INGRESS).context("no ingress")?.try_into()?;
        let mut out = vec![0; frame.len() + 64];
        let run = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })?;
        out.truncate(run.data_size_out as usize);
        let after = self.counters()?;
        let moved: Vec<Verdict> =
            Verdict::all().filter(|verdict| after[verdict] != before[verdict]).collect();
        ensure!(moved.len() == 1, "one counter must move, not {moved:?}");
        let verdict = moved[0];
        ensure!(after[&verdict] == before[&verdict] + 1, "{verdict:?} counted more than once");
        self.counted = Some(after);
        Ok((verdict, run.return_value, out))
    }

    /// Makes the next packet of this verdict one to sample.
    pub fn sample_next(&mut self, verdict: Verdict) -> Result<()> {
        self.counted = None;
        let mut counters: PerCpuArray<_, Counter> =
            self.ebpf.map_mut("COUNTERS").context("COUNTERS")?.try_into()?;
        let cpus = counters.get(&verdict.index(), 0)?.len();
        let fresh = Counter { packets: 1, sampled_at: 0 };
        counters.set(verdict.index(), vec![fresh; cpus].try_into()?, 0)?;
        Ok(())
    }

    /// Runs the egress program on a frame that this host would send.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let program: &SchedClassifier = self.ebpf.program(gate::EGRESS).context("no egress")?.try_into()?;
        let run = program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() })?;
        // TCX_NEXT: the packet goes on untouched.
        ensure!(run.return_value == u32::MAX, "the egress program returned {}", run.return_value);
        Ok(())
    }

    pub fn counters(&self) -> Result<HashMap<Verdict, u64>> {
        let counters: PerCpuArray<_, Counter> = self.ebpf.map("COUNTERS").context("COUNTERS")?.try_into()?;
        Verdict::all()
            .map(|verdict| {
                let packets = counters.get(&verdict.index(), 0)?.iter().map(|counter| counter.packets).sum();
                Ok((verdict, packets))
            })
            .collect()
    }

    pub fn events_lost(&self) -> Result<u64> {
        let loss: PerCpuArray<_, u64> = self.ebpf.map("LOSS").context("LOSS")?.try_into()?;
        Ok(loss.get(&0, 0)?.iter().sum())
    }

    pub fn host_flows(&self) -> Result<Vec<HostFlowKey>> {
        let flows: BpfHashMap<_, HostFlowKey, u64> =
            self.ebpf.map("HOSTFLOW").context("HOSTFLOW")?.try_into()?;
        Ok(flows.keys().collect::<Result<_, _>>()?)
    }

    pub fn events(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map("EVENTS").context("EVENTS")?;
        Ok(map.try_into()?)
    }
}

/// The clock that the program reads.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}
