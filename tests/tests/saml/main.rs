//! The node as SAML identity provider, with python3-saml in strict mode as service provider and curl as the browser.

mod admin;
mod answers;
mod endings;
mod fuzz;
mod honest;
mod hostile;
mod logout;
mod provider;
mod published;
mod service;
mod simplesamlphp;
mod soap;
mod upstream;
