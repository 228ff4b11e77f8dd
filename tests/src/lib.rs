//! The lab: what the demo and the end-to-end tests stand on.
//!
//! | module | gives |
//! |---|---|
//! | [`netns`] | network namespaces with links, addresses and firewalls, removed on drop |
//! | [`process`] | child processes killed on drop, their output kept, readiness waits |
//! | [`ports`] | ports on loopback that no other test of this machine gets |
//! | [`mod@bench`] | the measurements of `cargo xtask bench` |
//! | [`ca`] | a certificate authority made on the spot |
//! | [`numbered`] | a flow of which not one datagram may be lost |
//! | [`meanwhile`] | what goes on in other threads while a test's body runs |
//! | [`masque`] | a client of connect-udp, for what the product's own would never send |
//! | [`origin`] | an HTTP origin that records every request it sees |
//! | [`flood`] | packets from everywhere, and who is served meanwhile |
//! | [`h2_flood`] | HTTP/2 frames that nobody sends who wants an answer |
//! | [`gate`] | packets by hand, the XDP program run on them, a model of its maps |
//! | [`stranger`] | somebody without authority who sends without pause |
//! | [`third_party`] | JavaScript programs that are not ours |
//! | [`demo`] | the steps of `cargo xtask demo` |
//! | [`portcullis`] | the binary under test: node, connector, admin commands |
//! | [`relay`] | a node that only binds and relays, and ends as processes |
//! | [`realm`] | a node with login, users, applications and identity providers, on loopback |
//! | [`idp`] | a real OpenID provider that cheats on demand |
//! | [`access`] | a person's machine with `portcullis access` |
//! | [`quic`] | a QUIC client of the tunnel that is nobody's connector |
//! | [`desk`] | an RDP server, and a screen for whoever looks at it |
//! | [`saml_fuzz`] | changed SAML documents, and what must hold whatever they are |
//! | [`simplesaml`] | SimpleSAMLphp as SAML identity provider |
//! | [`sshd`] | an OpenSSH server with users of its own |
//! | [`private_lab`] | private applications: a gated node, a connector in an office that lets nothing in, a client |
//! | [`tunnel_lab`] | a gated node, an office and a stranger, each on a link of its own |
//! | [`web`] | a browser made of curl |
//! | [`mod@browser`] | headless Chromium, walking a scenario |
//!
//! Nothing here skips: a tool or capability that is missing is an error that names it.

pub mod access;
pub mod bench;
pub mod browser;
pub mod ca;
pub mod demo;
pub mod desk;
pub mod flood;
pub mod gate;
pub mod h2_flood;
pub mod idp;
pub mod masque;
pub mod meanwhile;
pub mod netns;
pub mod numbered;
pub mod origin;
pub mod portcullis;
pub mod ports;
pub mod private_lab;
pub mod process;
pub mod publisher;
pub mod quic;
pub mod realm;
pub mod relay;
pub mod saml_fuzz;
pub mod simplesaml;
pub mod sshd;
pub mod stranger;
pub mod third_party;
pub mod tunnel_lab;
pub mod web;
