//! A browser with a screen: headless Chromium, walking a scenario of `third-party/npm/browser.mjs`.

use std::io::Write as _;
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
    let mut child = script(None, "browser.mjs")?
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

/// Where screenshots go: `target/screenshots`, to be looked at.
fn pictures() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).context("no target folder")?;
    Ok(target.join("screenshots"))
}
