//! Permission that lasts: what outlives the decision that opened it (a WebSocket, an event stream, a long body) is
//! held to that decision until its end.
//!
//! A [`Lease`] is made for every allowed request and is over as soon as one of these is so:
//!
//! 1. the login has ended (revoked, logged out, expired), or the service token (revoked, rotated, expired);
//! 2. the application token, or what policy would give a new one, has expired;
//! 3. a reload brought policies that would decide otherwise.
//!
//! Bodies look at the lease whenever they move. One that does not move, because its client reads no more, is stopped
//! from outside: its stream is reset, or its HTTP/1.1 connection closed.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::context::Context;
use crate::flow::{Facts, UnixTime};
use crate::identity::service::LiveService;
use crate::policy::{Decision, Permit, decide};

use super::identify::Callers;
use super::limits::{self, Patience};
use super::shares::Share;

/// The right of one request to go on. Dropped with the last part of the request.
#[derive(Debug)]
pub(super) struct Lease {
    over: CancellationToken,
    progress: Arc<Progress>,
    _watch: AbortOnDropHandle<()>,
    _share: Share,
}

/// Why there was no answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The lease is over.
    Over,
    /// The origin is late.
    Late,
}

impl Lease {
    /// The lease of a request from `address` that `permit` allowed, asked by `callers`. `stop` ends the stream or the
    /// connection that carries it.
    pub(super) fn new(
        context: &Arc<Context>,
        permit: &Permit,
        address: IpAddr,
        callers: &Callers,
        (stop, patience): (CancellationToken, Patience),
        share: Share,
    ) -> Self {
        let person = callers.person.as_ref();
        let over = person.map_or_else(CancellationToken::new, |person| person.live.ended.child_token());
        let progress = Arc::new(Progress::new(patience));
        // The service counts for a person's request too: a policy may have asked for both.
        let service = callers.service.clone();
        let expires = [
            person.map(|person| person.expires_at),
            service.as_ref().map(|live| live.service.expires_at),
            (permit.session().is_some() || permit.service().is_some()).then(|| permit.token_expires_at()),
        ];
        let expires = expires.into_iter().flatten().min();
        if service.as_ref().is_some_and(|live| live.ended.is_cancelled()) {
            over.cancel();
        }
        let watch = {
            let (context, permit) = (Arc::clone(context), permit.clone());
            let (over, progress) = (over.clone(), Arc::clone(&progress));
            async move {
                tokio::select! {
                    () = over.cancelled() => {}
                    () = expiry(expires) => {}
                    () = ended(service.as_ref()) => {}
                    () = withdrawn(&context, &permit, service.as_ref(), address) => {}
                    () = progress.stalled() => return stop.cancel(),
                }
                over.cancel();
                sleep(limits::CUT_GRACE).await;
                stop.cancel();
            }
        };
        let watch = AbortOnDropHandle::new(tokio::spawn(watch));
        Self { over, progress, _watch: watch, _share: share }
    }

    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits for the head of a response: no longer than the lease lasts and patience with the origin goes. An upload
    /// that makes progress is waited for; so is a conversation, which may begin whenever it likes.
    pub(super) async fn head<T>(&self, asking: impl Future<Output = T>) -> Result<T, Gone> {
        // The end of the lease comes first: it may have broken the upload, and with it the request.
        let head = tokio::select! {
            biased;
            () = self.over.cancelled() => return Err(Gone::Over),
            head = asking => head,
            () = self.progress.late() => return Err(Gone::Late),
        };
        self.progress.answered.store(true, Ordering::Release);
        Ok(head)
    }
}

/// How the bodies of a request move.
#[derive(Debug)]
pub(super) struct Progress {
    patience: Patience,
    begun: Instant,
    /// Milliseconds after `begun`, and one more, since when the node waits for the client to take what it was given;
    /// 0 while it does not.
    reader_owes_since: AtomicU64,
    /// Milliseconds after `begun` at which the request's body last moved.
    uploaded_at: AtomicU64,
    /// The head of the response is there.
    answered: AtomicBool,
    /// Both sides talk when they like (gRPC): the silence of one says nothing.
    conversation: AtomicBool,
    stalled: AtomicBool,
}

impl Progress {
    fn new(patience: Patience) -> Self {
        Self {
            patience,
            begun: Instant::now(),
            reader_owes_since: AtomicU64::new(0),
            uploaded_at: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            conversation: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
        }
    }

    /// The request is part of a conversation.
    pub(super) fn converse(&self) {
        self.conversation.store(true, Ordering::Release);
    }

    /// The client was given something to read.
    pub(super) fn given(&self) {
        self.reader_owes_since.store(self.now().saturating_add(1), Ordering::Release);
    }

    /// The client has taken what it was given: now it is the origin that is waited for.
    pub(super) fn taken(&self) {
        self.reader_owes_since.store(0, Ordering::Release);
    }

    /// A part of the request's body has come.
    pub(super) fn uploaded(&self) {
        self.uploaded_at.store(self.now(), Ordering::Release);
    }

    /// How long the body of the request may pause; for ever once the origin has answered, since what it still reads
    /// then it reads because it wants to.
    pub(super) fn upload_pause(&self) -> Option<Duration> {
        let free = self.answered.load(Ordering::Acquire) || self.conversation.load(Ordering::Acquire);
        (!free).then_some(self.patience.upload_pause)
    }

    /// Whether the reply was stopped because its reader had stopped.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// Returns when the client has taken nothing of what it was given for too long.
    async fn stalled(&self) {
        loop {
            let pause = self.patience.reply_pause;
            let left = match self.reader_owes_since.load(Ordering::Acquire) {
                0 => pause,
                since => pause.saturating_sub(self.since(since.saturating_sub(1))),
            };
            if left.is_zero() {
                self.stalled.store(true, Ordering::Release);
                return;
            }
            sleep(left).await;
        }
    }

    /// Returns when the origin should have answered.
    async fn late(&self) {
        loop {
            let idle = self.since(self.uploaded_at.load(Ordering::Acquire));
            let left = match self.conversation.load(Ordering::Acquire) {
                true => self.patience.head,
                false => self.patience.head.saturating_sub(idle),
            };
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then: u64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(then))
    }
}

async fn expiry(at: Option<UnixTime>) {
    match at {
        Some(at) => sleep(at.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// Returns when the service token is over.
async fn ended(service: Option<&LiveService>) {
    match service {
        Some(live) => live.ended.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Returns when a reload brought policies that would not allow what `permit` allowed.
async fn withdrawn(context: &Context, permit: &Permit, service: Option<&LiveService>, address: IpAddr) {
    let mut active = context.active.clone();
    while active.changed().await.is_ok() {
        let policies = Arc::clone(&active.borrow_and_update());
        let policies = &policies.policies;
        let allowed = policies.application(&permit.application().name).is_some_and(|application| {
            let service = service.map(|live| &live.service);
            let facts = Facts { application, session: permit.session(), service, address };
            matches!(decide(policies, &facts, clock::now()), Decision::Allow(_))
        });
        if !allowed {
            return;
        }
    }
    // No more reloads: the node is about to end.
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(30),
        upload_pause: Duration::from_secs(5),
        reply_pause: Duration::from_secs(20),
    };

    async fn lasts(future: impl Future<Output = ()>) -> Option<u64> {
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(3600), future).await.ok()?;
        Some(begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_owes_only_what_it_was_given() {
        let progress = Progress::new(PATIENCE);
        assert_eq!(lasts(progress.stalled()).await, None, "a quiet origin is nobody's fault");
        progress.given();
        assert_eq!(lasts(progress.stalled()).await, Some(20));
        assert!(progress.has_stalled());

        let progress = Arc::new(Progress::new(PATIENCE));
        progress.given();
        let slow = Arc::clone(&progress);
        tokio::spawn(async move {
            for _ in 0..10 {
                sleep(Duration::from_secs(15)).await;
                slow.taken();
                slow.given();
            }
        });
        assert_eq!(lasts(progress.stalled()).await, Some(170), "slow is not stalled");
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_is_late_once_it_has_everything() {
        let progress = Arc::new(Progress::new(PATIENCE));
        let uploading = Arc::clone(&progress);
        tokio::spawn(async move {
            for _ in 0..10 {
                sleep(Duration::from_secs(10)).await;
                uploading.uploaded();
            }
        });
        assert_eq!(lasts(progress.late()).await, Some(130));
        let progress = Progress::new(PATIENCE);
        progress.converse();
        assert_eq!(lasts(progress.late()).await, None, "a conversation may begin late");
    }
}
