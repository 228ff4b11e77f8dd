//! Private applications on the host of their `url`: the WebSocket wire for clients, a page for people.

use http::{HeaderMap, Response};
use hyper::upgrade::OnUpgrade;

use crate::flow::Private;
use crate::policy::PermitOf;
use crate::portal::page;

use super::body::Reply;
use super::dispatch::Call;
use super::identify::Callers;
use super::record::Record;
use super::request::Asked;

impl Call {
    /// Answers a request that policy lets in.
    pub(super) async fn private(
        self,
        asked: &Asked,
        headers: &HeaderMap,
        switch: OnUpgrade,
        permit: PermitOf<'_, Private>,
        callers: &Callers,
    ) -> Response<Reply> {
        if asked.websocket {
            return self.wire(headers, switch, permit, callers).await;
        }
        self.how_to_connect(permit, headers)
    }

    /// Tells a person how to connect: what is behind this host is no website.
    fn how_to_connect(self, permit: PermitOf<'_, Private>, headers: &HeaderMap) -> Response<Reply> {
        let mut record = Record::allowed(&self.edge.ctx, self.about.clone(), self.started);
        let application = permit.permit().application();
        let active = self.edge.ctx.active();
        let page = page::connect(&page::ConnectFacts {
            application: &application.name,
            protocol: permit.kind().protocol,
            node: &active.config.node.authority(),
            host: self.about.host.as_ref(),
            ray: self.about.ray,
            html: page::wants_html(headers),
        });
        record.answered(page.status());
        self.own(page, Some(record))
    }
}
