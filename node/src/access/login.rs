//! Logging in: by a browser on this machine, which comes back to a loopback address (RFC 8252), or by a code that the
//! person types into any browser (RFC 8628).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::clock;

use super::api::{Api, ApiError, plain};
use super::loopback::{Callback, Listener, LoopbackError};
use super::profile::{Profile, ProfileError};
use super::wire::{self, DeviceResponse, TokenResponse};

/// How long a person may take in the browser.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bounds for what a node says about polling.
const INTERVALS: std::ops::RangeInclusive<u64> = 1..=60;
const LONGEST_WAIT: u64 = 1800;
/// What it costs to have asked too often (RFC 8628 §3.5).
const SLOWER: Duration = Duration::from_secs(5);

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    #[error("nothing came back from the browser within {} minutes", PATIENCE.as_secs() / 60)]
    Late,
    #[error("the code was not confirmed in time")]
    CodeLate,
    #[error("it was not confirmed")]
    Declined,
    #[error("the browser came back with {0}")]
    Refused(String),
    #[error("another node answered than the one that was asked")]
    Issuer,
    #[error("the node named a page that is not its own")]
    Page,
}

/// What the person has to do.
#[derive(Debug)]
pub enum Prompt<'a> {
    /// Open this page in a browser of this machine.
    Browser { url: &'a str },
    /// Open this page anywhere and type the code.
    Code { url: &'a str, code: &'a str, minutes: u64 },
}

/// A login that is about to happen: a profile with a device key.
pub struct Login {
    profile: Profile,
    api: Api,
    device: String,
}

impl Login {
    /// Prepares the profile of the node at `url`, below `root`. `ca` is the PEM of a private authority; `device` is what
    /// the person will see this machine called.
    ///
    /// # Errors
    /// When the address or the authority is none, or the profile cannot be written.
    pub fn prepare(
        root: &std::path::Path,
        url: &str,
        ca: Option<&str>,
        device: &str,
    ) -> Result<Self, LoginError> {
        let profile = Profile::prepare(root, url, ca)?;
        let api = Api::new(&profile)?;
        let device = device.chars().take(wire::LONGEST_NAME).collect();
        Ok(Self { profile, api, device })
    }

    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Logs in by a browser of this machine; `prompt` leads the person there.
    ///
    /// # Errors
    /// When nothing good comes back in time.
    pub async fn by_browser(&self, prompt: impl FnOnce(Prompt<'_>)) -> Result<(), LoginError> {
        let listener = Listener::bind().await?;
        let redirect = listener.url();
        let verifier = Zeroizing::new(URL_SAFE_NO_PAD.encode(clock::random::<32>()));
        let state = URL_SAFE_NO_PAD.encode(clock::random::<32>());
        let url = self.authorization(&redirect, &verifier, &state);
        prompt(Prompt::Browser { url: &url });
        let came = tokio::time::timeout(PATIENCE, listener.callback(&state)).await;
        let code = match came.map_err(|_| LoginError::Late)? {
            Callback { issuer, .. } if issuer.as_deref() != Some(self.profile.url()) => {
                return Err(LoginError::Issuer);
            }
            Callback { result: Ok(code), .. } => code,
            Callback { result: Err(error), .. } if error == "access_denied" => {
                return Err(LoginError::Declined);
            }
            Callback { result: Err(error), .. } => return Err(LoginError::Refused(plain(&error))),
        };
        self.exchange(&[
            ("grant_type", wire::BY_CODE),
            ("client_id", wire::CLIENT_ID),
            ("code", &code),
            ("redirect_uri", &redirect),
            ("code_verifier", &verifier),
        ])
        .await
    }

    /// Logs in by a code that the person types somewhere; `prompt` shows it.
    ///
    /// # Errors
    /// When nobody confirms it in time.
    pub async fn by_code(&self, prompt: impl FnOnce(Prompt<'_>)) -> Result<(), LoginError> {
        let form = [("client_id", wire::CLIENT_ID), ("device", self.device.as_str())];
        let started: DeviceResponse = self.api.post_once(wire::DEVICE_AUTHORIZATION, &form).await?;
        if started.verification_uri != self.api.url(wire::DEVICE) {
            return Err(LoginError::Page);
        }
        let life = Duration::from_secs(started.expires_in.min(LONGEST_WAIT));
        prompt(Prompt::Code {
            url: &started.verification_uri,
            code: &plain(&started.user_code),
            minutes: life.as_secs() / 60,
        });
        let device_code = Zeroizing::new(started.device_code);
        let interval = started.interval.clamp(*INTERVALS.start(), *INTERVALS.end());
        let polling = self.poll(&device_code, Duration::from_secs(interval));
        tokio::time::timeout(life, polling).await.map_err(|_| LoginError::CodeLate)?
    }

    async fn poll(&self, device_code: &str, mut interval: Duration) -> Result<(), LoginError> {
        let form =
            [("grant_type", wire::BY_DEVICE), ("client_id", wire::CLIENT_ID), ("device_code", device_code)];
        loop {
            tokio::time::sleep(interval).await;
            match self.exchange(&form).await {
                Err(LoginError::Api(ApiError::Refused(refusal))) => match refusal.code.as_str() {
                    "authorization_pending" => {}
                    "slow_down" => interval = interval.saturating_add(SLOWER),
                    "access_denied" => return Err(LoginError::Declined),
                    "expired_token" => return Err(LoginError::CodeLate),
                    _ => return Err(ApiError::from(refusal).into()),
                },
                // The network may come back.
                Err(LoginError::Api(ApiError::Unreachable { .. })) => {
                    interval = interval.saturating_add(SLOWER);
                }
                other => return other,
            }
        }
    }

    /// Exchanges what was granted, and keeps what comes of it.
    async fn exchange(&self, form: &[(&str, &str)]) -> Result<(), LoginError> {
        let _locked = self.profile.lock().await?;
        let since = clock::now();
        let answer: TokenResponse = self.api.post_once(wire::TOKEN, form).await?;
        self.profile.keep(&answer, since, true)?;
        Ok(())
    }

    /// The address that the browser opens (RFC 6749 §4.1.1).
    fn authorization(&self, redirect: &str, verifier: &str, state: &str) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("response_type", "code")
            .append_pair("client_id", wire::CLIENT_ID)
            .append_pair("redirect_uri", redirect)
            .append_pair("state", state)
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(digest))
            .append_pair("code_challenge_method", "S256")
            .append_pair("dpop_jkt", &self.api.thumbprint())
            .append_pair("device", &self.device)
            .finish();
        format!("{}?{query}", self.api.url(wire::AUTHORIZE))
    }
}
