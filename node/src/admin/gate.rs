//! What administrators ask of the running gate: to enforce on trial, for good, or to count only; and who is dropped.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::clock;
use crate::gate::{Control, Dataplane, Enforcement, GateMode};
use crate::ops::RecentDrops;
use crate::store::Store;

/// A trial is no longer than this: a mistake must not wait a day to undo itself.
const LONGEST_TRIAL: Duration = Duration::from_secs(3600);
/// Sources that `top` lists at most.
const SOURCES: usize = 20;

/// The running gate, as far as administrators may touch it.
pub struct GateDesk {
    pub control: Control,
    pub dataplane: Dataplane,
    /// As the configuration has it.
    pub mode: GateMode,
    pub recent: RecentDrops,
}

impl GateDesk {
    /// Drops are done for so long. The deadline is in the kernel, so that it holds with the daemon dead, too.
    pub(super) async fn enforce(&self, store: &Store, within: Duration) -> anyhow::Result<Value> {
        self.check_audit()?;
        ensure!(
            self.dataplane == Dataplane::Xdp,
            "the userspace dataplane cannot enforce on trial: nftables knows no deadline, so that with the daemon dead \
             nothing would end it. Set `mode = \"enforce\"` and restart"
        );
        ensure!(
            !within.is_zero() && within <= LONGEST_TRIAL,
            "--confirm-within: from 1s to {}s",
            LONGEST_TRIAL.as_secs()
        );
        ensure!(!store.gate_is_confirmed().await?, "the gate enforces already, and it was confirmed");
        self.control.enforce(Some(within))?;
        Ok(json!({ "seconds": within.as_secs() }))
    }

    /// Ends the trial: drops are done from now on, and after every restart. Stored first: a node that dies between
    /// the two enforces when it is back.
    pub(super) async fn confirm(&self, store: &Store) -> anyhow::Result<Value> {
        self.check_audit()?;
        match self.control.enforcement()? {
            Enforcement::Trial(_) => {}
            Enforcement::Enforcing => anyhow::bail!("the gate enforces already, and it was confirmed"),
            Enforcement::Audit => {
                anyhow::bail!(
                    "there is no trial to confirm (any more): the gate is in audit mode. Start one by `enforce`"
                )
            }
        }
        store.confirm_gate(true).await?;
        if let Err(error) = self.control.enforce(None) {
            store.confirm_gate(false).await?;
            return Err(error.into());
        }
        Ok(Value::Null)
    }

    /// Drops are counted only, from now on and after every restart; in userspace, where nftables has been told
    /// otherwise, after the next one.
    pub(super) async fn audit(&self, store: &Store) -> anyhow::Result<Value> {
        self.check_audit()?;
        store.confirm_gate(false).await?;
        if self.dataplane == Dataplane::Xdp {
            self.control.audit()?;
        }
        Ok(json!({ "restart": self.dataplane != Dataplane::Xdp }))
    }

    pub(super) async fn status(&self, store: &Store) -> anyhow::Result<Value> {
        Ok(json!({
            "enforcement": self.control.enforcement()?.to_string(),
            "configured": match self.mode {
                GateMode::Enforce => "enforce",
                GateMode::Audit => "audit",
            },
            "confirmed": store.gate_is_confirmed().await?,
        }))
    }

    pub(super) fn top(&self, last: Duration) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self.recent.top(clock::monotonic().saturating_sub(last), SOURCES))?)
    }

    fn check_audit(&self) -> anyhow::Result<()> {
        ensure!(
            self.mode == GateMode::Audit,
            "the configuration says `mode = \"enforce\"`: the gate enforces, and only the configuration changes that"
        );
        Ok(())
    }
}
