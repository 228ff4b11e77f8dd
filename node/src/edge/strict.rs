//! The strict reading of HTTP/1.1 messages (RFC 9112), ahead of the HTTP library's own.
//!
//! The library is lenient where RFC 9112 permits it: it takes a bare LF as a line end, drops `Content-Length` beside
//! `Transfer-Encoding`, and cuts a fragment off the request target. An intermediary that forwards such a message
//! bets that everybody behind it reads it in the same way. Here whatever has a second reading is refused before
//! the library sees a byte of it. A false accept is request smuggling; a false reject is a 400 that names the cause.
//!
//! No input, no output, no clock: [`Scanner`] looks at bytes and says how many of them may pass.

use super::limits;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a line does not end in CRLF")]
    LineEnd,
    #[error("the request line is malformed")]
    RequestLine,
    #[error("the request target is malformed or has a fragment")]
    Target,
    #[error("the version is not HTTP/1.0 or HTTP/1.1")]
    Version,
    #[error("a header field is malformed")]
    Field,
    #[error("the head is too large")]
    TooLarge,
    #[error("there is not exactly one Host")]
    Host,
    #[error("the Content-Length is malformed or repeated")]
    ContentLength,
    #[error("the Transfer-Encoding is not exactly one `chunked`")]
    TransferEncoding,
    #[error("there are both Content-Length and Transfer-Encoding")]
    TwoLengths,
    #[error("the upgrade is not a plain WebSocket one")]
    Upgrade,
    #[error("there are bytes behind an upgrade request before its answer")]
    EarlyBytes,
    #[error("a chunk is malformed")]
    Chunk,
}

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Bytes from the front that may pass on.
    pub(super) pass: usize,
    /// Heads among them.
    pub(super) heads: u64,
    /// What is wrong behind them; nothing behind them may ever pass.
    pub(super) refused: Option<Refused>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A message of which nothing has passed yet.
    Message(Violation),
    /// The rest of a message whose head has passed.
    Rest(Violation),
}

/// Follows the messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    state: State,
    /// Where the line that is being read begins in the held-back section.
    line_at: usize,
    /// Up to here that line was searched for its end already: a line that comes byte by byte is read once.
    searched: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// So many bytes of a body with a length.
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// An upgrade was asked for: nothing may come until it is answered.
    Upgrade,
    Refused,
}

impl Scanner {
    /// Looks at `bytes`, which begin with the first byte that has not passed yet, and contain everything that was
    /// there at the last scan and did not pass.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let (mut at, mut heads) = (0, 0);
        // Where the message began whose head has not passed before this scan.
        let mut message = (self.state == State::Head).then_some(0);
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let head = self.state == State::Head;
            if head {
                message = Some(at);
            }
            match self.step(rest) {
                Ok(Some(taken)) => {
                    at += taken;
                    heads += u64::from(head);
                    (self.line_at, self.searched) = (0, 0);
                }
                Ok(None) => return Scanned { pass: at, heads, refused: None },
                Err(violation) => {
                    self.state = State::Refused;
                    return match message {
                        Some(start) => Scanned {
                            pass: start,
                            heads: heads - u64::from(!head),
                            refused: Some(Refused::Message(violation)),
                        },
                        None => Scanned { pass: at, heads, refused: Some(Refused::Rest(violation)) },
                    };
                }
            }
        }
    }

    /// Whether a message is under way, its head excepted.
    pub(super) fn in_body(&self) -> bool {
        !matches!(self.state, State::Head | State::Upgrade)
    }

    /// One element of a message: the bytes it takes, or nothing when it is not complete.
    fn step(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.state {
            State::Head => {
                let Some(end) = self.section(bytes, limits::HEAD_BYTES)? else { return Ok(None) };
                self.state = match framing(bytes.get(..end).unwrap_or_default())? {
                    Framing::Length(0) => State::Head,
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::ChunkSize,
                    Framing::Upgrade => State::Upgrade,
                };
                Ok(Some(end))
            }
            State::Length(_) | State::ChunkData(_) if bytes.is_empty() => Ok(None),
            State::Length(left) | State::ChunkData(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - taken as u64;
                self.state = match self.state {
                    State::ChunkData(_) if left == 0 => State::ChunkEnd,
                    State::ChunkData(_) => State::ChunkData(left),
                    _ if left == 0 => State::Head,
                    _ => State::Length(left),
                };
                Ok(Some(taken))
            }
            State::ChunkSize => {
                let Some(end) = self.line(bytes, limits::CHUNK_LINE_BYTES, Violation::Chunk)? else {
                    return Ok(None);
                };
                self.state = match chunk_size(bytes.get(..end).unwrap_or_default())? {
                    0 => State::Trailers,
                    size => State::ChunkData(size),
                };
                Ok(Some(end))
            }
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(Violation::Chunk),
            },
            State::Trailers => {
                let Some(end) = self.section(bytes, limits::TRAILER_BYTES)? else { return Ok(None) };
                fields(bytes.get(..end).unwrap_or_default())?.try_for_each(|field| field.map(drop))?;
                self.state = State::Head;
                Ok(Some(end))
            }
            State::Upgrade if bytes.is_empty() => Ok(None),
            State::Upgrade => Err(Violation::EarlyBytes),
            State::Refused => Ok(None),
        }
    }

    /// The end of a section: the bytes up to and with its empty line.
    fn section(&mut self, bytes: &[u8], limit: usize) -> Result<Option<usize>, Violation> {
        loop {
            let start = self.line_at;
            let Some(end) = self.line_end(bytes)? else {
                return if bytes.len() >= limit { Err(Violation::TooLarge) } else { Ok(None) };
            };
            if end > limit {
                return Err(Violation::TooLarge);
            }
            if end - start == 2 {
                return Ok(Some(end));
            }
        }
    }

    fn line(&mut self, bytes: &[u8], limit: usize, too_long: Violation) -> Result<Option<usize>, Violation> {
        match self.line_end(bytes)? {
            Some(length) if length <= limit => Ok(Some(length)),
            None if bytes.len() < limit => Ok(None),
            _ => Err(too_long),
        }
    }

    /// The end of the line that begins at `line_at`, where the next one begins; every byte is looked at once.
    fn line_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let fresh = bytes.get(self.searched..).unwrap_or_default();
        let Some(length) = line_length(fresh)? else {
            // A CR at the very end waits for its LF.
            self.searched += fresh.strip_suffix(b"\r").unwrap_or(fresh).len();
            return Ok(None);
        };
        self.searched += length;
        self.line_at = self.searched;
        Ok(Some(self.line_at))
    }
}

enum Framing {
    Length(u64),
    Chunked,
    Upgrade,
}

/// Length of the first line with its CRLF. CR and LF come only together.
fn line_length(bytes: &[u8]) -> Result<Option<usize>, Violation> {
    let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Ok(None) };
    match bytes.get(at..) {
        Some([b'\r', b'\n', ..]) => Ok(Some(at + 2)),
        Some([b'\r']) => Ok(None),
        _ => Err(Violation::LineEnd),
    }
}

/// Reads a complete head: checks all of it, and finds out how its body is framed (RFC 9112 §6.3).
fn framing(head: &[u8]) -> Result<Framing, Violation> {
    let end = line_length(head)?.ok_or(Violation::RequestLine)?;
    let (line, section) = head.split_at_checked(end).ok_or(Violation::RequestLine)?;
    let http_10 = request_line(line.strip_suffix(b"\r\n").unwrap_or(line))?;

    let (mut hosts, mut lengths, mut encodings, mut upgrades) = (0, Vec::new(), Vec::new(), Vec::new());
    let mut connection_upgrade = false;
    for field in fields(section)? {
        let (name, value) = field?;
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings.push(value);
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrades.push(value);
        } else if name.eq_ignore_ascii_case(b"connection") {
            connection_upgrade |=
                value.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
        }
    }
    if hosts != 1 {
        return Err(Violation::Host);
    }
    let body = match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => Framing::Length(0),
        ([length], []) => Framing::Length(content_length(length)?),
        ([], [encoding]) if !http_10 && encoding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        ([], _) => return Err(Violation::TransferEncoding),
        (_, []) => return Err(Violation::ContentLength),
        _ => return Err(Violation::TwoLengths),
    };
    match (upgrades.as_slice(), &body) {
        ([], _) => Ok(body),
        ([protocol], Framing::Length(0))
            if connection_upgrade
                && !http_10
                && line.starts_with(b"GET ")
                && protocol.eq_ignore_ascii_case(b"websocket") =>
        {
            Ok(Framing::Upgrade)
        }
        _ => Err(Violation::Upgrade),
    }
}

/// Checks `method SP target SP version`; whether the version is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Violation::RequestLine);
    }
    if !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
        || http::Uri::try_from(target).is_err()
    {
        return Err(Violation::Target);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Violation::Version),
    }
}

type Field<'a> = (&'a [u8], &'a [u8]);

/// The fields of a section that ends with its empty line: names, and values without surrounding white space.
fn fields(section: &[u8]) -> Result<impl Iterator<Item = Result<Field<'_>, Violation>> + use<'_>, Violation> {
    let lines = section.strip_suffix(b"\r\n").ok_or(Violation::Field)?;
    let lines = || lines.split_inclusive(|byte| *byte == b'\n');
    if lines().count() > limits::HEAD_FIELDS {
        return Err(Violation::TooLarge);
    }
    Ok(lines().map(|line| {
        let line = line.strip_suffix(b"\r\n").ok_or(Violation::Field)?;
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Violation::Field)?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(Violation::Field);
        }
        if !value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..=0xff)) {
            return Err(Violation::Field);
        }
        Ok((name, value.trim_ascii()))
    }))
}

/// `1*DIGIT` and nothing else.
fn content_length(value: &[u8]) -> Result<u64, Violation> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(Violation::ContentLength)
}

/// `1*HEXDIG [ chunk-ext ] CRLF` (RFC 9112 §7.1). Extensions are read over; white space before them is not.
fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let line = line.strip_suffix(b"\r\n").ok_or(Violation::Chunk)?;
    let (size, extension) = match line.iter().position(|byte| *byte == b';') {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    if !extension.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return Err(Violation::Chunk);
    }
    let digits = (1..=15).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(size).ok().filter(|_| digits);
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or(Violation::Chunk)
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
