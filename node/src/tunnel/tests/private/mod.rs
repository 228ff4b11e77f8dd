//! Private sessions on a real node, with both ends over loopback.

mod ends;
mod flow;
