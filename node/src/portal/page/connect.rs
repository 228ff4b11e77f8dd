//! How to connect to a private application: what a browser sees on its host.

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::flow::{Host, Protocol, RayId};

use super::{Frame, MessagePage, html, text};

/// What the page needs to know.
#[derive(Debug, Clone, Copy)]
pub struct ConnectFacts<'a> {
    /// Name of the application.
    pub application: &'a str,
    pub protocol: Protocol,
    /// Host and, unless it is 443, port of the auth domain.
    pub node: &'a str,
    /// The host that was asked.
    pub host: Option<&'a Host>,
    pub ray: RayId,
    /// Whether the client reads HTML, see [`super::wants_html`].
    pub html: bool,
}

/// The page (or the plain text) for somebody who may connect.
pub fn connect(facts: &ConnectFacts<'_>) -> Response<Bytes> {
    let title = "This is not a website";
    let what = format!("{} is open to you, but with a client of its own kind.", facts.application);
    let login = format!("portcullis access login https://{}", facts.node);
    let command = command(facts.protocol, facts.application);
    if !facts.html {
        let body = format!("{title}\n{what}\n\n{login}\n{command}\n\nRay ID: {}\n", facts.ray);
        return text(StatusCode::OK, &body);
    }
    let page = MessagePage {
        frame: Frame::new(facts.host, facts.ray),
        title,
        texts: &[&what, "Install the access client, sign in once, then connect."],
        facts: &[("Application", facts.application), ("Sign in once", &login), ("Connect", &command)],
        confirm: None,
        links: &[],
        onward: None,
    };
    html(StatusCode::OK, &page, &[])
}

fn command(protocol: Protocol, application: &str) -> String {
    match protocol {
        Protocol::Tcp | Protocol::Udp => {
            format!("portcullis access {protocol} {application} --listen 127.0.0.1:PORT")
        }
        Protocol::Ssh => format!("ssh -o ProxyCommand='portcullis access ssh %h' {application}"),
        Protocol::Rdp => format!("portcullis access rdp {application}"),
    }
}
