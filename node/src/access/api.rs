//! The node's endpoints, as the client asks them: every request carries a proof of the device key.

use http::{HeaderValue, Method, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::clock;
use crate::fetch::{FetchError, HttpClient, RootsError};
use crate::portal;
use crate::terminal::shown;
use crate::token::dpop::{self, Signer};

use super::profile::{Profile, ProfileError};
use super::wire::{self, CertRefusal, CertRequest, CertResponse, ErrorResponse};

/// How often a request is sent whose answer got lost.
const TRIES: usize = 3;

/// Why there is no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the file of the private authority is unusable: {0}")]
    Ca(String),
    #[error("the device key does not sign")]
    Key,
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} answered {status}, which is no answer of an access node of this version")]
    Answer { url: String, status: StatusCode },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// The node said no (RFC 6749 §5.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node refused: {words}")]
pub struct Refusal {
    /// `invalid_grant`, `slow_down` and so on.
    pub code: String,
    /// For people.
    pub words: String,
}

/// One node's endpoints, for one profile.
pub(super) struct Api {
    http: HttpClient,
    url: String,
    signer: Signer,
}

impl Api {
    pub(super) fn new(profile: &Profile) -> Result<Self, ApiError> {
        let http = HttpClient::new(profile.ca().as_deref())
            .map_err(|error: RootsError| ApiError::Ca(error.to_string()))?;
        Ok(Self { http, url: profile.url().to_owned(), signer: profile.signer()? })
    }

    /// The address of an endpoint.
    pub(super) fn url(&self, endpoint: &str) -> String {
        format!("{}{}{endpoint}", self.url, portal::PREFIX)
    }

    pub(super) fn thumbprint(&self) -> String {
        self.signer.thumbprint()
    }

    /// Posts a form and takes the answer apart.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        token: Option<&str>,
        form: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.ask(Method::POST, endpoint, token, &body, TRIES).await
    }

    /// As [`Api::post`] without a token, for what is good once: it is not sent again.
    pub(super) async fn post_once<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        form: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        self.ask(Method::POST, endpoint, None, &body, 1).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, endpoint: &str, token: &str) -> Result<T, ApiError> {
        self.ask(Method::GET, endpoint, Some(token), "", TRIES).await
    }

    /// Asks for an SSH certificate. Good to be asked for once more: every answer is a certificate of its own.
    pub(super) async fn certificate(&self, request: &CertRequest) -> Result<CertResponse, ApiError> {
        let url = self.url(wire::CERT_SIGN);
        let body =
            serde_json::to_vec(request).map_err(|_| self.unreachable("the request cannot be written"))?;
        let request = http::Request::post(&url)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|_| self.unreachable("the address is malformed"))?;
        let answer = self.http.send(request).await.map_err(|error| self.unreachable(&words(&error)))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return serde_json::from_slice(answer.body()).map_err(|_| ApiError::Answer { url, status });
        }
        match serde_json::from_slice::<CertRefusal>(answer.body()) {
            Ok(refusal) => {
                Err(Refusal { code: status.as_str().to_owned(), words: plain(&refusal.message) }.into())
            }
            Err(_) => Err(ApiError::Answer { url, status }),
        }
    }

    /// A refresh comes with the same proof at every try, so that the node knows it again. Elsewhere a proof is good once.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        endpoint: &str,
        token: Option<&str>,
        body: &str,
        tries: usize,
    ) -> Result<T, ApiError> {
        let url = self.url(endpoint);
        let about = dpop::About { method: method.as_str(), url: &url, token };
        let prove = || self.signer.prove(about, clock::random(), clock::now()).map_err(|_| ApiError::Key);
        let mut proof = prove()?;
        let mut lost = None;
        for attempt in 0..tries {
            if attempt > 0 && token.is_some() {
                proof = prove()?;
            }
            let request = request(&method, &url, token, &proof, body);
            match self.http.send(request.ok_or_else(|| self.unreachable("the address is malformed"))?).await {
                Ok(answer) => return read(&url, &answer),
                Err(error @ (FetchError::Address | FetchError::Body(_))) => {
                    return Err(self.unreachable(&error.to_string()));
                }
                Err(error) => lost = Some(error),
            }
        }
        Err(self.unreachable(&lost.map_or_else(String::new, |error| words(&error))))
    }

    fn unreachable(&self, why: &str) -> ApiError {
        ApiError::Unreachable { url: self.url.clone(), why: why.to_owned() }
    }
}

fn request(
    method: &Method,
    url: &str,
    token: Option<&str>,
    proof: &str,
    body: &str,
) -> Option<http::Request<Vec<u8>>> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(url)
        .header(header::ACCEPT, "application/json")
        .header(dpop::HEADER, proof);
    if *method == Method::POST {
        request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(&format!("{} {token}", dpop::SCHEME)).ok()?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(body.as_bytes().to_vec()).ok()
}

fn read<T: DeserializeOwned>(url: &str, answer: &http::Response<Vec<u8>>) -> Result<T, ApiError> {
    let status = answer.status();
    let strange = || ApiError::Answer { url: url.to_owned(), status };
    if status == StatusCode::OK {
        return serde_json::from_slice(answer.body()).map_err(|_| strange());
    }
    let refusal: ErrorResponse = serde_json::from_slice(answer.body()).map_err(|_| strange())?;
    let words = refusal.error_description.unwrap_or_else(|| refusal.error.clone());
    Err(Refusal { code: plain(&refusal.error), words: plain(&words) }.into())
}

/// What a node says ends up on a terminal: not too much.
pub(super) fn plain(text: &str) -> String {
    shown(text).chars().take(500).collect()
}

fn words(error: &FetchError) -> String {
    match error {
        FetchError::Connect(io) if io.to_string().contains("UnknownIssuer") => {
            "its certificate is signed by nobody this machine trusts; `access login --ca FILE` names a private authority"
                .to_owned()
        }
        other => other.to_string(),
    }
}
