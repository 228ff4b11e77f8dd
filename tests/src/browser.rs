//! A browser with a screen: headless Chromium, walking a scenario of `third-party/npm/browser.mjs`.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::idp::Idp;
use crate::realm::{PASSWORD, Realm};
use crate::third_party::script;

/// Walks `scenario`, which gets `device` for what it needs to know beside the realm and the provider.
pub fn walk(realm: &Realm, idp: Option<&Idp>, scenario: &str, device: &Value) -> Result<()> {
    let input = json!({
        "scenario": scenario,
        "port": realm.port,
        "password": PASSWORD,
        "pictures": pictures()?,
        "idp": idp.map(Idp::issuer),
        "device": device,
    });
    // Chromium keeps crash reports and certificates there, as root where an ordinary user runs the tests by sudo.
    let home = tempfile::tempdir()?;
    let mut child = script(None, "browser.mjs")?
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("browser.mjs")?;
    child.stdin.take().context("stdin")?.write_all(input.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && out.trim_end().ends_with("ok"), "{scenario}:\n{out}{err}");
    Ok(())
}

/// Where screenshots go: `target/screenshots`, to be looked at, and removed, by whose target folder it is.
fn pictures() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).context("no target folder")?;
    let pictures = target.join("screenshots");
    std::fs::create_dir_all(&pictures)?;
    let owner = target.metadata()?;
    std::os::unix::fs::chown(&pictures, Some(owner.uid()), Some(owner.gid()))?;
    Ok(pictures)
}
