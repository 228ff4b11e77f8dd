//! Every bound of the edge, in one place.

use std::time::Duration;

use crate::places::Limits;

/// Open connections. Each may hold one or more file descriptors towards origins too. A network has room for an office
/// behind one address; six regions full of strangers take all that strangers get; a quarter is for known networks.
pub(super) const CONNECTIONS: Limits = Limits { all: 8192, reserved: 2048, network: 512, region: 1024 };

/// A TLS handshake ends within this time or the connection does.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the first byte of an HTTP/1.1 head to its end.
pub(super) const HEAD: Duration = Duration::from_secs(10);
/// A request body may pause this long.
pub(super) const BODY_PAUSE: Duration = Duration::from_secs(60);
/// A reader that takes nothing of a reply for this long is gone; the pause of an origin does not count.
pub(super) const REPLY_PAUSE: Duration = Duration::from_secs(120);
/// From the last byte of a request to the head of the origin's response.
pub(super) const ORIGIN_HEAD: Duration = Duration::from_secs(120);
/// When a request may go on no more, its bodies end by themselves within this time, or their stream is reset.
pub(super) const CUT_GRACE: Duration = Duration::from_millis(400);
/// After the last answer of a connection the client is still sending on: it has this long to notice.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// A connection without any request in flight is closed after this time.
pub(super) const IDLE: Duration = Duration::from_secs(90);
/// After a shutdown was asked for, connections have this long to finish what they carry.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// The same for a connection that carries tunnels: longer than those may take to end, which begins only when no request
/// of a browser needs them any more.
pub(super) const CARRIED_DRAIN: Duration = Duration::from_secs(60);
/// Data that the client does not acknowledge or take for this long ends the connection.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(120);
/// Probes on a silent TCP connection, so that an event stream to a vanished client ends.
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes of an HTTP/1.1 head, and of an HTTP/2 header list.
pub(super) const HEAD_BYTES: usize = 32 * 1024;
/// Fields of a head.
pub(super) const HEAD_FIELDS: usize = 100;
/// Bytes of a chunk's size line, extensions included.
pub(super) const CHUNK_LINE_BYTES: usize = 1024;
/// Bytes of the trailer section of an HTTP/1.1 request.
pub(super) const TRAILER_BYTES: usize = 8 * 1024;

/// Concurrent streams of one HTTP/2 connection.
pub(super) const H2_STREAMS: u32 = 128;
/// Streams that a client may reset before they are accepted (CVE-2023-44487), and streams reset for errors of its.
pub(super) const H2_RESETS: usize = 64;
/// Flow-control window of a stream and of a connection: what one client can make the node hold.
pub(super) const H2_STREAM_WINDOW: u32 = 512 * 1024;
pub(super) const H2_CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Response bytes buffered for one HTTP/2 stream.
pub(super) const H2_SEND_BUFFER: usize = 256 * 1024;
/// Frames of a client that carry nothing, at once; the time after which there is one more, and how many more there are for
/// each frame that carries something. A client that updates its windows for every frame it gets needs two of these.
pub(super) const H2_EMPTY_FRAMES: u32 = 1000;
pub(super) const H2_EMPTY_FRAME: Duration = Duration::from_millis(10);
pub(super) const H2_EARNED: u32 = 4;
/// Frames after which a connection that sends without pause lets others have their turn.
pub(super) const H2_RUN: u32 = 512;
pub(super) const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
pub(super) const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Body of a request to the portal.
pub(super) const POSTED_FORM: usize = 16 * 1024;
/// Body of an identity provider's answer (SAML, HTTP-POST): encrypted, with a thousand groups.
pub(super) const POSTED_ANSWER: usize = 256 * 1024;
/// Time for such a body to arrive.
pub(super) const POST_TIME: Duration = Duration::from_secs(30);
/// All such bodies at a time, in units of so many bytes: 64 MiB, a quarter of them for known networks. A network has 8 MiB,
/// which is everybody in an office logging in at once.
pub(super) const POST_UNIT: usize = 16 * 1024;
pub(super) const POSTS: Limits = Limits { all: 4096, reserved: 1024, network: 512, region: 1024 };
/// Bodies of one connection that are unanswered at a time.
pub(super) const CONNECTION_POSTS: usize = 16;

/// Opening a connection to an origin, its TLS handshake included.
pub(super) const ORIGIN_CONNECT: Duration = Duration::from_secs(15);
/// Idle connections kept for one application, and how long.
pub(super) const ORIGIN_IDLE: usize = 64;
pub(super) const ORIGIN_IDLE_TIME: Duration = Duration::from_secs(30);
/// Connections to the origin of one application that carry a request at a time.
pub(super) const ORIGIN_BUSY: usize = 4096;
/// Requests that one login has at its origins at a time, WebSockets included: three HTTP/2 connections' worth.
pub(super) const SESSION_STREAMS: usize = 384;
/// The same for one person, whatever the logins: an eighth of what one application gets.
pub(super) const PERSON_STREAMS: usize = ORIGIN_BUSY / 8;
/// The same for everybody in one network whom a bypass lets through.
pub(super) const ANONYMOUS_STREAMS: usize = 1024;
/// Head of an origin's response.
pub(super) const ORIGIN_HEAD_BYTES: usize = 64 * 1024;
pub(super) const ORIGIN_HEAD_FIELDS: usize = 256;
pub(super) const ORIGIN_H2_HEADERS: u32 = 64 * 1024;
/// Flow-control window of a connection to an HTTP/2 origin, which many clients share.
pub(super) const ORIGIN_H2_WINDOW: u32 = 8 * 1024 * 1024;

/// How long the edge waits for the parts of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the head of an origin's response, once the origin has the request.
    pub head: Duration,
    /// For the next part of a request's body, until the origin has answered.
    pub upload_pause: Duration,
    /// For a client to take what it was given of a reply.
    pub reply_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: ORIGIN_HEAD, upload_pause: BODY_PAUSE, reply_pause: REPLY_PAUSE }
    }
}
