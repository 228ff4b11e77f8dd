//! A remote desktop's server (xrdp), and a screen for whoever looks at it (Xvfb).

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::{Netns, run};
use crate::process::Process;

const START: Duration = Duration::from_secs(60);

/// An RDP server that speaks TLS and shows its login window to whoever connects.
#[derive(Debug)]
pub struct Xrdp {
    _process: Process,
}

impl Xrdp {
    /// Starts one on 127.0.0.1 with its files in `dir`.
    pub fn start(netns: &Netns, dir: &Path, port: u16) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = |name: &str| dir.join(name).display().to_string();
        run(Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-subj", "/CN=desk", "-keyout", &path("key.pem"), "-out", &path("cert.pem")]))?;
        let config = format!(
            "[Globals]\nini_version=1\nfork=false\nport=tcp://127.0.0.1:{port}\nsecurity_layer=tls\n\
             certificate={}\nkey_file={}\nssl_protocols=TLSv1.3\nallow_channels=true\nbitmap_compression=true\n\
             max_bpp=32\nuse_fastpath=both\nblue=009cb5\ngrey=dedede\nls_top_window_bg_color=009cb5\nls_width=350\n\
             ls_height=430\nls_bg_color=dedede\n[Logging]\nLogFile={}\nLogLevel=INFO\nEnableSyslog=false\n\
             [Channels]\nrdpdr=true\ncliprdr=true\n[Xvnc]\nname=Xvnc\nlib=libvnc.so\nusername=ask\npassword=ask\n\
             ip=127.0.0.1\nport=-1\n",
            path("cert.pem"),
            path("key.pem"),
            path("xrdp.log"),
        );
        fs::write(path("xrdp.ini"), config)?;
        let mut command = netns.command("/usr/sbin/xrdp");
        command.args(["--nodaemon", "--config", &path("xrdp.ini")]);
        let mut process = Process::spawn("xrdp", command)?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Its log says that it listens before it does.
        process.wait_until("listen", START, |_| Ok(netns.listens(at)?.then_some(())))?;
        Ok(Self { _process: process })
    }
}

/// A screen of 640×480 that nobody sees.
#[derive(Debug)]
pub struct Screen {
    _process: Process,
    /// For `DISPLAY`.
    pub display: String,
    frame: PathBuf,
}

impl Screen {
    const PIXELS: usize = 640 * 480;

    pub fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("screen");
        fs::create_dir(&dir)?;
        let mut command = Command::new("Xvfb");
        command
            .args(["-displayfd", "1", "-screen", "0", "640x480x24", "-nolisten", "tcp", "-fbdir"])
            .arg(&dir);
        let mut process = Process::spawn("Xvfb", command)?;
        let number: u32 = process.wait_until("name its display", START, |process| {
            Ok(process.output().lines().find_map(|line| line.trim().parse().ok()))
        })?;
        Ok(Self { _process: process, display: format!(":{number}"), frame: dir.join("Xvfb_screen0") })
    }

    /// How many colours are on it: one, as long as nobody has drawn anything.
    pub fn colours(&self) -> Result<usize> {
        let frame = fs::read(&self.frame)?;
        // An XWD header and a colour map come first.
        let from = frame.len().checked_sub(Self::PIXELS * 4).context("a frame that is too short")?;
        let pixels = frame.get(from..).unwrap_or_default().as_chunks::<4>().0;
        ensure!(pixels.len() == Self::PIXELS, "{} pixels", pixels.len());
        Ok(pixels.iter().collect::<BTreeSet<_>>().len())
    }
}
