//! The start page of the auth domain: the applications that are open to a person.

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::flow::{Application, Facts, Kind, Reason};
use crate::policy::{Decision, decide};

use super::handover::known_as;
use super::page::{self, Frame, LauncherPage, Tile};
use super::{Call, PREFIX};

impl Call<'_> {
    pub(super) fn launcher(&self) -> Response<Bytes> {
        let Some(live) = self.global_session() else {
            return page::redirect(StatusCode::FOUND, &format!("{PREFIX}login"));
        };
        let Some(ticket) = self.logout_ticket(&live.session) else {
            return self.refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Internal);
        };
        let open = |application: &Application| {
            let facts = Facts {
                application,
                session: Some(&live.session),
                service: None,
                address: self.visit.address,
            };
            matches!(decide(&self.active.policies, &facts, self.now), Decision::Allow(_))
        };
        let tiles: Vec<Tile> = self
            .active
            .policies
            .applications()
            .filter(|application| application.launcher && open(application))
            .filter_map(|application| self.tile(application))
            .collect();
        let page = LauncherPage {
            frame: Frame::new(Some(&self.site.auth), self.visit.ray),
            person: known_as(&live.session),
            ticket,
            tiles: &tiles,
        };
        page::html(StatusCode::OK, &page, &[])
    }

    /// Not for what has no one address to go to.
    fn tile(&self, application: &Application) -> Option<Tile> {
        let (shown, href) = match &application.kind {
            Kind::Saas(saas) => {
                let url = saas.url.clone()?;
                let shown = url.strip_prefix("https://").unwrap_or(&url);
                (shown.split(['/', '?']).next().unwrap_or(shown).to_owned(), url)
            }
            Kind::Web(_) | Kind::Private(_) => {
                let (host, path) = application.address()?;
                let shown = format!("{host}{}", path.strip_suffix('/').unwrap_or(path));
                (shown, format!("{}{path}", self.site.origin(host)))
            }
        };
        let initial = application.name.chars().next().unwrap_or('·');
        Some(Tile { name: application.name.clone(), initial, host: shown, href })
    }
}
