//! The portal as browsers meet it, without sockets: every answer goes through a cookie jar that keeps a browser's
//! rules.

mod cli;
mod elsewhere;
mod hand_over;
mod local;
mod logout;
mod world;

/// The edge answers on any thread.
#[test]
fn answers_move_between_threads() {
    fn is_send<T: Send>(_: impl Fn(&'static super::Portal, super::Visit) -> T) {}
    is_send(super::Portal::answer);
}
