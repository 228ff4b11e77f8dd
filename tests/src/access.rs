//! Somebody's own machine: `portcullis access` with a home directory, a hosts file that leads to the realm, and a browser
//! that only notes what it was asked to open.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::netns::Netns;
use crate::portcullis::{binary, command_in};
use crate::process::Process;
use crate::realm::{AUTH, PASSWORD, Realm, SHOP, WIKI};
use crate::web::{Reply, Web};

/// How long a command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One machine of a person.
#[derive(Debug)]
pub struct Machine {
    netns: Option<Netns>,
    home: PathBuf,
    url: String,
    ca: PathBuf,
    hosts: PathBuf,
}

impl Machine {
    /// A machine called `name` that can reach `realm`.
    pub fn new(realm: &Realm, name: &str) -> Result<Self> {
        let hosts = format!("127.0.0.1 localhost {AUTH} {WIKI} {SHOP}\n");
        Self::at(realm.dir.path(), name, realm.url(AUTH, ""), &realm.ca_file, &hosts)
    }

    /// A machine called `name` with its files in `dir`, whose hosts file leads to the node at `url`.
    pub fn at(dir: &Path, name: &str, url: String, ca: &Path, hosts_file: &str) -> Result<Self> {
        let home = dir.join(name);
        fs::create_dir(&home)?;
        let hosts = home.join("hosts");
        fs::write(&hosts, hosts_file)?;
        fs::create_dir(home.join("bin"))?;
        std::os::unix::fs::symlink(binary()?, home.join("bin/portcullis"))?;
        let browser = home.join("browser");
        fs::write(
            &browser,
            format!("#!/bin/sh\necho \"$1\" > {}/opened.new\nmv {0}/opened.new {0}/opened\n", home.display()),
        )?;
        fs::set_permissions(&browser, fs::Permissions::from_mode(0o755))?;
        Ok(Self { netns: None, home, url, ca: ca.to_owned(), hosts })
    }

    /// The same machine in a network namespace.
    pub fn inside(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// The same machine once more, with a copy of all that is on it: what a thief of the disk has.
    pub fn copy(&self, name: &str) -> Result<Self> {
        let home = self.home.with_file_name(name);
        let status = Command::new("cp").arg("-a").arg(&self.home).arg(&home).status()?;
        ensure!(status.success(), "cp failed");
        let (netns, url) = (self.netns.clone(), self.url.clone());
        Ok(Self { netns, home, url, ca: self.ca.clone(), hosts: self.hosts.clone() })
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where the profile of the realm's node is.
    pub fn profile(&self) -> PathBuf {
        self.home.join(".config/portcullis/access").join(self.url.trim_start_matches("https://"))
    }

    /// `portcullis access ARGS`, with the hosts file of this machine and nothing of the environment.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Command> {
        let mut command = self.program(binary()?)?;
        command.arg("access").args(args);
        Ok(command)
    }

    /// Any program on this machine; `portcullis` is on its PATH.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.prepared(program, "")
    }

    /// `portcullis access …` that says a line and waits for one, when there is nothing left to do but to execute it.
    pub fn ready<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Command> {
        let mut command = self.prepared(binary()?, "echo && read -r line &&")?;
        command.arg("access").args(args);
        Ok(command)
    }

    fn prepared(&self, program: impl AsRef<OsStr>, more: &str) -> Result<Command> {
        let mut path = self.home.join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").context("PATH")?);
        let mut command = command_in(self.netns.as_ref(), "unshare");
        command
            .args(["--mount", "--", "sh", "-c"])
            .arg(format!("mount --bind \"$0\" /etc/hosts && {more} exec \"$@\""))
            .arg(&self.hosts)
            .arg(program)
            .env_clear()
            .env("HOME", &self.home)
            .env("PATH", path);
        Ok(command)
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        Ok(self.command(args)?.output()?)
    }

    /// What a command printed; an error with its message if it failed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let output = self.run(args)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {error}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The message of a command that fails.
    pub fn fails<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let output = self.run(args)?;
        let out = String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success(), "it succeeded: {out}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a login by browser; the process and the page that it opened.
    pub fn start_login(&self) -> Result<(Process, String)> {
        let mut command = self.login(&[])?;
        command.env("BROWSER", self.home.join("browser"));
        let opened = self.home.join("opened");
        let _ = fs::remove_file(&opened);
        let mut process = Process::spawn("login", command)?;
        let url = process.wait_until("open a browser", PATIENCE, |_| Ok(fs::read_to_string(&opened).ok()))?;
        Ok((process, url.trim().to_owned()))
    }

    /// Starts a login by code; the process, the page and the code.
    pub fn start_login_by_code(&self) -> Result<(Process, String, String)> {
        let mut process = Process::spawn("login", self.login(&["--device"])?)?;
        let words = process.wait_until("show a code", PATIENCE, |process| {
            let lines: Vec<String> = process
                .output()
                .lines()
                .filter_map(|line| line.strip_prefix("  ").map(str::to_owned))
                .collect();
            Ok(<[String; 2]>::try_from(lines).ok())
        })?;
        let [url, code] = words;
        Ok((process, url, code))
    }

    fn login(&self, more: &[&str]) -> Result<Command> {
        let ca = self.ca.display().to_string();
        let args = ["login", self.url.as_str(), "--ca", ca.as_str(), "--name", "laptop"];
        self.command(&[&args[..], more].concat())
    }

    /// Logs `user` in with `web`, by browser.
    pub fn log_in(&self, web: &Web, user: &str) -> Result<()> {
        let (mut process, url) = self.start_login()?;
        let answer = answer(web, &confirmation(web, &url, user)?, "allow")?;
        let back = web.get(&answer.redirect().context("no redirect to the machine")?)?;
        ensure!(back.status == 200, "the machine answered {}: {}", back.status, back.body);
        finish(&mut process)
    }

    /// Makes the access token look as if it had expired, so that the next command refreshes it.
    pub fn expire(&self) -> Result<()> {
        let path = self.profile().join("login.json");
        let mut login: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        login["access_expires_at"] = 0.into();
        Ok(fs::write(path, login.to_string())?)
    }
}

/// Opens `url` with `web`, logging `user` in on the way if need be: the page that asks.
pub fn confirmation(web: &Web, url: &str, user: &str) -> Result<Reply> {
    let page = web.follow(web.get(url)?, None)?;
    if !page.body.contains("name=\"password\"") {
        return Ok(page);
    }
    let ticket = page.field("ticket")?;
    let form = [("ticket", ticket.as_str()), ("username", user), ("password", PASSWORD)];
    web.follow(web.post(&page.url, &form)?, None)
}

/// Answers a page that asks.
pub fn answer(web: &Web, page: &Reply, decision: &str) -> Result<Reply> {
    if !page.body.contains("Sign this device in?") {
        bail!("this page does not ask: {}", page.body);
    }
    web.post(&page.url, &[("ticket", &page.field("ticket")?), ("decision", decision)])
}

/// Waits for a login to end well.
pub fn finish(process: &mut Process) -> Result<()> {
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "login ended with {status}: {}", process.output());
    ensure!(process.output().contains("logged in at"), "{}", process.output());
    Ok(())
}
