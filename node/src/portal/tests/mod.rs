//! The portal as browsers meet it, without sockets: every answer goes through a cookie jar that keeps a browser's
//! rules.

mod hand_over;
mod local;
mod logout;
mod world;
