//! A real OpenID provider (npm `oidc-provider`) behind a proxy that cheats on demand: `third-party/npm/idp.mjs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::ports;
use crate::process::Process;
use crate::third_party::script;

pub const CLIENT_ID: &str = "portcullis";
pub const CLIENT_SECRET: &str = "idp-secret-canary-7c1f";

/// Where a provider puts the claims about email and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimsIn {
    Userinfo,
    IdToken,
}

/// A running provider. Its login form takes any account of `accounts` with any password.
#[derive(Debug)]
pub struct Idp {
    issuer: String,
    ca: PathBuf,
    process: Process,
}

impl Idp {
    /// Starts a provider on `https://localhost:<port>` with a certificate of `ca`, for one client that is sent back
    /// to `redirect_uris`. `accounts` maps a login to the claims beyond `sub`. Files go to `dir`.
    pub fn start(
        dir: &Path,
        ca: &Ca,
        redirect_uris: &[String],
        accounts: &Value,
        claims_in: ClaimsIn,
    ) -> Result<Self> {
        let (port, internal) = (ports::free()?, ports::free()?);
        let files = ca.issue(&["localhost"])?.write(dir, &format!("idp-{port}"))?;
        let issuer = format!("https://localhost:{port}");
        let options = json!({
            "port": port,
            "internal": internal,
            "cert": files.cert,
            "key": files.key,
            "issuer": issuer,
            "redirect_uris": redirect_uris,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "accounts": accounts,
            "claims_in": match claims_in { ClaimsIn::Userinfo => "userinfo", ClaimsIn::IdToken => "id_token" },
        });
        let mut command = script(None, "idp.mjs")?;
        command.arg(options.to_string());
        let mut process = Process::spawn("idp", command)?;
        process.wait_for_output("ready", Duration::from_secs(60))?;
        Ok(Self { issuer, ca: ca.write(dir)?, process })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes the proxy cheat from now on; the modes are in `idp.mjs`, `none` is honest.
    pub fn tamper(&self, mode: &str) -> Result<()> {
        self.curl(&["--request", "POST", "--data-raw", mode], "/_tamper")
            .with_context(|| format!("tampering mode {mode}"))
            .map(drop)
    }

    /// How many requests for `path` the proxy has seen.
    pub fn seen(&self, path: &str) -> Result<u64> {
        let seen: Value = serde_json::from_str(&self.curl(&[], "/_seen")?)?;
        Ok(seen.get(path).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Stops the provider, as in an outage.
    pub fn stop(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    fn curl(&self, args: &[&str], path: &str) -> Result<String> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"])
            .arg(&self.ca)
            .args(args)
            .arg(format!("{}{path}", self.issuer))
            .output()
            .context("curl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
