//! The office: a network that lets nothing in, with a real web application (nginx) and a WebSocket application.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::netns::Netns;
use crate::portcullis::START;
use crate::process::{Process, wait_until};
use crate::third_party;

const FIREWALL: &str = "
table inet firewall {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
}";

pub(super) struct Office {
    // Processes go before the namespace.
    _wiki: Process,
    _chat: Process,
    netns: Netns,
    log: PathBuf,
    /// How many lines of the log are of earlier runs.
    forgotten: usize,
}

impl Office {
    /// Raises the firewall and starts both applications. They listen on every address, as they often do, so that
    /// nothing but the firewall keeps the internet out.
    pub(super) fn start(dir: &Path, netns: Netns) -> Result<Self> {
        fs::create_dir_all(dir)?;
        netns.run("ip address add 10.20.0.10/32 dev lo")?;
        netns.nft(FIREWALL)?;

        let log = dir.join("wiki.log");
        fs::write(dir.join("nginx.conf"), nginx_conf(dir, &log))?;
        let mut nginx = netns.command("nginx");
        nginx.arg("-p").arg(dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(dir.join("nginx.conf"));
        nginx.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        let mut wiki = Process::spawn("nginx", nginx)?;

        let chat = third_party::script(Some(&netns), "chat-app.mjs")?;
        let mut chat = Process::spawn_with_stdin("chat", chat, br#"{"host":"::","port":9001}"#)?;
        chat.wait_for_output("listening", START)?;
        wiki.wait_until("listen", START, |_| {
            let connect = || std::net::TcpStream::connect("10.20.0.10:8080");
            Ok(Some(netns.enter(connect)??))
        })?;
        Ok(Self { _wiki: wiki, _chat: chat, netns, log, forgotten: 0 })
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(super) fn raise_firewall(&self) -> Result<()> {
        self.netns.nft(FIREWALL)
    }

    pub(super) fn remove_firewall(&self) -> Result<()> {
        self.netns.nft("")
    }

    /// What nginx has seen in this run: `METHOD TARGET USER` for each request, in order.
    pub(super) fn requests(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(&self.log)?.lines().skip(self.forgotten).map(str::to_owned).collect())
    }

    /// Begins a run: what nginx has seen so far does not count.
    pub(super) fn forget_requests(&mut self) -> Result<()> {
        self.forgotten += self.requests()?.len();
        Ok(())
    }

    /// Waits until nginx has written down a request, which it does after it has answered. What was answered before is written by
    /// then, too: there is one worker.
    pub(super) fn await_request(&self, seen: &str) -> Result<()> {
        wait_until(&format!("nginx to log “{seen}”"), START, || {
            Ok(self.requests()?.iter().any(|line| line == seen).then_some(()))
        })
    }

    /// Who asked for a path, as far as nginx has written it down.
    pub(super) fn seen_at(&self, path: &str) -> Result<Vec<String>> {
        let at = |line: String| {
            let mut words = line.split(' ').skip(1);
            (words.next() == Some(path)).then(|| words.next().unwrap_or_default().to_owned())
        };
        Ok(self.requests()?.into_iter().filter_map(at).collect())
    }
}

fn nginx_conf(dir: &Path, log: &Path) -> String {
    let dir = dir.display();
    let log = log.display();
    format!(
        r#"
user root;
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
events {{}}
http {{
    log_format seen '$request_method $request_uri $http_cf_access_authenticated_user_email';
    access_log {log} seen;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 8080;
        listen [::]:8080;
        location = /assertion {{
            default_type text/plain;
            return 200 $http_cf_access_jwt_assertion;
        }}
        location / {{
            default_type text/html;
            return 200 '<!doctype html><title>Lab wiki</title><h1>Lab wiki</h1>
<p>Hello, $http_cf_access_authenticated_user_email. Only the access node brought you here.</p>';
        }}
    }}
}}
"#
    )
}
