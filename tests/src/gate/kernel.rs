//! The compiled program in the kernel, attached to nothing and with maps of its own.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, PerCpuArray, RingBuf};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use portcullis::gate;
use portcullis_common::layout::{AdminKey, Counter, HostFlowKey, IPPROTO_TCP, IPPROTO_UDP, PortSet};
use portcullis_common::{Address, RateClass, Verdict};

use super::model::Model;

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;

/// Loaded programs. Runs see the sockets of the network namespace of the calling thread.
pub struct Kernel {
    ebpf: Ebpf,
    /// Counters after the last run; only runs move them.
    counted: Option<HashMap<Verdict, u64>>,
}

impl Kernel {
    pub fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(gate::OBJECT)?;
        let ingress: &mut Xdp = ebpf.program_mut(gate::INGRESS).context("no ingress")?.try_into()?;
        ingress.load()?;
        let egress: &mut SchedClassifier = ebpf.program_mut(gate::EGRESS).context("no egress")?.try_into()?;
        egress.load()?;
        Ok(Self { ebpf, counted: None })
    }

    /// Makes the maps say what the model says.
    pub fn adopt(&mut self, model: &Model) -> Result<()> {
        let mut words = BTreeMap::new();
        for (set, port) in &model.ports {
            let set = PortSet::ALL[*set as usize];
            *words.entry(set.slot(*port)).or_insert(0u64) |= PortSet::bit(*port);
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
        self.set_budgets(model.exhausted)
    }

    /// Fills every budget, or uses it up for good.
    pub fn set_budgets(&mut self, exhausted: bool) -> Result<()> {
        let mut bucket: Array<_, u64> = self.ebpf.map_mut("BUCKET").context("BUCKET")?.try_into()?;
        for class in 0..RateClass::COUNT {
            bucket.set(class, if exhausted { u64::MAX / 2 } else { 0 }, 0)?;
        }
        Ok(())
    }

    /// Runs the ingress program on a frame; the verdict is the one whose counter moved.
    pub fn verdict(&mut self, frame: &[u8]) -> Result<Verdict> {
        let before = match self.counted.take() {
            Some(counted) => counted,
            None => self.counters()?,
        };
        let program: &Xdp = self.ebpf.program(gate::INGRESS).context("no ingress")?.try_into()?;
        let run = program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() })?;
        let after = self.counters()?;
        let moved: Vec<Verdict> =
            Verdict::all().filter(|verdict| after[verdict] != before[verdict]).collect();
        ensure!(moved.len() == 1, "one counter must move, not {moved:?}");
        let verdict = moved[0];
        ensure!(after[&verdict] == before[&verdict] + 1, "{verdict:?} counted more than once");
        let action = if verdict.is_pass() { XDP_PASS } else { XDP_DROP };
        self.counted = Some(after);
        ensure!(run.return_value == action, "{verdict:?} counted, but the action is {}", run.return_value);
        Ok(verdict)
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

    /// Everything that a map with insertable keys, or a table of the configuration, holds: what a stranger
    /// must not change.
    pub fn contents(&self) -> Result<Vec<Vec<u8>>> {
        let mut contents = Vec::new();
        for key in self.host_flows()? {
            contents.push(format!("{key:?}").into_bytes());
        }
        let admin: LpmTrie<_, AdminKey, u32> = self.ebpf.map("ADMIN").context("ADMIN")?.try_into()?;
        for key in admin.keys() {
            let key = key?;
            contents.push(format!("{} {:?}", key.prefix_len(), key.data()).into_bytes());
        }
        let ports: Array<_, u64> = self.ebpf.map("PORTS").context("PORTS")?.try_into()?;
        for word in ports.iter() {
            contents.push(word?.to_ne_bytes().to_vec());
        }
        contents.sort();
        Ok(contents)
    }
}

/// The clock that the program reads.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}
