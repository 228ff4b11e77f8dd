//! The loop behind a [`super::Client`]: keeps the control connection, and every session's place on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::clock;
use crate::flow::UnixTime;

use super::super::access_wire::{AccessFrame, AccessRefusal, Opened, RequestId};
use super::super::carrier::{Connected, LegWay, Routes, Web};
use super::super::connector::{Backoff, Knocker};
use super::super::identity::KeyHash;
use super::super::reach::reach;
use super::super::relay::SessionRef;
use super::super::session::{ClientAction, ClientInput};
use super::super::transport::{TransportError, access_config};
use super::super::wire::{Authority, CloseCode, DeviceSecret};
use super::early::EarlyLeg;
use super::link::{Asked, CLOSE_TIME, Link, Over, Wish, part, renewed};
use super::session::{Session, SessionEnd, Start};
use super::{Command, Credentials, Notice, OpenError, Shared, Wanted, unreachable};

/// A wish is carried over to the next connection so often.
const MAX_ATTEMPTS: u32 = 3;

struct Control {
    shared: Arc<Shared>,
    commands: mpsc::WeakSender<Command>,
    queue: mpsc::Receiver<Command>,
    wishes: Vec<Wish>,
    live: BTreeMap<SessionRef, Arc<Session>>,
    next: u32,
    ways: Option<Ways>,
}

/// The ways to a node, with what they have learned, for as long as it is the same one to the same device.
struct Ways {
    node: KeyHash,
    web: Option<Authority>,
    device: DeviceSecret,
    routes: Arc<Routes>,
}

/// Runs until the last [`super::Client`] is dropped or stopped.
pub(super) async fn run(
    shared: Arc<Shared>,
    commands: mpsc::WeakSender<Command>,
    queue: mpsc::Receiver<Command>,
) {
    let mut control =
        Control { shared, commands, queue, wishes: Vec::new(), live: BTreeMap::new(), next: 0, ways: None };
    let mut backoff = Backoff::default();
    let mut lost = false;
    let stopped = loop {
        while control.wishes.is_empty() && control.live.is_empty() {
            match control.queue.recv().await {
                Some(command) => {
                    if let Some(stopped) = control.take(command) {
                        return control.shut(Some(stopped)).await;
                    }
                }
                None => return control.shut(None).await,
            }
        }
        let (over, served) = control.connection(&mut lost).await;
        backoff.served(served);
        match over {
            Over::Stopped(stopped) => break stopped,
            Over::Failed(error) => {
                for wish in control.wishes.drain(..) {
                    let _ = wish.reply.send(Err(error.clone()));
                }
            }
            Over::Lost(why) => {
                if !lost && !control.live.is_empty() {
                    control.shared.login.notify(Notice::Lost(why));
                }
                lost = true;
            }
        }
        let until = Instant::now() + backoff.next(u64::from_be_bytes(clock::random()));
        // A wish that comes meanwhile does not wait for the whole of it.
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                command = control.queue.recv() => match command {
                    Some(command @ Command::Open { .. }) => {
                        control.take(command);
                        break;
                    }
                    Some(command) => if let Some(stopped) = control.take(command) {
                        return control.shut(Some(stopped)).await;
                    },
                    None => return control.shut(None).await,
                },
            }
        }
    };
    control.shut(stopped).await;
}

impl Control {
    /// Puts a command where it is looked after later; who waits for the end, if that is what is commanded.
    fn take(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Open { wanted, reply } => self.wishes.push(Wish { wanted, reply, attempts: 0 }),
            Command::Ended(session) => {
                self.live.remove(&session.session_ref());
            }
            Command::Stop(stopped) => return Some(stopped),
        }
        None
    }

    /// One connection, from the dial to its end, and how long it was in service.
    async fn connection(&mut self, lost: &mut bool) -> (Over, Duration) {
        let never = Duration::ZERO;
        let credentials = match Arc::clone(&self.shared).login.credentials().await {
            Ok(credentials) => credentials,
            Err(error) => return (Over::Failed(error.into()), never),
        };
        let routes = match self.routes(&credentials) {
            Ok(routes) => routes,
            Err(error) => return (Over::Failed(OpenError::Socket(error.to_string())), never),
        };
        let node = credentials.address.clone();
        let connected = match reach(&node, 0, &routes).await {
            Ok(connected) => connected,
            Err(error) => {
                let error = unreachable(&node, &error);
                for wish in self.wishes.drain(..) {
                    let _ = wish.reply.send(Err(error.clone()));
                }
                return (Over::Lost(error.to_string()), never);
            }
        };
        let Connected { endpoint, connection, .. } = &connected;
        let since = Instant::now();
        let mut link = match Link::open(&connected, credentials).await {
            Ok(link) => link,
            Err(error) => return (Over::Lost(error.to_string()), never),
        };
        let over = match self.ask_all(&mut link, connection).await {
            Ok(()) => loop {
                if let Err(over) = self.step(&mut link, connection, lost).await {
                    break over;
                }
            },
            Err(over) => over,
        };
        // What was asked and not answered is asked again.
        for asked in std::mem::take(&mut link.asked).into_values() {
            if let Asked::Open(mut wish, _) = asked {
                wish.attempts += 1;
                if wish.attempts < MAX_ATTEMPTS {
                    self.wishes.push(wish);
                } else {
                    let _ = wish.reply.send(Err(OpenError::Unanswered));
                }
            }
        }
        if matches!(over, Over::Stopped(_)) {
            link.take_leave(self.live.keys()).await;
        }
        part(endpoint, connection).await;
        (over, since.elapsed())
    }

    /// The ways to the node: those of before, where it is the same one.
    fn routes(&mut self, credentials: &Credentials) -> Result<Arc<Routes>, TransportError> {
        let Credentials { node, web, device, .. } = credentials;
        let known =
            self.ways.take().filter(|ways| (&ways.node, &ways.web, &ways.device) == (node, web, device));
        let ways = match known {
            Some(known) => known,
            None => {
                let config = access_config(&self.shared.key, *node)?;
                let knocker = Knocker::of(Some(device.clone()));
                let over_tcp = web.clone().map(Web::new).transpose()?;
                let routes = Routes::new(over_tcp, Arc::new(move || knocker.knocking(&config)));
                Ways { node: *node, web: web.clone(), device: device.clone(), routes: Arc::new(routes) }
            }
        };
        let routes = Arc::clone(&ways.routes);
        self.ways = Some(ways);
        Ok(routes)
    }

    /// Waits for one thing to happen and does what follows from it.
    async fn step(&mut self, link: &mut Link, connection: &Connection, lost: &mut bool) -> Result<(), Over> {
        let deadline = link.began + link.machine.deadline().unwrap_or(Duration::from_secs(3600));
        let shared = Arc::clone(&self.shared);
        let input = tokio::select! {
            frame = link.reader.next::<AccessFrame>() => match frame {
                Ok(Some(frame)) => ClientInput::Frame(frame),
                Ok(None) => return Err(Over::Lost("the node closed it".to_owned())),
                Err(error) if error.is_protocol() => return Err(Over::Failed(OpenError::Protocol)),
                Err(error) => return Err(Over::Lost(error.to_string())),
            },
            command = self.queue.recv() => match command {
                None => return Err(Over::Stopped(None)),
                Some(Command::Stop(stopped)) => return Err(Over::Stopped(Some(stopped))),
                Some(Command::Ended(session)) => {
                    self.live.remove(&session.session_ref());
                    ClientInput::Close(session.session_ref())
                }
                Some(open @ Command::Open { .. }) => {
                    self.take(open);
                    return self.ask(link, connection).await;
                }
            },
            fresh = renewed(&mut link.renewing), if link.renewing.is_some() => {
                link.renewing = None;
                match fresh {
                    Ok(fresh) => ClientInput::Token(fresh.token, fresh.lifetime),
                    Err(error) => {
                        shared.login.notify(Notice::NotRenewed(error.to_string()));
                        return Ok(());
                    }
                }
            },
            () = sleep_until(deadline) => ClientInput::Timer,
        };
        self.perform(link, connection, input, lost).await
    }

    async fn perform(
        &mut self,
        link: &mut Link,
        connection: &Connection,
        input: ClientInput,
        lost: &mut bool,
    ) -> Result<(), Over> {
        for action in link.machine.handle(input, link.began.elapsed()) {
            match action {
                ClientAction::Send(frame) => link.send(&frame).await?,
                ClientAction::Welcome { person, token_expires } => {
                    link.welcomed = true;
                    link.ahead = token_expires.0.saturating_sub(link.token_expires.0);
                    debug!(person, ahead = link.ahead, "the node knows this client");
                    if std::mem::take(lost) {
                        self.shared.login.notify(Notice::Back);
                    }
                }
                ClientAction::Refused(refusal) => return Err(self.refused(link, refusal)),
                ClientAction::Opened(opened) => self.opened(link, connection, opened),
                ClientAction::Denied { request, denial, ray, message } => match link.asked.remove(&request) {
                    Some(Asked::Open(wish, _)) => {
                        let _ = wish.reply.send(Err(OpenError::Denied { denial, message, ray }));
                    }
                    Some(Asked::Resume(session)) => {
                        self.live.remove(&session.session_ref());
                        session.finish(SessionEnd::NotResumed(message));
                    }
                    None => {}
                },
                ClientAction::Unanswered(request) => match link.asked.remove(&request) {
                    Some(Asked::Open(wish, _)) => {
                        let _ = wish.reply.send(Err(OpenError::Unanswered));
                    }
                    Some(Asked::Resume(session)) => {
                        session.finish(SessionEnd::NotResumed(OpenError::Unanswered.to_string()));
                    }
                    None => {}
                },
                ClientAction::Ready { session, counter, path } => {
                    if let Some(session) = self.live.get(&session) {
                        session.ready(counter, path);
                    }
                }
                ClientAction::Ended { session, reason } => {
                    if let Some(session) = self.live.remove(&session) {
                        session.finish(reason.into());
                    }
                }
                ClientAction::TokenWanted => {
                    let login = Arc::clone(&self.shared.login);
                    let renewing = || tokio::spawn(async move { login.credentials().await });
                    link.renewing.get_or_insert_with(renewing);
                }
                ClientAction::NodeDrains => debug!("the node is about to stop"),
                ClientAction::Close(CloseCode::Timeout) => {
                    return Err(Over::Lost("the node does not answer".to_owned()));
                }
                ClientAction::Close(_) => return Err(Over::Failed(OpenError::Protocol)),
            }
        }
        Ok(())
    }

    /// Whether sessions and wishes survive it depends on whether the next connection may fare better.
    fn refused(&mut self, link: &mut Link, refusal: AccessRefusal) -> Over {
        let over = match refusal {
            // It was good, and has ended: the next connection has a fresh one.
            AccessRefusal::BadToken if link.welcomed => return Over::Lost(refusal.to_string()),
            AccessRefusal::BadToken | AccessRefusal::OtherDevice | AccessRefusal::LoginEnded => {
                for session in std::mem::take(&mut self.live).into_values() {
                    session.finish(SessionEnd::NotResumed(refusal.to_string()));
                }
                Over::Failed(refusal.into())
            }
            AccessRefusal::TooManyConnections | AccessRefusal::Internal => Over::Failed(refusal.into()),
        };
        for asked in std::mem::take(&mut link.asked).into_values() {
            if let Asked::Open(wish, _) = asked {
                let _ = wish.reply.send(Err(refusal.into()));
            }
        }
        over
    }

    /// Asks for the sessions of before and those that are wanted, right behind the `Hello`: that saves a round trip.
    async fn ask_all(&mut self, link: &mut Link, connection: &Connection) -> Result<(), Over> {
        for session in self.live.values() {
            let request = RequestId(self.next);
            self.next = self.next.wrapping_add(1);
            link.asked.insert(request, Asked::Resume(Arc::clone(session)));
            link.request(ClientInput::Resume { request, grant: session.grant() }).await?;
        }
        self.ask(link, connection).await
    }

    /// Asks for every session that is wanted; their legs begin to bind with that.
    async fn ask(&mut self, link: &mut Link, connection: &Connection) -> Result<(), Over> {
        while !self.wishes.is_empty() {
            let wish = self.wishes.remove(0);
            debug!(application = wish.wanted.application, to = %connection.remote_address(), "asking for a session");
            let request = RequestId(self.next);
            self.next = self.next.wrapping_add(1);
            let Wanted { application, destination } = wish.wanted.clone();
            let leg = link
                .ticket
                .and_then(|ticket| EarlyLeg::begin(&self.shared.legs, &link.route, connection, ticket));
            let early = leg.as_ref().map(EarlyLeg::name);
            link.asked.insert(request, Asked::Open(wish, leg));
            link.request(ClientInput::Open { request, application, destination, early }).await?;
        }
        Ok(())
    }

    fn opened(&mut self, link: &mut Link, connection: &Connection, mut opened: Opened) {
        opened.expires = UnixTime(opened.expires.0.saturating_sub(link.ahead));
        match link.asked.remove(&opened.request) {
            Some(Asked::Open(wish, leg)) => {
                link.ticket = Some(opened.ticket);
                let leg = leg.map_or_else(|| Start::At(&link.route), Start::With);
                let begun = Session::begin(&self.shared, connection, leg, wish.wanted, opened);
                let begun = begun.map(|(session, way)| {
                    self.live.insert(session.session_ref(), Arc::clone(&session));
                    let (shared, commands) = (Arc::clone(&self.shared), self.commands.clone());
                    tokio::spawn(keep(Arc::clone(&session), way, shared, commands));
                    session
                });
                if let Err(Ok(unwanted)) = wish.reply.send(begun) {
                    unwanted.finish(SessionEnd::Closed);
                }
            }
            Some(Asked::Resume(session)) if !session.go_on(connection, &opened) => {
                session.finish(SessionEnd::NotResumed("the node offers another one".to_owned()));
            }
            Some(Asked::Resume(_)) | None => {}
        }
    }

    /// Ends everything that is left, and says so.
    async fn shut(self, stopped: Option<oneshot::Sender<()>>) {
        for session in self.live.values() {
            session.finish(SessionEnd::Closed);
        }
        if !self.live.is_empty() {
            let _ = timeout(CLOSE_TIME, self.shared.endpoint.wait_idle()).await;
        }
        if let Some(stopped) = stopped {
            let _ = stopped.send(());
        }
    }
}

/// Keeps a session, and tells the loop when it has ended.
async fn keep(session: Arc<Session>, way: LegWay, shared: Arc<Shared>, commands: mpsc::WeakSender<Command>) {
    Arc::clone(&session).keep(way, shared).await;
    if let Some(commands) = commands.upgrade() {
        let _ = commands.send(Command::Ended(session)).await;
    }
}
