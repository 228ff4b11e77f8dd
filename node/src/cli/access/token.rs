//! `portcullis access token`: an application's token for other programs, among them those versions of `cloudflared` that
//! read it from a file, or turn a global token into one.

use std::path::PathBuf;

use clap::Args;

use crate::access::Profile;
use crate::private_file;

use super::super::output;

#[derive(Args)]
pub(super) struct TokenArgs {
    /// The application: its name or its address; without it the token is good for all that are open to the person
    #[arg(required_unless_present = "cloudflared")]
    app: Option<String>,
    /// Write it where `cloudflared access` looks (`~/.cloudflared`, mode 0600) instead of printing it
    #[arg(long)]
    cloudflared: bool,
}

pub(super) async fn run(profile: &Profile, args: TokenArgs) -> anyhow::Result<()> {
    let Some(app) = args.app else {
        let global = profile.global_token().await?;
        return keep(&file_name(&global.host, None)?, &global.token, global.expires_in);
    };
    let token = profile.application_token(&app).await?;
    if args.cloudflared {
        keep(&file_name(&token.host, Some(&token.aud))?, &token.token, token.expires_in)
    } else {
        output::line(&token.token)
    }
}

/// Writes a token where `cloudflared` looks for it.
fn keep(name: &str, token: &str, expires_in: u64) -> anyhow::Result<()> {
    let directory = super::home()?.join(".cloudflared");
    private_file::make_directory(&directory)?;
    let path: PathBuf = directory.join(name);
    private_file::replace(&path, token.as_bytes())?;
    output::line(&format!("{} is good for {} minutes", path.display(), expires_in / 60))
}

/// `<host>-<aud>-token`, or of the auth domain `<host>-org-token`. What a node answers must not lead out of the directory.
fn file_name(host: &str, aud: Option<&str>) -> anyhow::Result<String> {
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let aud = aud.unwrap_or("org");
    anyhow::ensure!(
        plain(host, ".-") && !host.starts_with('.') && plain(aud, ""),
        "there is no host name to it: cloudflared cannot reach it"
    );
    Ok(format!("{host}-{aud}-token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_in_its_directory() {
        let name = |host: &str, aud: Option<&str>| file_name(host, aud).ok();
        assert_eq!(name("wiki.example.com", Some("ab12")).as_deref(), Some("wiki.example.com-ab12-token"));
        assert_eq!(name("access.example.com", None).as_deref(), Some("access.example.com-org-token"));
        for (host, aud) in
            [("", "ab"), ("../x", "ab"), ("a/b", "ab"), (".ssh", "ab"), ("a", ""), ("a", "../b")]
        {
            assert_eq!(name(host, Some(aud)), None, "{host} {aud}");
        }
        assert_eq!(name("../x", None), None);
    }
}
