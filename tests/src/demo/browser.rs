//! A person's browser, by curl: cookies, redirects, forms. Real headless Chromium drives the same pages in
//! `tests/tests/browser_*.rs`; here a step must take milliseconds.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::demo::form::{self, Form};
use crate::demo::lab::DOMAIN;
use crate::netns::Netns;
use crate::process::Process;
use crate::third_party;

pub(super) struct Browser {
    netns: Netns,
    address: String,
    ca: String,
    dir: TempDir,
}

/// The page where redirects ended.
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) url: String,
    pub(super) body: String,
    /// Of the last response, names in lower case.
    pub(super) headers: Vec<(String, String)>,
}

impl Page {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Status, address and the title, in one line.
    pub(super) fn summary(&self) -> String {
        let title = form::between(&self.body, "<title>", "</title>").unwrap_or("no title");
        let url = self.url.split('?').next().unwrap_or_default();
        format!("{} at {url} (“{}”)", self.status, title.trim())
    }

    pub(super) fn is_login(&self) -> bool {
        form::login_form(&self.body).is_some()
    }

    /// The ray id that the page shows.
    pub(super) fn ray(&self) -> Option<&str> {
        let after = self.body.split_once("Ray ID")?.1;
        let code = form::between(after, "<code>", "</code>")?;
        (!code.is_empty()).then_some(code)
    }
}

impl Browser {
    pub(super) fn new(netns: &Netns, ca: &str, address: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("ca.pem"), ca)?;
        Ok(Self { netns: netns.clone(), address: address.to_owned(), ca: ca.to_owned(), dir })
    }

    /// Opens an address and follows redirects, as a browser does with what is typed in.
    pub(super) fn open(&self, url: &str) -> Result<Page> {
        self.follow(self.fetch(url, &["--location"], None)?)
    }

    /// Opens an address and does not follow redirects.
    pub(super) fn open_once(&self, url: &str) -> Result<Page> {
        self.fetch(url, &[], None)
    }

    /// Opens an application, fills in the login form it leads to, and follows to wherever that leads.
    pub(super) fn log_in(&self, url: &str, user: &str, password: &str) -> Result<Page> {
        let page = self.open(url)?;
        let form = form::login_form(&page.body)
            .with_context(|| format!("no login form: {}\n{}", page.summary(), page.body))?;
        self.submit(&page, &form, user, password)
    }

    fn submit(&self, page: &Page, form: &Form, user: &str, password: &str) -> Result<Page> {
        let url = form::resolve(&page.url, form.action.as_deref().unwrap_or(""));
        let origin = format!("Origin: {}", form::origin(&url));
        let body = form.filled(user, password);
        self.follow(self.fetch(&url, &["--location", "--data-binary", "@-", "-H", &origin], Some(&body))?)
    }

    /// Follows `<meta http-equiv=refresh>`, which carries a login from the auth domain to the application: a
    /// redirect there would be bound by the form's `form-action`.
    fn follow(&self, mut page: Page) -> Result<Page> {
        for _ in 0..5 {
            let Some(onward) = form::refresh(&page.body) else { return Ok(page) };
            let url = form::resolve(&page.url, &onward);
            page = self.fetch(&url, &["--location"], None)?;
        }
        bail!("refreshes do not end: {}", page.summary())
    }

    fn fetch(&self, url: &str, args: &[&str], body: Option<&str>) -> Result<Page> {
        let (headers, out, jar) = (self.file("headers"), self.file("body"), self.file("cookies"));
        fs::write(&out, "")?;
        let mut curl = self.netns.command("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--max-redirs", "10", "--cacert"]);
        curl.arg(self.file("ca.pem"));
        // Resolver rules for every name of the lab; `*` would not check the names at all.
        for host in ["access", "wiki", "chat"] {
            curl.arg("--resolve").arg(format!("{host}.{DOMAIN}:443:{}", self.bracketed()));
        }
        curl.arg("--cookie").arg(&jar).arg("--cookie-jar").arg(&jar);
        curl.arg("--dump-header").arg(&headers).arg("--output").arg(&out);
        curl.args(["--write-out", "%{http_code} %{url_effective}"]);
        curl.args(["-H", "Accept: text/html,application/xhtml+xml,*/*;q=0.8"]).args(args).arg(url);
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = curl.spawn().context("cannot run curl: run `cargo xtask setup`")?;
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(body.unwrap_or_default().as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let (status, url) = line.split_once(' ').context("curl printed no status")?;
        Ok(Page {
            status: status.parse()?,
            url: url.to_owned(),
            body: String::from_utf8_lossy(&fs::read(&out)?).into_owned(),
            headers: last_headers(&String::from_utf8_lossy(&fs::read(&headers)?)),
        })
    }

    /// Opens a WebSocket with this browser's cookies; it sends and prints until it is closed.
    pub(super) fn websocket(&self, url: &str) -> Result<Process> {
        let host = form::host(url);
        let input = serde_json::json!({
            "url": url,
            "address": self.address,
            "ca": self.ca,
            "cookie": self.cookies(host)?,
            "origin": format!("https://{host}"),
        });
        let command = third_party::script(Some(&self.netns), "websocket.mjs")?;
        Process::spawn_with_stdin("websocket", command, input.to_string().as_bytes())
    }

    /// The `Cookie` header for a host: its own cookies, from curl's Netscape-format jar.
    pub(super) fn cookies(&self, host: &str) -> Result<String> {
        let jar = fs::read_to_string(self.file("cookies")).unwrap_or_default();
        let cookies = jar.lines().filter_map(|line| {
            let mut fields = line.strip_prefix("#HttpOnly_").unwrap_or(line).split('\t');
            let domain = fields.next()?;
            let (name, value) = (fields.nth(4)?, fields.next()?);
            (domain == host).then(|| format!("{name}={value}"))
        });
        Ok(cookies.collect::<Vec<_>>().join("; "))
    }

    fn bracketed(&self) -> String {
        if self.address.contains(':') { format!("[{}]", self.address) } else { self.address.clone() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// curl writes the head of every response of a redirect chain; the last one counts.
fn last_headers(text: &str) -> Vec<(String, String)> {
    let heads = text.split("\r\n\r\n").filter(|head| !head.trim().is_empty());
    let Some(last) = heads.last() else { return Vec::new() };
    let lines = last.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned())).collect()
}
