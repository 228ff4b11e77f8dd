//! Proof Key for Code Exchange (RFC 7636), with SHA-256 alone.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::sha256;

/// Whether `text` can be the SHA-256 of a verifier in base64url.
pub(crate) fn is_challenge(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}

/// Whether a verifier belongs to a challenge. One without the other never does: whoever could leave the challenge out of
/// somebody's request could redeem their code (RFC 9700 §4.8).
pub(crate) fn holds(challenge: Option<&str>, verifier: Option<&str>) -> bool {
    match (challenge, verifier) {
        (None, None) => true,
        (Some(challenge), Some(verifier)) if is_verifier(verifier) => {
            let own = URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes()));
            aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), challenge.as_bytes()).is_ok()
        }
        _ => false,
    }
}

/// RFC 7636 §4.1: 43 to 128 unreserved characters.
fn is_verifier(text: &str) -> bool {
    (43..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_holds_and_its_neighbours_do_not() {
        // RFC 7636, appendix B.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(is_challenge(challenge) && holds(Some(challenge), Some(verifier)) && holds(None, None));
        let changed = verifier.replace("dBj", "dBk");
        for (challenge, verifier) in [
            (Some(challenge), None),
            (None, Some(verifier)),
            (Some(challenge), Some(changed.as_str())),
            (Some(challenge), Some("short")),
            (Some(challenge), Some(challenge)),
            (Some(verifier), Some(verifier)),
        ] {
            assert!(!holds(challenge, verifier), "{challenge:?} {verifier:?}");
        }
        let long = "a".repeat(129);
        let of_long = URL_SAFE_NO_PAD.encode(sha256(long.as_bytes()));
        assert!(!holds(Some(&of_long), Some(&long)));
        assert!(!is_challenge("") && !is_challenge(&"A".repeat(44)) && !is_challenge(&"+".repeat(43)));
    }
}
