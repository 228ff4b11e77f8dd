//! OpenID Connect against a real provider, honest and hostile.

mod anew;
mod honest;
mod hostile;
mod mixup;
mod outage;
mod visit;
