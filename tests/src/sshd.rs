//! An OpenSSH server that knows users of its own and lets in whoever has a certificate of an authority it trusts, and
//! nobody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::netns::{Netns, run};
use crate::portcullis::command_in;
use crate::process::Process;

/// Its accounts besides those of this machine.
pub const USERS: [&str; 4] = ["deploy", "ann", "bob", "other"];

const START: Duration = Duration::from_secs(60);

/// The server, running.
#[derive(Debug)]
pub struct Sshd {
    _process: Process,
    /// The file of public keys that it trusts, read at every login.
    pub authorities: PathBuf,
    pub port: u16,
}

impl Sshd {
    /// Starts one on 127.0.0.1 with its files in `dir`. Its accounts are in a mount namespace of its own.
    pub fn start(netns: Option<&Netns>, dir: &Path, port: u16, authorities: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::create_dir_all("/run/sshd")?;
        let path = |name: &str| dir.join(name).display().to_string();
        let key = path("host_key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]))?;
        fs::write(path("authorities"), authorities)?;
        let (mut passwd, mut shadow) =
            (fs::read_to_string("/etc/passwd")?, "root:*:19000:0:99999:7:::\n".to_owned());
        for (number, user) in USERS.into_iter().enumerate() {
            passwd.push_str(&format!("{user}:x:{}:65534::/:/bin/sh\n", 4200 + number));
            shadow.push_str(&format!("{user}:*:19000:0:99999:7:::\n"));
        }
        shadow.push_str("sshd:*:19000:0:99999:7:::\n");
        fs::write(path("passwd"), passwd)?;
        fs::write(path("shadow"), shadow)?;
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nPidFile none\nUsePAM no\nLogLevel VERBOSE\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile none\n\
             PermitRootLogin prohibit-password\nTrustedUserCAKeys {}\nSubsystem sftp internal-sftp\n",
            path("authorities")
        );
        fs::write(path("sshd_config"), config)?;
        let script = format!(
            "mount --bind {} /etc/passwd && mount --bind {} /etc/shadow && exec /usr/sbin/sshd -D -e -f {}",
            path("passwd"),
            path("shadow"),
            path("sshd_config")
        );
        let mut command = command_in(netns, "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let mut process = Process::spawn("sshd", command)?;
        process.wait_for_output("Server listening", START)?;
        Ok(Self { _process: process, authorities: dir.join("authorities"), port })
    }
}
