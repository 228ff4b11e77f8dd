//! `portcullis access curl`: the system's curl, with a token for the application in a header.
//!
//! The token reaches curl through a file in memory that has no name, so that neither the process list nor a file system
//! shows it. Redirects are not followed and nothing but HTTPS is spoken: curl would carry the header wherever it is led.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use anyhow::Context as _;
use clap::Args;
use rustix::fs::MemfdFlags;
use zeroize::Zeroizing;

use crate::access::{AccessError, ApiError, Profile};

#[derive(Args)]
pub(super) struct CurlArgs {
    /// The address; whatever follows is for curl
    url: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CURL ARGUMENTS")]
    args: Vec<OsString>,
}

pub(super) async fn run(profile: &Profile, args: CurlArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.url.starts_with("https://"), "{:?} is no https address", args.url);
    for arg in &args.args {
        anyhow::ensure!(
            !follows(arg),
            "redirects are not followed: curl would carry the token to wherever they lead"
        );
    }
    let token = match profile.application_token(&args.url).await {
        Ok(token) => Some(token),
        // Open to everybody: there is nothing to add.
        Err(AccessError::Api(ApiError::Refused(refusal))) if refusal.code == "no_token" => None,
        Err(error) => return Err(error.into()),
    };
    let mut command = Command::new("curl");
    if let Some(ca) = profile.ca() {
        command.arg("--cacert").arg(ca);
    }
    command.args(&args.args).arg("--url").arg(&args.url);
    let config = private(&config(token.as_ref().map(|token| token.token.as_str())))?;
    command.arg("--config").arg(format!("/proc/self/fd/{}", config.as_raw_fd()));
    let status = command.status().context("curl cannot be run")?;
    drop(config);
    // Ends as curl ended; by a signal like a shell does.
    let code = status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    std::process::exit(code)
}

/// What curl reads last, so that it counts.
fn config(token: Option<&str>) -> Zeroizing<String> {
    let mut text = Zeroizing::new("no-location\nproto = \"=https\"\n".to_owned());
    if let Some(token) = token {
        text.push_str("header = \"Cf-Access-Token: ");
        // A token is of an alphabet that needs no escapes; what is not of it is no token.
        text.extend(token.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)));
        text.push_str("\"\n");
    }
    text
}

/// A file in memory that the next program inherits.
fn private(text: &str) -> anyhow::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("portcullis", MemfdFlags::empty())?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

/// Whether an argument asks curl to follow redirects: `--location` and what it may be shortened to, `-L` alone or among
/// options that take no value.
fn follows(arg: &OsStr) -> bool {
    let Some(text) = arg.to_str() else { return false };
    match text.strip_prefix("--") {
        Some(long) => long.len() >= 3 && ("location".starts_with(long) || long == "location-trusted"),
        None => {
            let plain = |c: &char| "fgGiIjkklnNOpqRsSv#0123468".contains(*c);
            text.strip_prefix('-').is_some_and(|short| short.chars().find(|c| !plain(c)) == Some('L'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_follow_redirects_is_noticed() {
        for arg in ["-L", "-sL", "-sSfL", "--location", "--loc", "--location-trusted"] {
            assert!(follows(OsStr::new(arg)), "{arg}");
        }
        for arg in
            ["", "-", "-o", "-oL", "-HL: x", "-s", "--local-port", "--login-options", "L", "--header", "-XL"]
        {
            assert!(!follows(OsStr::new(arg)), "{arg}");
        }
    }

    #[test]
    fn a_token_cannot_add_options() {
        let text = config(Some("abc\"\nurl = \"https://evil.example\n"));
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("header = \"Cf-Access-Token: abcurlhttpsevil.example\"\n"), "{}", *text);
        assert!(!config(None).contains("Cf-Access"));
    }
}
