//! The numbers of the node, in Prometheus' text format. Names are public API: `docs/reference.md` lists them.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::event::{Action, Event};
use crate::gate::{Counters, RelayTotals};

pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    logins: IntCounterVec,
    ssh_certificates: IntCounterVec,
    events: IntCounterVec,
    /// Events that found no room in the queue.
    pub events_lost: IntCounter,
    /// Events that a target (`file`, `store`) refused.
    pub events_unwritten: IntCounterVec,
    /// Seconds from a request's head to its reply's head.
    pub request_seconds: Histogram,
    /// Open connections of browsers.
    pub connections: IntGauge,
    /// Connections that were closed before a request: by cause.
    pub connections_refused: IntCounterVec,
    /// Bytes set aside for bodies that the portal reads.
    pub portal_body_bytes: IntGauge,
    /// Fetches of SAML metadata: by kind of its publisher, name and result (`good`, `failed`).
    pub(crate) metadata_fetches: IntCounterVec,
    /// Live tunnel connections by connector.
    pub tunnel_connections: IntGaugeVec,
    /// Streams that carry tunnels' datagrams over TCP.
    pub carried_streams: IntGauge,
    /// Datagrams of such streams that went nowhere: by cause (`gate`, `queue`).
    pub carried_dropped: IntCounterVec,
    /// Sessions that are live.
    pub sessions: IntGauge,
    /// Connections of access clients.
    pub access_connections: IntGauge,
    /// Private sessions, by where they are relayed (`kernel`, `userspace`, or `none` yet).
    pub private_sessions: IntGaugeVec,
    /// Private sessions asked for, by verdict and reason.
    pub private_opens: IntCounterVec,
    /// Private sessions that are over, by reason.
    pub private_ended: IntCounterVec,
    /// Access clients that are logged in.
    pub clients: IntGauge,
    /// Packets at the gate, by verdict (`pass`, `drop`) and reason. Set from the kernel's counters.
    pub gate_packets: IntCounterVec,
    /// Sampled events of the gate that found no room.
    pub gate_events_lost: IntCounter,
    /// Flows that this host opened and the gate could not note: answers to them are dropped.
    pub gate_host_flows_lost: IntCounter,
    /// Sessions and flows that the gate relays.
    pub relay_sessions: IntGauge,
    pub relay_flows: IntGauge,
    /// What relayed sessions have carried, by the end that sent it (`client`, `connector`).
    pub relay_packets: IntCounterVec,
    pub relay_bytes: IntCounterVec,
    /// Whether the gate is up.
    pub gate_attached: IntGauge,
    /// Whether the gate does the drops that it counts.
    pub gate_enforcing: IntGauge,
}

impl Metrics {
    /// Fails only where two metrics share a name, which is a bug that any test shows.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let decisions = counters(
            "portcullis_decisions_total",
            "Requests decided, by application, verdict (allow, deny) and reason",
            &["application", "verdict", "reason"],
        )?;
        let logins = counters(
            "portcullis_logins_total",
            "Login attempts, by identity provider, verdict and reason",
            &["identity_provider", "verdict", "reason"],
        )?;
        let ssh_certificates = counters(
            "portcullis_ssh_certificates_total",
            "SSH certificates asked for, by application, verdict and reason",
            &["application", "verdict", "reason"],
        )?;
        let events = counters("portcullis_events_total", "Events, by action", &["action"])?;
        let events_lost = counter("portcullis_events_lost_total", "Events that found no room in the queue")?;
        let events_unwritten =
            counters("portcullis_events_unwritten_total", "Events that a target refused", &["target"])?;
        let request_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "portcullis_request_duration_seconds",
                "Time from a request's head to its reply's head",
            )
            .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
        )?;
        registry.register(Box::new(request_seconds.clone()))?;
        let connections = gauge("portcullis_connections", "Open connections of browsers")?;
        let connections_refused = counters(
            "portcullis_connections_refused_total",
            "Connections closed before a request, by cause",
            &["cause"],
        )?;
        let portal_body_bytes = gauge(
            "portcullis_portal_body_bytes",
            "Bytes set aside for bodies of requests to the node's own pages",
        )?;
        let metadata_fetches = counters(
            "portcullis_metadata_fetches_total",
            "Fetches of SAML metadata, by kind of publisher, name and result (good, failed)",
            &["kind", "name", "result"],
        )?;
        let tunnel_connections = IntGaugeVec::new(
            Opts::new("portcullis_tunnel_connections", "Live tunnel connections, by connector"),
            &["connector"],
        )?;
        registry.register(Box::new(tunnel_connections.clone()))?;
        let carried_streams = gauge(
            "portcullis_carried_streams",
            "HTTP/2 streams that carry the datagrams of tunnels where UDP does not",
        )?;
        let carried_dropped = counters(
            "portcullis_carried_dropped_total",
            "Datagrams of such streams that went nowhere, by cause (gate, queue)",
            &["cause"],
        )?;
        let sessions = gauge("portcullis_sessions", "Live global sessions")?;
        let access_connections =
            gauge("portcullis_access_connections", "Live connections of access clients")?;
        let private_sessions = IntGaugeVec::new(
            Opts::new(
                "portcullis_private_sessions",
                "Private sessions, by where they are relayed (kernel, userspace, none yet)",
            ),
            &["path"],
        )?;
        registry.register(Box::new(private_sessions.clone()))?;
        let private_opens = counters(
            "portcullis_private_opens_total",
            "Private sessions asked for, by verdict (allow, deny) and reason",
            &["verdict", "reason"],
        )?;
        let private_ended = counters(
            "portcullis_private_ended_total",
            "Private sessions that are over, by reason",
            &["reason"],
        )?;
        let clients = gauge("portcullis_clients", "Access clients that are logged in")?;
        let gate_packets = counters(
            "portcullis_gate_packets_total",
            "Packets at the gate, by verdict (pass, drop) and reason",
            &["verdict", "reason"],
        )?;
        let gate_events_lost =
            counter("portcullis_gate_events_lost_total", "Sampled events of the gate that found no room")?;
        let gate_host_flows_lost = counter(
            "portcullis_gate_host_flows_lost_total",
            "Flows that this host opened and the gate could not note",
        )?;
        let relay_sessions = gauge("portcullis_relay_sessions", "Sessions that the gate relays")?;
        let relay_flows = gauge("portcullis_relay_flows", "Flows of relayed sessions, two of each")?;
        let relay_packets = counters(
            "portcullis_relay_packets_total",
            "Relayed packets, by the end that sent them (client, connector)",
            &["from"],
        )?;
        let relay_bytes = counters(
            "portcullis_relay_bytes_total",
            "Bytes of relayed IP packets, by the end that sent them (client, connector)",
            &["from"],
        )?;
        let gate_attached =
            gauge("portcullis_gate_attached", "1 while the gate guards every configured interface")?;
        let gate_enforcing = gauge(
            "portcullis_gate_enforcing",
            "1 while drops are done, 0 while they are only counted (audit)",
        )?;
        Ok(Self {
            registry,
            decisions,
            logins,
            ssh_certificates,
            events,
            events_lost,
            events_unwritten,
            request_seconds,
            connections,
            connections_refused,
            portal_body_bytes,
            metadata_fetches,
            tunnel_connections,
            carried_streams,
            carried_dropped,
            sessions,
            access_connections,
            private_sessions,
            private_opens,
            private_ended,
            clients,
            gate_packets,
            gate_events_lost,
            gate_host_flows_lost,
            relay_sessions,
            relay_flows,
            relay_packets,
            relay_bytes,
            gate_attached,
            gate_enforcing,
        })
    }

    /// The text that `/metrics` answers with.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Takes over the gate's counters, which only grow while its maps live.
    pub fn set_gate(&self, counters: &Counters) {
        let raise = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        for (verdict, reason, packets) in counters.by_reason() {
            raise(&self.gate_packets.with_label_values(&[verdict, reason]), packets);
        }
        raise(&self.gate_events_lost, counters.events_lost);
        raise(&self.gate_host_flows_lost, counters.host_flows_lost);
    }

    /// Takes over what the gate has relayed.
    pub fn set_relay(&self, totals: &RelayTotals) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.relay_sessions.set(gauge(totals.sessions));
        self.relay_flows.set(gauge(totals.flows));
        let raise = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        for (from, usage) in ["client", "connector"].into_iter().zip(totals.usage) {
            raise(&self.relay_packets.with_label_values(&[from]), usage.packets);
            raise(&self.relay_bytes.with_label_values(&[from]), usage.bytes);
        }
    }

    /// Counts an event; called by the event sink alone, so that log and metrics agree.
    pub(crate) fn count_event(&self, event: &Event) {
        self.events.with_label_values(&[event.action().as_str()]).inc();
        let verdict = if event.is_allowed() { "allow" } else { "deny" };
        let reason = event.refusal().map_or("", crate::flow::Reason::as_str);
        match event.action() {
            Action::Request | Action::SignIn => self
                .decisions
                .with_label_values(&[event.application_name().unwrap_or(""), verdict, reason])
                .inc(),
            Action::Login => {
                self.logins.with_label_values(&[event.provider_name().unwrap_or(""), verdict, reason]).inc()
            }
            Action::Certificate => self
                .ssh_certificates
                .with_label_values(&[event.application_name().unwrap_or(""), verdict, reason])
                .inc(),
            Action::Logout
            | Action::Disconnect
            | Action::Connect
            | Action::Revoke
            | Action::Admin
            | Action::Gate
            | Action::Summary
            | Action::Panic
            | Action::Start
            | Action::Stop => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Reason;

    #[test]
    fn an_event_is_counted_where_it_belongs() {
        let metrics = Metrics::new().unwrap();
        metrics.count_event(&Event::new(Action::Request, false).reason(Reason::NoApplication));
        metrics.count_event(&Event::new(Action::Login, true).provider("local"));
        let text = metrics.render().unwrap();
        for line in [
            "portcullis_decisions_total{application=\"\",reason=\"no_application\",verdict=\"deny\"} 1",
            "portcullis_logins_total{identity_provider=\"local\",reason=\"\",verdict=\"allow\"} 1",
            "portcullis_events_total{action=\"request\"} 1",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
