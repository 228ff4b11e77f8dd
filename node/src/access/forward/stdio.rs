//! One connection on standard input and output: what `ssh` wants of a ProxyCommand.

use bytes::BytesMut;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::tunnel::client::SessionEnd;
use crate::tunnel::wire::StreamCode;

use super::{Carried, ForwardError, Forwards, Target, open_tcp};

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

impl Forwards {
    /// Connects standard input and output to the target until both directions have ended.
    ///
    /// # Errors
    /// When there is no connection, or it was cut.
    pub async fn stdio(&self, target: &Target) -> Result<(), ForwardError> {
        let listed = self.list(target, Carried::Tcp, None);
        let (session, send, recv) = open_tcp(&self.client, target).await?;
        let _counted = listed.count();
        let (input, output) = (tokio::io::stdin(), Output(tokio::io::stdout()));
        match carry(input, output, send, recv).await {
            Ok(()) => Ok(()),
            Err(cut) => match session.end() {
                Some(SessionEnd::Closed) | None => Err(ForwardError::Cut(cut)),
                Some(end) => Err(ForwardError::Cut(end.to_string())),
            },
        }
    }
}

/// An output whose end its reader sees.
pub(super) trait End {
    fn end(&mut self);
}

struct Output(tokio::io::Stdout);

impl End for Output {
    /// The descriptor stays, so that nothing else gets its number; its pipe does not.
    fn end(&mut self) {
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(null);
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(super) async fn carry(
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + End + Unpin,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), String> {
    let carried = tokio::try_join!(upstream(input, &mut send), downstream(&mut recv, output));
    if let Err(error) = carried {
        let _ = send.reset(StreamCode::Cancelled.into());
        let _ = recv.stop(StreamCode::Cancelled.into());
        return Err(error);
    }
    // What was sent last has to arrive before the session may end.
    let _ = send.stopped().await;
    Ok(())
}

async fn upstream(mut input: impl AsyncRead + Unpin, send: &mut SendStream) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let stopped = send.stopped();
        let read = tokio::select! {
            read = input.read_buf(&mut buffer) => read.map_err(|error| format!("standard input: {error}"))?,
            stopped = stopped => return no_longer_read(stopped.ok().flatten()),
        };
        if read == 0 {
            // Fails only where the stream has ended already.
            let _ = send.finish();
            return Ok(());
        }
        match send.write_chunk(buffer.split().freeze()).await {
            Ok(()) => {}
            Err(WriteError::Stopped(code)) => return no_longer_read(Some(code)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// An application that reads no more may still have an answer under way: the other direction goes on to its own end.
fn no_longer_read(code: Option<VarInt>) -> Result<(), String> {
    match code {
        Some(code) if code == StreamCode::OriginReset.into() => Ok(()),
        Some(_) => Err("the connector gave it up".to_owned()),
        None => Err("the session is over".to_owned()),
    }
}

async fn downstream(recv: &mut RecvStream, mut output: impl AsyncWrite + End + Unpin) -> Result<(), String> {
    loop {
        match recv.read_chunk(CHUNK, true).await {
            Ok(Some(chunk)) => {
                let written = async {
                    output.write_all(&chunk.bytes).await?;
                    output.flush().await
                };
                written.await.map_err(|error| format!("standard output: {error}"))?;
            }
            Ok(None) => {
                output.end();
                return Ok(());
            }
            Err(quinn::ReadError::Reset(code)) if code == StreamCode::OriginReset.into() => {
                return Err("the application reset it".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
