//! A browser without a screen: curl, with its cookie jar, names that lead to the lab, and no following of redirects
//! unless asked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;
use crate::portcullis::command_in;

/// One browser: a cookie jar and what it sends with every request.
#[derive(Clone, Debug)]
pub struct Web {
    netns: Option<Netns>,
    jar: PathBuf,
    args: Vec<String>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub url: String,
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Web {
    /// A browser that trusts `ca`, keeps its cookies in `jar` and finds every name of `hosts` at 127.0.0.1.
    pub fn new(jar: &Path, ca: &Path, port: u16, hosts: &[&str]) -> Self {
        Self::bare(jar, ca, port, hosts).header("Accept: text/html,*/*;q=0.8")
    }

    /// The same without a browser's `Accept`.
    pub fn bare(jar: &Path, ca: &Path, port: u16, hosts: &[&str]) -> Self {
        Self::at(jar, ca, port, hosts, "127.0.0.1")
    }

    /// As [`Web::bare`], with the names at another address.
    pub fn at(jar: &Path, ca: &Path, port: u16, hosts: &[&str], address: &str) -> Self {
        let mut args = vec!["--cacert".to_owned(), ca.display().to_string()];
        for host in hosts {
            args.extend(["--resolve".to_owned(), format!("{host}:{port}:{address}")]);
        }
        Self { netns: None, jar: jar.to_owned(), args }
    }

    /// The same browser in a network namespace.
    pub fn inside(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// From another address of this host.
    pub fn from(mut self, address: &str) -> Self {
        self.args.extend(["--interface".to_owned(), address.to_owned()]);
        self
    }

    /// With a further header in every request.
    pub fn header(mut self, line: &str) -> Self {
        self.args.extend(["--header".to_owned(), line.to_owned()]);
        self
    }

    /// The same browser with a copy of its cookies in `jar`.
    pub fn copy(&self, jar: &Path) -> Result<Self> {
        if self.jar.exists() {
            std::fs::copy(&self.jar, jar)?;
        }
        Ok(Self { netns: self.netns.clone(), jar: jar.to_owned(), args: self.args.clone() })
    }

    /// The file of its cookies, as curl keeps it.
    pub fn jar(&self) -> &Path {
        &self.jar
    }

    pub fn get(&self, url: &str) -> Result<Reply> {
        self.send(url, &[])
    }

    /// Posts a form.
    pub fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<Reply> {
        let mut args = vec!["--request".to_owned(), "POST".to_owned()];
        if form.is_empty() {
            args.extend(["--data-raw".to_owned(), String::new()]);
        }
        for (name, value) in form {
            // One argument of a program has at most 128 KiB.
            let field = if value.len() < 64 * 1024 {
                format!("{name}={value}")
            } else {
                let file = self.jar.with_extension(name);
                std::fs::write(&file, value)?;
                format!("{name}@{}", file.display())
            };
            args.extend(["--data-urlencode".to_owned(), field]);
        }
        self.send(url, &args)
    }

    /// Follows redirects from `reply` until an answer that is none, or until one leads to an address that begins
    /// with `stop`, which is not visited.
    pub fn follow(&self, mut reply: Reply, stop: Option<&str>) -> Result<Reply> {
        for _ in 0..20 {
            let Some(next) = reply.redirect() else { return Ok(reply) };
            if stop.is_some_and(|stop| next.starts_with(stop)) {
                return Ok(reply);
            }
            reply = self.get(&next)?;
        }
        bail!("more than 20 redirects, the last from {}", reply.url)
    }

    /// One request with further arguments for curl.
    pub fn send(&self, url: &str, args: &[String]) -> Result<Reply> {
        let output = command_in(self.netns.as_ref(), "curl")
            .args(["--silent", "--show-error", "--include", "--max-time", "60"])
            .arg("--cookie")
            .arg(&self.jar)
            .arg("--cookie-jar")
            .arg(&self.jar)
            .args(&self.args)
            .args(args)
            .arg(url)
            .output()
            .context("curl")?;
        ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
        parse(url, &String::from_utf8_lossy(&output.stdout))
    }
}

impl Reply {
    /// Every value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Names of the cookies that are set here and not removed.
    pub fn cookies(&self) -> Vec<&str> {
        self.header("set-cookie")
            .into_iter()
            .filter(|line| !line.contains("Max-Age=0"))
            .filter_map(|line| line.split('=').next())
            .collect()
    }

    /// The absolute address this answer redirects to.
    pub fn redirect(&self) -> Option<String> {
        let location = *self.header("location").first()?;
        if ["https://", "http://"].iter().any(|scheme| location.starts_with(scheme)) {
            return Some(location.to_owned());
        }
        let origin_end = self.url.find("://")? + 3;
        let path = self.url[origin_end..].find('/').map_or(self.url.len(), |at| origin_end + at);
        Some(match location.strip_prefix('/') {
            Some(_) => format!("{}{location}", &self.url[..path]),
            None => format!("{}/{location}", self.url.rsplit_once('/')?.0),
        })
    }

    /// The value of a hidden field.
    pub fn field(&self, name: &str) -> Result<String> {
        self.between(&format!("name=\"{name}\" value=\""), "\"")
    }

    /// The text between two others, with the entities of attributes decoded.
    pub fn between(&self, from: &str, to: &str) -> Result<String> {
        let rest = self.body.split_once(from).with_context(|| format!("no {from:?} in {}", self.body))?.1;
        let text = rest.split_once(to).with_context(|| format!("no {to:?} in {}", self.body))?.0;
        Ok(text.replace("&#38;", "&").replace("&amp;", "&"))
    }

    /// The ray id that a page shows.
    pub fn ray(&self) -> Result<String> {
        self.between("Ray ID <code>", "<")
    }
}

/// The last answer of curl's output; an interim `100 Continue` comes before it.
fn parse(url: &str, text: &str) -> Result<Reply> {
    let mut rest = text;
    loop {
        let (head, body) =
            rest.split_once("\r\n\r\n").with_context(|| format!("{url}: no HTTP answer in {text:?}"))?;
        let mut lines = head.split("\r\n");
        let status: u16 = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("{url}: no status in {head:?}"))?;
        if status / 100 == 1 {
            rest = body;
            continue;
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        return Ok(Reply { url: url.to_owned(), status, headers, body: body.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/2 302 \r\nLocation: /b?c\r\nSet-Cookie: a=1\r\n\r\nbody\r\n\r\nmore";
        let reply = parse("https://x.test:1/a?d", text).unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (302, "body\r\n\r\nmore"));
        assert_eq!(reply.redirect().as_deref(), Some("https://x.test:1/b?c"));
        assert_eq!(reply.cookies(), ["a"]);
    }
}
