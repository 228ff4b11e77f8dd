//! The node as SAML identity provider, with python3-saml in strict mode as service provider and curl as the browser.

mod fuzz;
mod honest;
mod hostile;
mod service;
