//! What the application is told about the person can be verified by anybody.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use crate::demo::lab::{ALICE, AUTH, Lab, WIKI};
use crate::demo::{Evidence, Fault, Step};
use crate::netns::run as run_command;
use crate::portcullis::START;
use crate::process::Process;
use crate::third_party;

pub(super) const STEP: Step = Step {
    name: "assertion",
    claim: "the application sees a signed assertion that verifies against the published keys, and only untampered",
    run,
    fault: Fault {
        what: "the key set that the application fetches is somebody else's, under the same key ids",
        plant: |lab| {
            lab.keys_are_foreign = true;
            Ok(())
        },
        heal: |lab| {
            lab.keys_are_foreign = false;
            Ok(())
        },
        symptom: "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
    },
};

fn run(lab: &mut Lab, evidence: &mut Evidence) -> Result<()> {
    let browser = lab.logged_in(&ALICE)?;
    // nginx answers this path with the header that it received.
    let token = browser.open(&format!("{WIKI}/assertion"))?.body.trim().to_owned();
    ensure!(token.split('.').count() == 3, "the application got no assertion but “{token}”");
    let audience = audience(lab)?;
    let mut keys = lab.published_keys()?;
    if lab.keys_are_foreign {
        keys = foreign(&keys)?;
    }

    let verified = verify(&token, &keys, &audience)?;
    let verified = verified.map_err(|code| anyhow::anyhow!("jose refuses the assertion: {code}"))?;
    let claims = verified.get("claims").context("no claims")?;
    let claim = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    ensure!(claim("email") == ALICE.email, "it speaks of {}", claim("email"));
    ensure!(claim("type") == "app", "its type is {}", claim("type"));
    evidence.see(format!(
        "npm jose verifies it against {AUTH}/cdn-cgi/access/certs: email {}, iss {}, {} bytes, {}",
        claim("email"),
        claim("iss"),
        token.len(),
        verified.get("header").map(Value::to_string).unwrap_or_default(),
    ));

    for (what, tampered) in
        [("one changed claim", other_claim(&token)?), ("a changed signature", other_signature(&token)?)]
    {
        let refused = verify(&tampered, &keys, &audience)?;
        let code = refused.err().with_context(|| format!("{what} was accepted"))?;
        evidence.control(format!("{what} is refused: {code}"));
    }
    let refused = verify(&token, &keys, "another-application")?;
    let code = refused.err().context("another application accepts it")?;
    evidence.control(format!("another application refuses it: {code}"));
    Ok(())
}

/// The claims, or the library's error code.
fn verify(token: &str, keys: &Value, audience: &str) -> Result<Result<Value, String>> {
    let input = json!({ "token": token, "jwks": keys, "issuer": AUTH, "audience": audience }).to_string();
    let mut process =
        Process::spawn_with_stdin("verify", third_party::script(None, "verify.mjs")?, input.as_bytes())?;
    let status = process.wait(START)?;
    let output = process.output();
    Ok(if status.success() { Ok(serde_json::from_str(&output)?) } else { Err(output.trim().to_owned()) })
}

fn foreign(keys: &Value) -> Result<Value> {
    let mut script = third_party::script(None, "foreign-keys.mjs")?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), keys.to_string())?;
    Ok(serde_json::from_str(&run_command(script.stdin(file.reopen()?))?)?)
}

/// The application's audience tag, as whoever configures the application finds it: the redirect to login names it.
fn audience(lab: &Lab) -> Result<String> {
    let page = lab.browser()?.open_once(&format!("{WIKI}/"))?;
    let location = page.header("location").context("no redirect to login")?;
    let query = location.split_once('?').map_or("", |(_, query)| query);
    let kid = query.split('&').find_map(|pair| pair.strip_prefix("kid="));
    Ok(kid.context("the redirect to login has no kid")?.to_owned())
}

/// The token with bob's address in it, the signature as it was.
fn other_claim(token: &str) -> Result<String> {
    let mut parts: Vec<&str> = token.split('.').collect();
    let payload = parts.get(1).context("no payload")?;
    let text = String::from_utf8(BASE64.decode(payload).context("payload is not base64url")?)?;
    let changed = BASE64.encode(text.replace(ALICE.email, "mallory@portcullis.test").as_bytes());
    ensure!(changed != *payload, "the assertion does not name {}", ALICE.email);
    if let Some(part) = parts.get_mut(1) {
        *part = &changed;
    }
    Ok(parts.join("."))
}

/// The token with one bit of the signature changed.
fn other_signature(token: &str) -> Result<String> {
    let (signed, signature) = token.rsplit_once('.').context("no signature")?;
    let mut bytes = BASE64.decode(signature).context("signature is not base64url")?;
    *bytes.first_mut().context("empty signature")? ^= 1;
    Ok(format!("{signed}.{}", BASE64.encode(&bytes)))
}
