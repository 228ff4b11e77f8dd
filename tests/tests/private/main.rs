//! Private applications: the WebSocket wire of `cloudflared access`, and certificates for SSH.

mod older;
mod ssh;
mod wire;
mod world;
