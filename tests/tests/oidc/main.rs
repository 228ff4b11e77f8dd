//! OpenID Connect against a real provider, honest and hostile.

mod honest;
mod hostile;
mod outage;
mod visit;
