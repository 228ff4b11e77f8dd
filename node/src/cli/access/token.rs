//! `portcullis access token`: an application's token for other programs, among them those versions of `cloudflared` that
//! read it from a file.

use std::path::PathBuf;

use clap::Args;

use crate::access::{ApplicationToken, Profile};
use crate::private_file;

use super::super::output;

#[derive(Args)]
pub(super) struct TokenArgs {
    /// The application: its name or its address
    app: String,
    /// Write it where `cloudflared access` looks (`~/.cloudflared`, mode 0600) instead of printing it
    #[arg(long)]
    cloudflared: bool,
}

pub(super) async fn run(profile: &Profile, args: TokenArgs) -> anyhow::Result<()> {
    let token = profile.application_token(&args.app).await?;
    if !args.cloudflared {
        return output::line(&token.token);
    }
    let name = file_name(&token)?;
    let directory = super::home()?.join(".cloudflared");
    private_file::make_directory(&directory)?;
    let path: PathBuf = directory.join(name);
    private_file::replace(&path, token.token.as_bytes())?;
    output::line(&format!("{} is good for {} minutes", path.display(), token.expires_in / 60))
}

/// `<host>-<aud>-token`. What a node answers must not lead out of the directory.
fn file_name(token: &ApplicationToken) -> anyhow::Result<String> {
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    anyhow::ensure!(
        plain(&token.host, ".-") && !token.host.starts_with('.') && plain(&token.aud, ""),
        "{} has no host name: cloudflared cannot reach it",
        super::plain(&token.application)
    );
    Ok(format!("{}-{}-token", token.host, token.aud))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_in_its_directory() {
        let name = |host: &str, aud: &str| {
            file_name(&ApplicationToken {
                application: "wiki".into(),
                host: host.into(),
                aud: aud.into(),
                expires_in: 60,
                token: "x".into(),
            })
            .ok()
        };
        assert_eq!(name("wiki.example.com", "ab12").as_deref(), Some("wiki.example.com-ab12-token"));
        for (host, aud) in
            [("", "ab"), ("../x", "ab"), ("a/b", "ab"), (".ssh", "ab"), ("a", ""), ("a", "../b")]
        {
            assert_eq!(name(host, aud), None, "{host} {aud}");
        }
    }
}
