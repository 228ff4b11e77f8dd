//! What the loaded program's maps hold: words that a comparison sets and reads, and all of them at once.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, Map, MapError};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use portcullis::gate;
use portcullis_common::layout::{
    AdminKey, CidKey, FlowEntry, FlowKey4, FlowKey6, Hop, HostFlowKey, Session, Settings, recent_bit,
};
use portcullis_common::{Family, Flow};

use crate::gate::kernel::Kernel;
use crate::gate::model::Model;

impl Kernel {
    /// Runs the ingress program on a frame. `out` takes the frame as it is left, the first so many bytes of it;
    /// it must have some bytes more than `frame`.
    pub(super) fn act(&self, frame: &[u8], out: &mut [u8]) -> Result<(u32, usize)> {
        let program: &Xdp = self.ebpf.program(gate::INGRESS).context("no ingress")?.try_into()?;
        let run = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ..TestRunOptions::new()
        })?;
        Ok((run.return_value, usize::try_from(run.data_size_out)?))
    }

    pub(super) fn set_settings(&mut self, settings: Settings) -> Result<()> {
        let mut map: Array<_, Settings> = self.map_mut("SETTINGS")?;
        Ok(map.set(0, settings, 0)?)
    }

    /// Sets words of buckets, by slot.
    pub fn set_words(&mut self, words: impl IntoIterator<Item = (u32, u64)>) -> Result<()> {
        let mut bucket: Array<_, u64> = self.map_mut("BUCKET")?;
        for (slot, word) in words {
            bucket.set(slot, word, 0)?;
        }
        Ok(())
    }

    /// Words of buckets, by slot.
    pub fn words(&self, slots: impl IntoIterator<Item = u32>) -> Result<Vec<(u32, u64)>> {
        let bucket: Array<_, u64> = self.map("BUCKET")?;
        slots.into_iter().map(|slot| Ok((slot, bucket.get(&slot, 0)?))).collect()
    }

    /// Marks the network as one with a recent login.
    pub fn set_recent(&mut self, network_hash: u64) -> Result<()> {
        let (word, bit) = recent_bit(network_hash);
        let mut recent: Array<_, u64> = self.map_mut("RECENT")?;
        let known = recent.get(&word, 0)?;
        Ok(recent.set(word, known | bit, 0)?)
    }

    /// Puts next hops into their other slots, and none where they were.
    pub(super) fn move_hops(&mut self, model: &Model) -> Result<()> {
        let mut slots: Array<_, u64> = self.map_mut("HOP_SLOT")?;
        for index in model.hops.keys() {
            slots.set(*index, 1, 0)?;
        }
        let mut hops: Array<_, Hop> = self.map_mut("NEXTHOP")?;
        for (index, hop) in &model.hops {
            hops.set(2 * index, Hop::default(), 0)?;
            hops.set(2 * index + 1, hop, 0)?;
        }
        Ok(())
    }

    /// Packets and bytes of each flow.
    pub(super) fn relayed(&self, flows: &[(Flow, FlowEntry)]) -> Result<Vec<(u64, u64)>> {
        let v4: BpfHashMap<_, FlowKey4, FlowEntry> = self.map("FLOW4")?;
        let v6: BpfHashMap<_, FlowKey6, FlowEntry> = self.map("FLOW6")?;
        let counts = flows.iter().map(|(flow, _)| {
            let entry = match flow.family {
                Family::V4 => v4.get(&FlowKey4::new(flow), 0)?,
                Family::V6 => v6.get(&FlowKey6::new(flow), 0)?,
            };
            Ok((entry.packets, entry.bytes))
        });
        counts.collect()
    }

    /// Every entry of every map but those that count: `COUNTERS`, `BUCKET`, `EVENTS` and `LOSS`, and the counts in
    /// flow entries.
    pub fn contents(&self) -> Result<BTreeMap<&'static str, Vec<Vec<u8>>>> {
        const COUNTS: usize = 16;
        const ENTRY: usize = size_of::<FlowEntry>();
        let mut contents = BTreeMap::from([
            ("PORTS", self.array::<8>("PORTS")?),
            ("RECENT", self.array::<8>("RECENT")?),
            ("SETTINGS", self.array::<{ size_of::<Settings>() }>("SETTINGS")?),
            ("CID_KEY", self.array::<{ size_of::<CidKey>() }>("CID_KEY")?),
            ("SESSION", self.array::<{ size_of::<Session>() }>("SESSION")?),
            ("IDENTITY_EPOCH", self.array::<8>("IDENTITY_EPOCH")?),
            ("HOP_SLOT", self.array::<8>("HOP_SLOT")?),
            ("NEXTHOP", self.array::<{ size_of::<Hop>() }>("NEXTHOP")?),
            ("HOSTFLOW", self.hash::<{ size_of::<HostFlowKey>() }, 8>("HOSTFLOW", 0)?),
            ("TUNNEL", self.hash::<{ size_of::<HostFlowKey>() }, 8>("TUNNEL", 0)?),
            ("REVOKED", self.hash::<4, 8>("REVOKED", 0)?),
            ("FLOW4", self.hash::<{ size_of::<FlowKey4>() }, ENTRY>("FLOW4", COUNTS)?),
            ("FLOW6", self.hash::<{ size_of::<FlowKey6>() }, ENTRY>("FLOW6", COUNTS)?),
        ]);
        let admin: LpmTrie<_, [u8; size_of::<AdminKey>()], u32> = self.map("ADMIN")?;
        let keys = admin.keys().map(|key| {
            let key = key?;
            Ok([&key.prefix_len().to_ne_bytes()[..], &key.data()].concat())
        });
        contents.insert("ADMIN", sorted(keys.collect::<Result<_>>()?));
        Ok(contents)
    }

    fn array<const V: usize>(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        let map: Array<_, [u8; V]> = self.map(name)?;
        map.iter().map(|value| Ok(value?.to_vec())).collect()
    }

    /// Keys and values, without the last so many bytes of each.
    fn hash<const K: usize, const V: usize>(&self, name: &str, without: usize) -> Result<Vec<Vec<u8>>> {
        let map: BpfHashMap<_, [u8; K], [u8; V]> = self.map(name)?;
        let entries = map.iter().map(|entry| {
            let (key, value) = entry?;
            Ok([&key[..], &value[..V - without]].concat())
        });
        Ok(sorted(entries.collect::<Result<_>>()?))
    }

    fn map<'a, T>(&'a self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a Map, Error = MapError>,
    {
        Ok(self.ebpf.map(name).with_context(|| name.to_owned())?.try_into()?)
    }
}

fn sorted(mut entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    entries.sort();
    entries
}
