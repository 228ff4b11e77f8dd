//! The endpoints of the SAML identity provider on the auth domain: `sso/saml/<application>`, its `/resume`, where a
//! sign-in goes on after the login, its `/logout` (in `logout`) and its `/saml-metadata`.
//!
//! ```text
//! application                         node
//! 1 AuthnRequest ──GET or POST──▶ 2 read, verify, check; sealed into a cookie of its own
//!                                 3 (303 after a POST: the session's cookie comes with a GET only)
//!                                 4 session? fresh enough? else the login, which comes back here
//!                                 5 decide ─▶ Permit ─▶ signed answer
//! 7 consumer service ◀──POST───── 6 a page that posts itself, or by its button
//! ```
//!
//! Without a request the launcher begins, at 4. What cannot be trusted is answered here, with a ray id: only to a
//! consumer service of the configuration does an answer go.

mod logout;
mod request;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use crate::clock;
use crate::event::{Action, Event, Sent};
use crate::flow::{
    Application, Kind, Reason, Saas, SaasProtocol, SamlApplication, SamlProviderSource, SamlService,
};
use crate::identity::LoginError;
use crate::policy::PermitKind;
use crate::published::Unpublished;
use crate::saas::saml::{Asked, Endpoint, Issued, NotIssued};
use crate::saml::{self, AuthnRequest, Refusal};
use crate::session::LiveSession;

use super::browser::set_cookies;
use super::form::Parameters;
use super::handover::known_as;
use super::login::ATTEMPT_LIFE;
use super::page::{self, AutoPost, Frame, PageFacts};
use super::parked::{NotParked, Park, new_name};
use super::target::{REQUEST, is_request, resumption};
use super::{Call, PREFIX};
use request::{Ask, check};

const PARK: Park = Park { prefix: "__Secure-CF_Saml_", purpose: "saml request" };

/// One sign-in at one application.
#[derive(Clone, Copy)]
struct SignIn<'a> {
    application: &'a Arc<Application>,
    saas: &'a Saas,
    service: &'a SamlService,
    /// Path of the endpoint.
    path: &'a str,
    /// Its address.
    sign_in: &'a str,
}

impl Call<'_> {
    /// Answers `sso/saml/<rest>` on the auth domain.
    pub(super) async fn saml(&self, rest: &str) -> Response<Bytes> {
        let (name, endpoint) = match rest.split_once('/') {
            None => (rest, None),
            Some((name, endpoint)) => (name, Some(endpoint)),
        };
        let found = self.active.policies.applications().find_map(|application| match &application.kind {
            Kind::Saas(saas) => match &saas.protocol {
                SaasProtocol::Saml(saml) if saml.name == name => Some((application, saas, saml)),
                SaasProtocol::Saml(_) | SaasProtocol::Oidc(_) => None,
            },
            Kind::Web(_) | Kind::Private(_) => None,
        });
        let Some((application, saas, saml)) = found else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let path = format!("{PREFIX}{}", saas.endpoint());
        let sign_in = format!("{}{path}", self.site.origin(&self.site.auth));
        let service = match self.context.metadata.service(saml, self.now).await {
            Ok(service) => service,
            Err(error) => return self.unpublished(application, saml, endpoint, &sign_in, &error),
        };
        let visit = SignIn { application, saas, service: &service, path: &path, sign_in: &sign_in };
        match (endpoint, &self.visit.method) {
            (None, &Method::POST) => self.saml_form(visit),
            (None, &Method::GET) => self.saml_query(visit).await,
            (Some("resume"), &Method::GET) => self.saml_resume(visit).await,
            (Some("logout"), &(Method::GET | Method::POST)) => self.saml_logout(visit).await,
            (Some("saml-metadata"), &(Method::GET | Method::HEAD)) => {
                let SamlService { name_id, require_signed, .. } = &*service;
                let endpoint = endpoint_of(visit);
                let document = self.context.saml.metadata(name_id.as_ref(), *require_signed, endpoint);
                page::document("application/samlmetadata+xml", document)
            }
            (None | Some("logout"), _) => self.method_of_saml("GET, POST"),
            (Some("resume"), _) => self.method_of_saml("GET"),
            (Some("saml-metadata"), _) => self.method_of_saml("GET, HEAD"),
            (Some(_), _) => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    /// Without the application's metadata nothing is taken from it or sent to it. It can have the node's meanwhile:
    /// perhaps it needs that first.
    fn unpublished(
        &self,
        application: &Application,
        saml: &SamlApplication,
        endpoint: Option<&str>,
        sign_in: &str,
        error: &Unpublished,
    ) -> Response<Bytes> {
        if let (Some("saml-metadata"), &(Method::GET | Method::HEAD), SamlProviderSource::Published(place)) =
            (endpoint, &self.visit.method, &saml.provider)
        {
            let (name_id, signed) = (place.said.name_id.as_ref(), place.said.require_signed == Some(true));
            let document = self.context.saml.metadata(name_id, signed, Endpoint { sign_in });
            return page::document("application/samlmetadata+xml", document);
        }
        let (status, reason) = (StatusCode::SERVICE_UNAVAILABLE, Reason::MetadataUnavailable);
        let event = self.event(Action::SignIn, false).reason(reason).status(status.as_u16());
        self.context.events.emit(event.application(application).detail(error.to_string()));
        page::refusal(PageFacts { application: Some(&application.name), ..self.facts(status, reason) })
    }

    /// A request by POST: most come from another site, and the session's cookie with none of those.
    fn saml_form(&self, visit: SignIn<'_>) -> Response<Bytes> {
        let form = Parameters::of_form(&self.visit.headers, &self.visit.body);
        let Some(form) = form else { return self.objection(visit, "not a form") };
        let Some(message) = form.one(saml::Kind::Request.parameter()) else {
            return self.objection(visit, "no SAMLRequest, or two");
        };
        if form.has("RelayState") && form.one("RelayState").is_none() {
            return self.objection(visit, "two RelayState");
        }
        let received = saml::of_form(message, form.one("RelayState"), &visit.service.certificates);
        match self.saml_check(visit, received) {
            Ok((ask, None)) => self.keep(visit, &ask, |back| page::redirect(StatusCode::SEE_OTHER, back)),
            Ok((ask, Some(refusal))) => self.saml_refusal(visit, &ask, refusal, None),
            Err(why) => self.objection(visit, &why),
        }
    }

    async fn saml_query(&self, visit: SignIn<'_>) -> Response<Bytes> {
        let raw = self.visit.query.as_deref().unwrap_or_default();
        let query = Parameters::of_query(Some(raw));
        if query.has(saml::Kind::Request.parameter()) {
            let received = saml::of_query(raw, saml::Kind::Request, &visit.service.certificates);
            return match self.saml_check(visit, received) {
                Ok((ask, None)) => self.saml_answer(visit, ask, None).await,
                Ok((ask, Some(refusal))) => self.saml_refusal(visit, &ask, refusal, None),
                Err(why) => self.objection(visit, &why),
            };
        }
        match Ask::unsolicited(visit.service, self.now) {
            Some(ask) => self.saml_answer(visit, ask, None).await,
            None => self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication),
        }
    }

    /// Takes up a request that this browser kept.
    async fn saml_resume(&self, visit: SignIn<'_>) -> Response<Bytes> {
        let query = Parameters::of_query(self.visit.query.as_deref());
        let id = query.one(REQUEST).filter(|id| is_request(id)).unwrap_or_default();
        let kept = self.parked::<(String, Ask)>(PARK, id).filter(|(aud, ask)| {
            let known = visit.service.consumers.iter().any(|known| known.location == ask.consumer);
            aud == visit.application.aud.as_str() && known && ask.received_at.after(ATTEMPT_LIFE) > self.now
        });
        match kept {
            Some((_, ask)) => self.saml_answer(visit, ask, Some(id)).await,
            None => self.objection(visit, "the request is too old, or another browser's"),
        }
    }

    fn saml_check(
        &self,
        visit: SignIn<'_>,
        received: Result<saml::Received, saml::BindingError>,
    ) -> Result<(Ask, Option<Refusal>), String> {
        let received = received.map_err(|error| error.to_string())?;
        let request = AuthnRequest::read(&received.message).map_err(|error| error.to_string())?;
        check(request, received.signed, received.relay_state, visit.service, visit.sign_in, self.now)
            .map_err(|objection| objection.to_string())
    }

    /// With the session there is, or after the login. `kept` names the cookie of a request that was kept already.
    async fn saml_answer(&self, visit: SignIn<'_>, ask: Ask, kept: Option<&str>) -> Response<Bytes> {
        let fresh = |live: &LiveSession| !ask.force || live.session.is_newer_than(ask.received_at);
        let allowed = |live: &LiveSession| {
            let providers = &visit.application.providers;
            providers.is_empty() || providers.contains(&live.session.person.provider)
        };
        let live = self.global_session();
        let Some(live) = live.filter(|live| fresh(live) && allowed(live)) else {
            if ask.passive {
                return self.saml_refusal(visit, &ask, Refusal::NoPassive, kept);
            }
            let to_login =
                |back: &str| self.to_login_elsewhere(visit.application, back.to_owned(), ask.force, None);
            return match kept {
                Some(id) => to_login(&resumption(visit.saas, id)),
                None => self.keep(visit, &ask, to_login),
            };
        };
        let permit = match self.decide(visit.application, &live.session) {
            Ok(permit) => permit,
            Err(denial) => {
                let status = StatusCode::FORBIDDEN;
                let mut event =
                    self.event(Action::SignIn, false).reason(denial.reason).session(&live.session);
                if let Some(policy) = &denial.policy {
                    event = event.policy(policy);
                }
                self.context.events.emit(event.application(visit.application).status(status.as_u16()));
                return page::refusal(PageFacts {
                    application: Some(&visit.application.name),
                    person: Some(known_as(&live.session)),
                    ..self.facts(status, denial.reason)
                });
            }
        };
        let PermitKind::Saas(of_saas) = permit.kind() else {
            return self.refuse(StatusCode::NOT_FOUND, Reason::NoApplication);
        };
        let issued =
            self.context.saml.issue(of_saas, visit.service, endpoint_of(visit), &asked(&ask), self.now);
        let event = |allowed| {
            self.event(Action::SignIn, allowed)
                .session(&live.session)
                .application(visit.application)
                .policy(permit.policy())
        };
        match issued {
            Ok(Issued { answer, name_id, attributes }) => {
                // First the store: who revokes by application has to find it, and whoever is signed in somewhere can be signed
                // out there.
                let name = &visit.application.name;
                let over_at = self.now.after(saml::ANSWER_LIFE);
                if !live.is_signed_in(name, &name_id, over_at).await
                    && let Err(wait) = self.charge_write(&live.session)
                {
                    let (page, event) = self.too_fast(wait, Some(visit.application), event(false));
                    self.context.events.emit(event);
                    return page;
                }
                if let Err(error) = self.context.sessions.signed_in(&live, name, &name_id, over_at).await {
                    self.context.events.emit(event(false).reason(Reason::Internal).detail(error.to_string()));
                    return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
                }
                let how = if ask.id.is_some() { "asked by the application" } else { "from the launcher" };
                let told = attributes.iter().map(|said| (said.name.as_str(), said.values.as_slice()));
                let sent = Sent::new(&name_id.value, told);
                self.context.events.emit(event(true).detail(how).sent(sent));
                self.post(visit, &ask, &answer, kept)
            }
            Err(NotIssued::Refused(refusal)) => self.saml_refusal(visit, &ask, refusal, kept),
            Err(error @ (NotIssued::NoName | NotIssued::Nobody)) => {
                let event = event(false).reason(Reason::NoMatch).detail(error.to_string());
                self.context.events.emit(event.status(StatusCode::FORBIDDEN.as_u16()));
                page::refusal(PageFacts {
                    application: Some(&visit.application.name),
                    person: Some(known_as(&live.session)),
                    ..self.facts(StatusCode::FORBIDDEN, Reason::NoMatch)
                })
            }
            Err(error @ NotIssued::Internal) => {
                self.context.events.emit(event(false).reason(Reason::Internal).detail(error.to_string()));
                self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal)
            }
        }
    }

    /// Keeps a request in the browser and goes on to where it is taken up again.
    fn keep(
        &self,
        visit: SignIn<'_>,
        ask: &Ask,
        onward: impl FnOnce(&str) -> Response<Bytes>,
    ) -> Response<Bytes> {
        let id = new_name();
        let mut response = onward(&resumption(visit.saas, &id));
        let request = (visit.application.aud.as_str(), ask);
        let until = ask.received_at.after(ATTEMPT_LIFE);
        // Only the endpoint sees it: several open requests are no weight on other requests.
        match self.park(PARK, (&id, visit.path), &request, until, &mut response) {
            Ok(()) => response,
            Err(NotParked::TooLong) => self.objection(visit, "the request is too long to be kept"),
            Err(NotParked::Unsealed) => self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal),
        }
    }

    /// Tells the application why it gets no assertion, which is its own to know: nobody is named.
    fn saml_refusal(
        &self,
        visit: SignIn<'_>,
        ask: &Ask,
        refusal: Refusal,
        kept: Option<&str>,
    ) -> Response<Bytes> {
        if self.global_session().is_none()
            && let Err(error) = self.charge_signature()
        {
            return self.saml_throttled(visit, &error);
        }
        self.context.events.emit(
            self.event(Action::SignIn, false)
                .reason(if refusal == Refusal::NoPassive { Reason::NoSession } else { Reason::BadRequest })
                .application(visit.application)
                .detail(format!("SAML request refused: {refusal:?}")),
        );
        match self.context.saml.refuse(endpoint_of(visit), &asked(ask), refusal, self.now) {
            Some(answer) => self.post(visit, ask, &answer, kept),
            None => self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal),
        }
    }

    /// The page where answering would cost more signatures than a network may have for nobody.
    fn saml_throttled(&self, visit: SignIn<'_>, error: &LoginError) -> Response<Bytes> {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let event = self.event(Action::SignIn, false).reason(error.reason()).status(status.as_u16());
        self.context.events.emit(event.application(visit.application).detail(error.to_string()));
        page::refusal(PageFacts {
            application: Some(&visit.application.name),
            retry_after: match error {
                LoginError::Throttled { retry_after } => u32::try_from(retry_after.as_secs() + 1).ok(),
                _ => None,
            },
            ..self.facts(status, error.reason())
        })
    }

    fn post(&self, visit: SignIn<'_>, ask: &Ask, answer: &str, kept: Option<&str>) -> Response<Bytes> {
        let mut fields = vec![(saml::Kind::Response.parameter(), saml::encode(answer))];
        fields.extend(ask.relay_state.clone().map(|state| ("RelayState", state)));
        let mut response = self.auto_post(&visit.application.name, &ask.consumer, &fields);
        if let Some(id) = kept {
            set_cookies(&mut response, [PARK.clear(id, visit.path)]);
        }
        response
    }

    /// A page that posts `fields` to an address of the configuration, which people know as `name`.
    pub(super) fn auto_post(&self, name: &str, action: &str, fields: &[(&str, String)]) -> Response<Bytes> {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        page::auto_post(&AutoPost {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            application: name,
            action,
            fields: &fields,
            nonce: &clock::new_session_id().to_string(),
        })
    }

    /// The page for a request that cannot be trusted, and its event.
    fn objection(&self, visit: SignIn<'_>, why: &str) -> Response<Bytes> {
        self.objection_to(Action::SignIn, visit, why)
    }

    fn objection_to(&self, action: Action, visit: SignIn<'_>, why: &str) -> Response<Bytes> {
        let status = StatusCode::BAD_REQUEST;
        let event: Event = self.event(action, false).reason(Reason::BadRequest).status(status.as_u16());
        self.context.events.emit(event.application(visit.application).detail(why));
        page::refusal(PageFacts {
            application: Some(&visit.application.name),
            ..self.facts(status, Reason::BadRequest)
        })
    }
}

fn endpoint_of(visit: SignIn<'_>) -> Endpoint<'_> {
    Endpoint { sign_in: visit.sign_in }
}

fn asked(ask: &Ask) -> Asked<'_> {
    Asked {
        id: ask.id.as_deref(),
        consumer: &ask.consumer,
        name_id_format: ask.name_id_format.as_deref(),
        contexts: ask.contexts.as_ref(),
    }
}
