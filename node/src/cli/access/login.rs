//! `portcullis access login` and `logout`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::access::{self, Login, Profile, Prompt};
use crate::terminal::shown;

use super::super::output;
use super::time;

#[derive(Args)]
pub(super) struct LoginArgs {
    /// The auth domain: `https://access.example.com`
    url: String,
    /// Show a code to type into any browser, instead of opening one here
    #[arg(long)]
    device: bool,
    /// PEM file of the private authority that signed the node's certificate; it is remembered
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What this machine is called on the page that asks you; without it, by its host name
    #[arg(long)]
    name: Option<String>,
}

pub(super) async fn login(args: LoginArgs) -> anyhow::Result<()> {
    let ca = args.ca.as_deref().map(authority).transpose()?;
    let name = args.name.unwrap_or_else(host_name);
    let login = Login::prepare(&access::root()?, &args.url, ca.as_deref(), &name)?;
    let opener = if args.device { None } else { opener() };
    match opener {
        Some(program) => login.by_browser(|prompt| ask(&prompt, Some(&program))).await?,
        None => login.by_code(|prompt| ask(&prompt, None)).await?,
    }
    let profile = login.profile();
    output::line(&format!(
        "logged in at {} as {} until {}",
        profile.url(),
        shown(&profile.person()?),
        time(profile.login_expires_at()?)
    ))
}

pub(super) async fn logout(profile: &Profile) -> anyhow::Result<()> {
    if let Some(error) = profile.log_out().await? {
        output::warning(&format!("logged out here, but the node was not told: {error}"));
        return Ok(());
    }
    output::line(&format!("logged out at {}", profile.url()))
}

/// The text of a PEM file that holds certificates and nothing that cannot be read.
fn authority(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is no PEM file", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(text)
}

/// What opens a browser here: `$BROWSER`, or `xdg-open` where there is a display.
fn opener() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(browser) = set("BROWSER") {
        return find(Path::new(&browser));
    }
    if set("DISPLAY").is_none() && set("WAYLAND_DISPLAY").is_none() {
        return None;
    }
    // Without one the person opens the page that is printed.
    Some(find(Path::new("xdg-open")).unwrap_or_default())
}

/// The program of that name on the path, or at that place.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|found| found.is_file())
}

/// Tells the person what to do, and opens the browser if there is one.
fn ask(prompt: &Prompt<'_>, opener: Option<&Path>) {
    match prompt {
        Prompt::Browser { url } => {
            let opened = opener.is_some_and(|program| !program.as_os_str().is_empty() && open(program, url));
            let what = if opened { "your browser shows this page" } else { "open this page in your browser" };
            output::note(&format!("{what}:\n\n  {url}\n\nwaiting until you have confirmed there"));
        }
        Prompt::Code { url, code, minutes } => output::note(&format!(
            "open this page in any browser:\n\n  {url}\n\nand type this code, good for {minutes} minutes:\n\n  {code}\n"
        )),
    }
}

/// Starts the browser with nothing of ours: neither waits for the other.
fn open(program: &Path, url: &str) -> bool {
    Command::new(program)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .is_ok()
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}
