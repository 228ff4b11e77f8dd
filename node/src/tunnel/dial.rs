//! TCP to an origin: the same from a connector and, for origins without one, from the node.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::wire::{Authority, DialFailure};

/// All attempts together, name resolution included.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// A dead origin behind an idle connection is noticed after a minute and a half.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// Connects to `origin`, trying the addresses of its name one after the other.
pub(super) async fn dial(origin: &Authority) -> Result<TcpStream, DialFailure> {
    let deadline = Instant::now() + DIAL_TIMEOUT;
    let resolved = timeout_at(deadline, tokio::net::lookup_host((origin.host(), origin.port()))).await;
    let addresses: Vec<SocketAddr> = match resolved {
        Err(_) => return Err(DialFailure::Timeout),
        Ok(Err(_)) => return Err(DialFailure::NoAddress),
        Ok(Ok(addresses)) => addresses.take(MAX_ADDRESSES).collect(),
    };
    let mut failure = DialFailure::NoAddress;
    for (index, address) in (0_u32..).zip(&addresses) {
        // A silent address leaves the others their share of the time.
        let left = u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_sub(index).max(1);
        let now = Instant::now();
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(share, TcpStream::connect(address)).await {
            Err(_) => failure = DialFailure::Timeout,
            Ok(Err(error)) => failure = of_error(&error),
            Ok(Ok(stream)) => {
                // Neither option can fail on a connected TCP socket in a way that matters to its bytes.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEP_ALIVE);
                return Ok(stream);
            }
        }
    }
    Err(failure)
}

fn of_error(error: &io::Error) -> DialFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => DialFailure::ConnectionRefused,
        io::ErrorKind::TimedOut => DialFailure::Timeout,
        _ => DialFailure::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_ways_to_fail_are_told_apart() {
        // Held, so that nobody else listens there.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = closed.local_addr().unwrap();
        let authority = |text: &str| text.parse::<Authority>().unwrap();
        assert_eq!(dial(&authority(&address.to_string())).await.unwrap_err(), DialFailure::ConnectionRefused);
        assert_eq!(dial(&authority("no-such-host.invalid:80")).await.unwrap_err(), DialFailure::NoAddress);
    }
}
