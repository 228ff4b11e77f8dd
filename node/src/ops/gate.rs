//! Follows the gate: counters into metrics, sampled drops into the log, its state into `/readyz`.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use portcullis_common::layout::Rule;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::event::{Action, Event};
use crate::gate::{Control, Enforcement, Gate, LinkEvents, SampledDrop};
use crate::helper::Helper;
use crate::tunnel::PrivateSessions;

use super::Health;
use super::relay::keep_relay;

/// How often the gate's counters are read.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Sampled drops that are remembered for `top`: the last ones.
const REMEMBERED: usize = 8_192;

/// Follows the gate until it is dropped; sources of sampled drops go to `recent`.
pub fn watch_gate(
    gate: Option<Gate>,
    helper: Option<Helper>,
    context: Arc<Context>,
    private: PrivateSessions,
    health: Health,
    recent: RecentDrops,
) {
    let Some(mut gate) = gate else { return };
    let helper = helper.map(Arc::new);
    let control = gate.control();
    if let Some(events) = gate.events() {
        let (context, control) = (Arc::clone(&context), control.clone());
        tokio::spawn(async move {
            let mut events = match events.into_async() {
                Ok(events) => events,
                Err(error) => return tracing::error!(%error, "the gate's events cannot be read"),
            };
            loop {
                match events.next().await {
                    Ok(dropped) => {
                        recent.remember(&dropped);
                        context.events.emit(describe(&dropped, control.enforced(dropped.at)));
                    }
                    Err(error) => return tracing::error!(%error, "the gate's events cannot be read"),
                }
            }
        });
    }
    if let Some(relay) = gate.relay() {
        if let Some(helper) = helper.clone() {
            relay.set_keeper(Arc::new(move |interface, address| {
                helper.keep_neighbour(interface, address).map_err(std::io::Error::other)
            }));
        }
        tokio::spawn(keep_relay(relay, private, Arc::clone(&context)));
    }
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(READ_EVERY);
        let mut before = None;
        let mut links = match LinkEvents::open() {
            Ok(links) => Some(links),
            Err(error) => {
                tracing::warn!(%error, "interfaces are only looked at every second");
                None
            }
        };
        let mut mender = helper.map(|helper| Mender { helper, told: HashMap::new() });
        loop {
            let changed = async {
                match &mut links {
                    Some(links) => links.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tick.tick() => {}
                result = changed => if result.is_err() { links = None },
            }
            // Before it is mended, so that nothing hides the gap.
            look(&gate, &context, &health);
            let wanted = &context.active().config.gate.interfaces;
            if !gate.unguarded(wanted).is_empty()
                && let Some(mut mending) = mender.take()
            {
                let mine = Arc::clone(&context);
                let mended = tokio::task::spawn_blocking(move || {
                    mending.mend(&mut gate, &mine);
                    (gate, mending)
                });
                match mended.await {
                    Ok((mended, mending)) => (gate, mender) = (mended, Some(mending)),
                    Err(error) => return tracing::error!(%error, "the gate is no longer followed"),
                }
                look(&gate, &context, &health);
            }
            before = Some(look_at_mode(&control, before, &context, &health));
        }
    });
}

fn look(gate: &Gate, context: &Context, health: &Health) {
    let counted = match gate.counters() {
        Ok(counters) => {
            context.metrics.set_gate(&counters);
            true
        }
        Err(error) => {
            tracing::error!("the gate's counters cannot be read: {:#}", anyhow::Error::new(error));
            false
        }
    };
    let attached = counted && gate.guards(&context.active().config.gate.interfaces);
    context.metrics.gate_attached.set(i64::from(attached));
    if health.set_gate(attached) && !attached {
        tracing::error!("the gate is no longer attached");
        context.events.emit(Event::new(Action::Gate, false).detail("the gate is no longer attached"));
    }
}

/// Gets interfaces guarded that came while the daemon runs.
struct Mender {
    helper: Arc<Helper>,
    /// What stood in the way last, by interface: told once.
    told: HashMap<String, String>,
}

impl Mender {
    /// Blocks.
    fn mend(&mut self, gate: &mut Gate, context: &Context) {
        for interface in gate.unguarded(&context.active().config.gate.interfaces) {
            let attached = self.helper.attach(&interface).and_then(|grip| Ok(gate.adopt(&interface, grip)?));
            let (done, detail) = match attached {
                Ok(()) => (true, format!("the gate is up on {interface}, which came while the node ran")),
                Err(error) => (false, format!("the gate cannot be put up on {interface}: {error:#}")),
            };
            let told = self.told.insert(interface, detail.clone());
            if done {
                tracing::warn!("{detail}");
            } else if told.as_ref() == Some(&detail) {
                continue;
            } else {
                tracing::error!("{detail}");
            }
            context.events.emit(Event::new(Action::Gate, done).detail(detail));
        }
    }
}

/// A trial that nobody confirms ends without anybody's doing: only this sees it.
fn look_at_mode(
    control: &Control,
    before: Option<Enforcement>,
    context: &Context,
    health: &Health,
) -> Enforcement {
    let now = match control.enforcement() {
        Ok(now) => now,
        Err(error) => {
            tracing::error!("the gate's mode cannot be read: {:#}", anyhow::Error::new(error));
            return before.unwrap_or(Enforcement::Enforcing);
        }
    };
    context.metrics.gate_enforcing.set(i64::from(now.is_on()));
    health.set_enforcement(now);
    if before.is_none_or(|before| before.is_on() != now.is_on()) && (before.is_some() || !now.is_on()) {
        tracing::warn!("the gate: {now}");
        context.events.emit(Event::new(Action::Gate, now.is_on()).detail(now.to_string()));
    }
    now
}

/// The last sampled drops, for the question who they come from. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RecentDrops {
    drops: Arc<Mutex<VecDeque<Seen>>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Duration,
    network: IpNet,
    reason: &'static str,
}

/// Sampled drops of one network for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// A /24 or a /56.
    pub network: IpNet,
    pub reason: String,
    /// Samples, not packets: of a flood one packet in many is sampled.
    pub samples: u64,
}

impl RecentDrops {
    fn remember(&self, dropped: &SampledDrop) {
        let Some(ends) = dropped.ends else { return };
        let Some(network) = network(ends.source.ip().to_canonical()) else { return };
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        if drops.len() >= REMEMBERED {
            drops.pop_front();
        }
        drops.push_back(Seen { at: dropped.at, network, reason: dropped.reason.name() });
    }

    /// Networks and reasons with the most samples since `from`, on the monotonic clock; at most `limit`.
    pub fn top(&self, from: Duration, limit: usize) -> Vec<Source> {
        let mut counts: HashMap<(IpNet, &'static str), u64> = HashMap::new();
        for seen in self.drops.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if seen.at >= from {
                *counts.entry((seen.network, seen.reason)).or_default() += 1;
            }
        }
        let mut sources: Vec<Source> = counts
            .into_iter()
            .map(|((network, reason), samples)| Source { network, reason: reason.to_owned(), samples })
            .collect();
        sources.sort_by(|a, b| {
            b.samples.cmp(&a.samples).then_with(|| (a.network, &a.reason).cmp(&(b.network, &b.reason)))
        });
        sources.truncate(limit);
        sources
    }
}

fn network(address: IpAddr) -> Option<IpNet> {
    let length = if address.is_ipv4() { 24 } else { 56 };
    IpNet::new(address, length).ok().map(|network| network.trunc())
}

fn describe(dropped: &SampledDrop, enforced: bool) -> Event {
    let event = Event::new(Action::Gate, !enforced);
    let what = if enforced { "dropped" } else { "not dropped (audit mode)" };
    let reason = dropped.reason.name();
    let rule = match dropped.rule {
        Some(Rule::Budget(class)) => format!(", budget {}", class.name()),
        Some(Rule::Session(index)) => format!(", session {index}"),
        None => String::new(),
    };
    match &dropped.ends {
        Some(ends) => event.address(ends.source.ip().to_canonical()).detail(format!(
            "{what} {reason}{rule}: protocol {} from {} to {}, {} bytes",
            ends.protocol, ends.source, ends.destination, dropped.length
        )),
        None => event.detail(format!("{what} {reason}{rule}: {} bytes", dropped.length)),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_common::{DropReason, RateClass};

    use super::*;
    use crate::gate::Ends;

    fn dropped(source: &str, at: u64) -> SampledDrop {
        SampledDrop {
            reason: DropReason::SynRate,
            rule: Some(Rule::Budget(RateClass::SynNetwork)),
            at: Duration::from_secs(at),
            ifindex: 2,
            length: 60,
            ends: Some(Ends {
                protocol: 6,
                source: source.parse().unwrap(),
                destination: "192.0.2.1:443".parse().unwrap(),
            }),
        }
    }

    #[test]
    fn sources_are_counted_by_network_and_only_the_last_are_kept() {
        let recent = RecentDrops::default();
        for (source, at) in [
            ("198.51.100.7:1", 9),
            ("198.51.100.7:1", 10),
            ("198.51.100.99:2", 11),
            ("[2001:db8:0:12::1]:1", 12),
            ("[2001:db8:0:34::1]:1", 13),
            ("[::ffff:203.0.113.4]:1", 14),
        ] {
            recent.remember(&dropped(source, at));
        }
        let top = |from, limit| {
            let top = recent.top(Duration::from_secs(from), limit);
            top.iter().map(|source| format!("{} {}", source.network, source.samples)).collect::<Vec<_>>()
        };
        assert_eq!(top(10, 9), ["198.51.100.0/24 2", "2001:db8::/56 2", "203.0.113.0/24 1"]);
        assert_eq!(top(0, 1), ["198.51.100.0/24 3"]);
        for _ in 0..2 * REMEMBERED {
            recent.remember(&dropped("192.0.2.200:1", 20));
        }
        assert_eq!(top(0, 9), [format!("192.0.2.0/24 {REMEMBERED}")]);
    }

    #[test]
    fn an_event_names_the_rule_and_whether_it_was_enforced() {
        let event =
            |enforced| serde_json::to_string(&describe(&dropped("198.51.100.7:1", 1), enforced)).unwrap();
        assert!(
            event(true).contains("\"dropped syn_rate, budget syn_network: protocol 6 from 198.51.100.7:1")
        );
        assert!(event(false).contains("not dropped (audit mode) syn_rate"));
    }
}
