//! A connection that somebody uses all the time, so that a loss shows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis_tests::access::Machine;
use portcullis_tests::private_lab::{Forward, PrivateLab, carrier, path};
use portcullis_tests::process::wait_until;

use crate::SOON;

/// Numbered lines to an echo and back, one at a time, until it is stopped.
pub struct Conversation {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Duration, std::io::Error>>,
}

impl Conversation {
    pub fn start(lab: &PrivateLab, forward: &Forward) -> Self {
        let stream = lab.client.enter(|| TcpStream::connect(forward.address)).unwrap().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&count), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut reading = BufReader::new(stream.try_clone()?);
            let mut writing = stream;
            let mut worst = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let (number, at) = (counted.load(Ordering::Relaxed), Instant::now());
                writeln!(writing, "{number}")?;
                let mut line = String::new();
                if reading.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                assert_eq!(line, format!("{number}\n"));
                worst = worst.max(at.elapsed());
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(worst)
        });
        let this = Self { count, stop, thread };
        this.goes_on();
        this
    }

    /// Waits for twenty more answers.
    pub fn goes_on(&self) {
        let until = self.count.load(Ordering::Relaxed) + 20;
        wait_until("the conversation to go on", SOON, || {
            assert!(!self.thread.is_finished(), "the connection was cut");
            Ok((self.count.load(Ordering::Relaxed) >= until).then_some(()))
        })
        .unwrap();
    }

    /// Waits until `access status` says that this is the path and the carrier of the person's session, while it goes on.
    pub fn goes_on_until(&self, lab: &PrivateLab, ann: &Machine, (on, over): (&str, &str)) {
        let mut last = (String::new(), String::new());
        wait_until(&format!("the session to be on {on} over {over}"), SOON, || {
            self.goes_on();
            last = (path(ann)?, carrier(ann)?);
            Ok((last.0 == on && last.1 == over).then_some(()))
        })
        .unwrap_or_else(|error| {
            let connector = lab.connector.as_ref().map(|connector| connector.process.output());
            panic!("{error}: it is {last:?}, and {} streams; {}", streams(lab), connector.unwrap_or_default())
        });
    }

    /// The longest wait for an answer.
    pub fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }

    /// Waits until it is cut.
    pub fn cut(self) -> std::io::Error {
        self.thread.join().unwrap().unwrap_err()
    }
}

/// TCP connections to the node that carry what UDP does not.
pub fn streams(lab: &PrivateLab) -> u64 {
    lab.metric("portcullis_carried_streams").unwrap()
}
