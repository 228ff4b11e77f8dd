//! Private applications on the host of their `url`.

use http::{HeaderMap, Response};

use crate::flow::Private;
use crate::policy::PermitOf;
use crate::portal::page;

use super::body::Reply;
use super::dispatch::Call;
use super::record::Record;

impl Call {
    /// Tells a person who is allowed in how to connect: what is behind this host is no website.
    pub(super) fn private(self, permit: PermitOf<'_, Private>, headers: &HeaderMap) -> Response<Reply> {
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
