//! Child processes of a test: their output goes to a file, they are killed on drop, and what they printed is shown
//! when the test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running child. Standard output and standard error go, interleaved, into one file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    // Owns the folder of `log`; None where the caller chose the folder.
    _dir: Option<tempfile::TempDir>,
}

impl Process {
    /// Starts `command` with its output in a temporary file. Its standard input is empty unless the caller set it
    /// up with [`Process::spawn_with_stdin`].
    pub fn spawn(name: &str, command: Command) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-log-").tempdir()?;
        let log = dir.path().join(format!("{name}.log"));
        Self::start(name, command, log, Some(dir), None)
    }

    /// As [`Process::spawn`], with the output in `dir/<name>.log`, appended: a restarted child keeps its history.
    pub fn spawn_in(dir: &Path, name: &str, command: Command) -> Result<Self> {
        Self::start(name, command, dir.join(format!("{name}.log")), None, None)
    }

    /// As [`Process::spawn`], and writes `input` to the child's standard input, then closes it.
    pub fn spawn_with_stdin(name: &str, command: Command, input: &[u8]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("portcullis-log-").tempdir()?;
        let log = dir.path().join(format!("{name}.log"));
        Self::start(name, command, log, Some(dir), Some(input))
    }

    fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
        dir: Option<tempfile::TempDir>,
        input: Option<&[u8]>,
    ) -> Result<Self> {
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(out.try_clone()?).stderr(out);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            std::io::Write::write_all(&mut stdin, input).with_context(|| format!("{name} took no input"))?;
        }
        Ok(Self { name: name.to_owned(), child, log, _dir: dir })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the child has printed so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the child has printed `text`; an error with its output if it ended or took too long.
    pub fn wait_for_output(&mut self, text: &str, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("print {text:?}"), timeout, |process| {
            Ok(process.output().contains(text).then_some(()))
        })
    }

    /// Waits until `ready` gives a value; an error with the child's output if the child ended or it took too long.
    /// Errors of `ready` count as "not yet"; the last one is reported.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let name = self.name.clone();
        let waited = wait_until(&format!("{name} to {what}"), timeout, || {
            // Asked before: what a child has done by its end is there to be seen after it.
            let ended = self.child.try_wait();
            let value = ready(self);
            if !matches!(value, Ok(Some(_)))
                && let Ok(Some(status)) = ended
            {
                return Ok(Some(Err(status)));
            }
            value.map(|value| value.map(Ok))
        });
        match waited {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{name} ended ({status}) before it could {what}:\n{}", self.output()),
            Err(error) => Err(error.context(format!("output of {name}:\n{}", self.output()))),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Waits for the child to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_until(&format!("{name} to end"), timeout, || Ok(self.child.try_wait()?))
            .map_err(|error| error.context(format!("output of {name}:\n{}", self.output())))
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }

    /// SIGKILL, as `kill -9`, then reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running()
            && self.signal(Signal::TERM).is_ok()
            && self.wait(Duration::from_secs(2)).is_err()
        {
            let _ = self.kill();
        }
        if std::thread::panicking() {
            let output = self.output();
            eprintln!("--- output of {}\n{}", self.name, tail(&output, 200));
        }
    }
}

/// Polls `ready` every 10 ms until it gives a value. Its errors count as "not yet"; when `timeout` is over, the last
/// one is the cause of the error returned.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let last = ready();
        if let Ok(Some(value)) = last {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            let message = format!("waited {timeout:?} in vain for {what}");
            return match last {
                Err(error) => Err(error.context(message)),
                Ok(_) => bail!(message),
            };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> &str {
    let start = text.trim_end().rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    text.get(start..).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_waited_for_and_a_child_is_killed_on_drop() {
        let mut child = Process::spawn("child", sh("echo out; echo err >&2; exec sleep 600")).unwrap();
        child.wait_for_output("err", Duration::from_secs(30)).unwrap();
        assert!(child.output().contains("out"));
        let proc = PathBuf::from(format!("/proc/{}", child.pid()));
        drop(child);
        assert!(!proc.exists());
    }

    #[test]
    fn an_early_end_is_an_error_with_the_output() {
        let mut child = Process::spawn("child", sh("echo because; exit 3")).unwrap();
        let error = child.wait_for_output("never", Duration::from_secs(30)).unwrap_err().to_string();
        assert!(error.contains("because") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn what_a_child_says_last_is_heard() {
        for _ in 0..50 {
            let mut child = Process::spawn("child", sh("echo said")).unwrap();
            child.wait_for_output("said", Duration::from_secs(30)).unwrap();
        }
    }

    #[test]
    fn a_timeout_carries_the_last_cause() {
        let error = wait_until::<()>("it", Duration::from_millis(30), || bail!("the cause")).unwrap_err();
        assert!(format!("{error:#}").contains("the cause"));
    }

    #[test]
    fn a_child_that_ignores_sigterm_is_killed() {
        let mut child =
            Process::spawn("child", sh("trap '' TERM; echo on; while :; do sleep 1; done")).unwrap();
        child.wait_for_output("on", Duration::from_secs(30)).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", child.pid()));
        drop(child);
        assert!(!proc.exists());
    }

    #[test]
    fn standard_input_reaches_the_child() {
        let mut child = Process::spawn_with_stdin("child", sh("cat"), b"secret").unwrap();
        assert!(child.wait(Duration::from_secs(30)).unwrap().success());
        assert_eq!(child.output(), "secret");
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb", 5), "a\nb");
    }
}
