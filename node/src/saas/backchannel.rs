//! Tells applications that a login has ended (OpenID Connect Back-Channel Logout 1.0, SAML profiles §4.4 by SOAP): by an
//! administrator's revocation, by a logout, or by another login in its place.
//!
//! Who has to be told is in the store, so that a restart forgets nobody. Each application is told at its configured address
//! and nowhere else, a few times, with growing pauses; what it answers is never shown to anybody.
//!
//! An answer that speaks SAML is good for minutes, and whoever holds one back can bring it after the logout. So an application
//! that was sent one lately is told twice: at once, and when no answer is good any more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::header;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::context::Context;
use crate::event::{Action, Event};
use crate::fetch::HttpClient;
use crate::flow::{Application, BackchannelLogout, Kind, OidcClient, Reason, SaasProtocol, SamlService};
use crate::saml::{Ended, NameId, Peer, has_ended};
use crate::store::{EndedLogin, StoreError};

use super::oidc::{claims, issuer};
use super::saml::{self, Endpoint};

/// Pauses before each further try; after the last, nobody tries again.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];
/// Logins that are looked at in one go, and applications that are told at the same time.
const BATCH: u32 = 64;
const CONCURRENT: usize = 8;
/// How often it is looked whether a pause is over.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Runs until `shutdown`.
pub(crate) async fn keep(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        match tell_all(&context).await {
            Ok(told) if told >= BATCH as usize => continue,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "applications cannot be told of ended logins"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.sessions.endings() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Tells whoever is due; how many those were.
async fn tell_all(context: &Context) -> Result<usize, StoreError> {
    let due = context.store.ended_saas_logins(BATCH, clock::now()).await?;
    let count = due.len();
    let mut telling = futures_util::stream::iter(due)
        .map(|login| async move { tell(context, &login).await })
        .buffer_unordered(CONCURRENT);
    while let Some(told) = telling.next().await {
        told?;
    }
    Ok(count)
}

/// Tells one application, and notes how that went.
async fn tell(context: &Context, login: &EndedLogin) -> Result<(), StoreError> {
    let active = context.active();
    let (session, store) = (&login.session, &context.store);
    let done = || store.saas_login_told(session.id, &login.application, clock::now());
    let Some(application) = active.policies.application(&login.application) else { return done().await };
    let Kind::Saas(saas) = &application.kind else { return done().await };
    let event = |told| Event::new(Action::Logout, told).session(session).application(application);
    let remains = |what: &str, error: &str| {
        let event = event(false).reason(Reason::OriginDown);
        context
            .events
            .emit(event.detail(format!("its session remains: back-channel logout {what}: {error}")));
    };
    let result = match &saas.protocol {
        SaasProtocol::Oidc(client) => match &client.backchannel_logout {
            Some(to) => {
                let issuer = issuer(&active.config.node, client);
                tell_client(context, application, client, to, &issuer, login).await
            }
            None => return done().await,
        },
        SaasProtocol::Saml(saml) => match context.metadata.service(saml, clock::now()).await {
            Ok(service) => match (&service.logout.soap, &login.name_id) {
                (Some(to), Some(name_id)) => {
                    let sign_in = saml::sign_in(&active.config.node, &service.name);
                    tell_service(context, &service, to, &sign_in, login, name_id).await
                }
                (None, _) | (_, None) => return done().await,
            },
            Err(error) => Err(error.to_string()),
        },
    };
    match result {
        Ok(()) => {
            let is_last = login.answers_over_at.is_none_or(|over_at| over_at <= clock::now());
            context.events.emit(event(true).detail(match (login.is_told, is_last) {
                (_, false) => "back-channel logout, and again when the last answer is over",
                (true, true) => "back-channel logout, now that the last answer is over",
                (false, true) => "back-channel logout",
            }));
            done().await
        }
        Err(error) => {
            let tries = usize::try_from(login.tries).unwrap_or(usize::MAX);
            tracing::warn!(application = application.name, %error, "a back-channel logout failed");
            match PAUSES.get(tries) {
                Some(pause) => {
                    if tries == 0 {
                        remains("is tried again", &error);
                    }
                    let next = clock::now().after(*pause);
                    store.saas_login_later(session.id, &login.application, next).await
                }
                None => {
                    remains("is given up", &error);
                    done().await
                }
            }
        }
    }
}

/// Sends a logout token.
async fn tell_client(
    context: &Context,
    application: &Application,
    client: &OidcClient,
    to: &BackchannelLogout,
    issuer: &str,
    login: &EndedLogin,
) -> Result<(), String> {
    let now = clock::now();
    let sub = context.tokens.pairwise(&application.aud, &login.session.person);
    let claims = claims::logout_token(client, issuer, &sub, &login.session, clock::random(), now);
    let token = context.tokens.mint_logout(&claims, now).map_err(|error| error.to_string())?;
    let form =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("logout_token", &token).finish();
    let request =
        http::Request::post(&to.uri).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    send(request, form, to.ca.as_deref(), to.local).await.map(drop)
}

/// Sends a logout request (SAML bindings §3.2), and reads the answer.
async fn tell_service(
    context: &Context,
    service: &SamlService,
    to: &str,
    sign_in: &str,
    login: &EndedLogin,
    name_id: &NameId,
) -> Result<(), String> {
    let endpoint = Endpoint { sign_in };
    let (id, request) = context
        .saml
        .end_session(service, endpoint, to, login.session.id, name_id, clock::now())
        .ok_or("signing failed")?;
    let post = http::Request::post(to)
        .header(header::CONTENT_TYPE, "text/xml")
        .header("SOAPAction", "http://www.oasis-open.org/committees/security");
    let answer = send(post, request, service.logout.ca.as_deref(), service.logout.local).await?;
    let peer = Peer {
        entity_id: &service.entity_id,
        keys: &service.certificates,
        is_certain: to.starts_with("https://"),
    };
    match has_ended(&answer, &id, peer)? {
        Ended::Now => Ok(()),
        // It ended what there was when it was told first.
        Ended::Unknown if login.is_told => Ok(()),
        Ended::Unknown => Err("it answered that it knows nobody of that name".to_owned()),
    }
}

async fn send(
    request: http::request::Builder,
    body: String,
    ca: Option<&Path>,
    local: bool,
) -> Result<Vec<u8>, String> {
    let http = HttpClient::new(ca).map_err(|error| error.to_string())?;
    let http = if local { http } else { http.remote_only() };
    let request = request
        .header(header::CONTENT_LENGTH, body.len())
        .body(body.into_bytes())
        .map_err(|error| error.to_string())?;
    let answer = http.send(request).await.map_err(|error| error.to_string())?;
    if answer.status().is_success() {
        Ok(answer.into_body())
    } else {
        Err(format!("it answered {}", answer.status()))
    }
}
