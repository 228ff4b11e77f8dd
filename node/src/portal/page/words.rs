//! What pages say about a refusal: what happened and what to do, never how the node is built.

use crate::flow::Reason;

/// Title, what happened, what to do.
pub(super) struct Words {
    pub(super) title: &'static str,
    pub(super) what: &'static str,
    pub(super) todo: &'static str,
}

const ASK: &str = "If you think that is wrong, ask whoever runs this access node and tell them the ray ID.";

pub(super) const fn words(reason: Reason) -> Words {
    let (title, what, todo) = match reason {
        Reason::NoPolicy | Reason::NoMatch | Reason::Blocked => (
            "You do not have access",
            "You are signed in, but the policy of this application does not let you in.",
            ASK,
        ),
        Reason::ProviderNotAllowed => (
            "You do not have access",
            "This application wants you to sign in with another identity provider.",
            "Sign in again with one that it accepts.",
        ),
        Reason::NoSession => (
            "Sign in first",
            "This address needs a signed-in person.",
            "Open the application in your browser to sign in.",
        ),
        Reason::SessionEnded => (
            "Your session has ended",
            "You were signed out, or your session has expired.",
            "Sign in again to go on.",
        ),
        Reason::NoApplication => (
            "Nothing is here",
            "No application answers at this address.",
            "Check the address for a typing mistake.",
        ),
        Reason::BadRequest => (
            "That request was not understood",
            "The request is malformed, or could be read in two ways.",
            "Go back and try again; if the address was given to you, check it.",
        ),
        Reason::Misdirected => (
            "Wrong connection",
            "This host name cannot be reached over the connection that was used.",
            "Load the page again.",
        ),
        Reason::ForeignOrigin => (
            "Refused for your safety",
            "A page of another site tried to open a connection to this application.",
            ASK,
        ),
        Reason::BadToken | Reason::BadBinding => (
            "Sign-in was not completed",
            "The proof that you signed in is missing, expired or belongs to another browser.",
            "Start again, and allow cookies for this site.",
        ),
        Reason::BadCredentials => ("Sign-in failed", "The user name or the password is wrong.", "Try again."),
        Reason::Throttled => (
            "Too many attempts",
            "There were too many attempts to sign in, from your network, for this account or in this session.",
            "Wait a little, then try again. Nobody is locked out for good.",
        ),
        Reason::ProviderAnswer => (
            "Sign-in failed",
            "The identity provider's answer could not be accepted.",
            "Start again. If it keeps failing, tell whoever runs this access node the ray ID.",
        ),
        Reason::NotAnew => (
            "You have to sign in anew",
            "The application wants proof from now of who you are, and your identity provider did not say that you gave it.",
            "Sign out there and start again. If it keeps failing, the provider cannot do this: tell whoever runs this access node the ray ID.",
        ),
        Reason::ProviderUnavailable => (
            "The identity provider does not answer",
            "Signing in is not possible at the moment. Whoever is already signed in is not affected.",
            "Try again in a minute.",
        ),
        Reason::MetadataUnavailable => (
            "Signing in there is not possible at the moment",
            "What the application says about itself could not be fetched.",
            "Try again in a minute. If it stays that way, tell whoever runs this access node the ray ID.",
        ),
        Reason::Declined => (
            "The device was not let in",
            "Whoever was asked about it said no.",
            "Start again on the device if that was a mistake.",
        ),
        Reason::BadState => (
            "Sign-in was not completed",
            "This sign-in was started in another browser, is too old, or was already used.",
            "Start again, and allow cookies for this site.",
        ),
        Reason::NoSshUser => (
            "No user of that host is open to you",
            "You are signed in and let in, but no UNIX user of this application is open to you.",
            ASK,
        ),
        Reason::ConnectorGone => (
            "The application cannot be reached",
            "The network of this application is not connected at the moment.",
            "Try again in a minute.",
        ),
        Reason::OriginDown => (
            "The application does not answer",
            "You are allowed in, but the application itself did not answer.",
            "Try again in a minute. If it stays that way, tell whoever runs the application.",
        ),
        Reason::BadEnrolment | Reason::UnknownConnector => {
            ("Refused", "This connector is not known here.", ASK)
        }
        Reason::Internal => (
            "Something went wrong here",
            "The access node could not do what was asked.",
            "Try again. If it keeps failing, tell whoever runs this access node the ray ID.",
        ),
    };
    Words { title, what, todo }
}
