//! Permission that lasts: a WebSocket outlives the decision that opened it, so it is decided about again.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::sleep;

use crate::clock;
use crate::context::Context;
use crate::flow::Facts;
use crate::policy::{Decision, Permit, decide};

/// Returns when what `permit` allowed is allowed no more: the policy's session duration is over, or a reload brought
/// policies that would decide otherwise. The end of the login itself is told by its own token.
pub(super) async fn withdrawn(context: &Context, permit: &Permit, address: IpAddr) {
    let mut active = context.active.clone();
    let over = async {
        match permit.session() {
            Some(_) => sleep(permit.token_expires_at().since(clock::now())).await,
            None => std::future::pending().await,
        }
    };
    let refused = async {
        while active.changed().await.is_ok() {
            let policies = Arc::clone(&active.borrow_and_update());
            let policies = &policies.policies;
            let allowed = policies.application(&permit.application().name).is_some_and(|application| {
                let facts = Facts { application, session: permit.session(), address };
                matches!(decide(policies, &facts, clock::now()), Decision::Allow(_))
            });
            if !allowed {
                return;
            }
        }
        // No more reloads: the node is about to end.
        std::future::pending().await
    };
    tokio::select! {
        () = over => {}
        () = refused => {}
    }
}
