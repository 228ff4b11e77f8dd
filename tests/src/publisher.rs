//! An HTTP server on loopback that answers everything with one text, which can be replaced or taken away.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// Runs until the process ends.
pub struct Publisher {
    pub url: String,
    text: Arc<Mutex<Option<String>>>,
}

impl Publisher {
    pub fn start(text: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/metadata", listener.local_addr()?);
        let text = Arc::new(Mutex::new(Some(text.to_owned())));
        let published = Arc::clone(&text);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = stream.read(&mut [0; 4096]);
                let text = published.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let status = if text.is_some() { "200 OK" } else { "503 Service Unavailable" };
                let body = text.unwrap_or_default();
                let head =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close", body.len());
                let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
            }
        });
        Ok(Self { url, text })
    }

    /// What it answers from now on; nothing: that it cannot.
    pub fn publish(&self, text: Option<&str>) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text.map(str::to_owned);
    }
}
