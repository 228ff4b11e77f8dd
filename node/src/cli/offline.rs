//! What commands do where no node runs.

use std::path::Path;

use crate::admin::service::Service;
use crate::config::Config;
use crate::event::{Action, Event};

use super::output;

/// Writes the event of a change that was made without the node. The change is made: what stands in the way of the
/// event is told, and no failure.
pub(super) fn record(config: &Path, detail: &str) {
    let write = || -> anyhow::Result<()> {
        let config = Config::load(config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let service = Service::offline(&config).await?;
            let uid = rustix::process::getuid().as_raw();
            let event = Event::new(Action::Admin, true).claimed_user(&format!("uid {uid}")).detail(detail);
            service.events.emit(event);
            service.events.flush().await;
            Ok(())
        })
    };
    if let Err(error) = write() {
        output::warning(&format!("done, but the log does not have it: {error:#}"));
    }
}
