//! The pin directory: where the kernel keeps the gate while no daemon runs.
//!
//! ```text
//! <pin>/maps_5/COUNTERS …        maps of layout version 5
//! <pin>/links/eth0/native        the XDP link (or `generic`)
//! <pin>/links/eth0/egress        the tcx link (on kernels without tcx there is none)
//! ```
//! A bpffs takes no dot in a name; `%` and `.` of an interface's name are written `%25` and `%2e`.
//!
//! Whoever could write here could take the gate off, and whoever could open the directory could hold its lock: it is its
//! owner's alone, and so is a bpffs that is mounted for it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portcullis_common::layout;
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};

use super::GateError;
use super::sys::Hook;

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPFFS: u64 = 0xcafe_4a11;
const LINKS: &str = "links";
const MAPS_PREFIX: &str = "maps_";

/// How long another process may take to put a gate up, and how often it is asked for.
const OTHERS_TURN: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(super) struct PinDir {
    root: PathBuf,
}

impl PinDir {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the directory, mounting a bpffs if it would not lie on one.
    pub(super) fn prepare(&self) -> Result<(), GateError> {
        let failed = |source| GateError::Pin { path: self.root.clone(), source };
        ensure_bpffs(&self.root).map_err(failed)?;
        make_private(&self.root).map_err(failed)?;
        make_dir(&self.maps()).map_err(failed)?;
        make_dir(&self.links()).map_err(failed)
    }

    /// Waits until no other process puts the gate up here, and keeps them waiting while the file is held: one that
    /// fails half way takes off what it found absent, which must not be what another has just put on.
    pub(super) fn lock(&self) -> Result<File, GateError> {
        lock(&self.root).map_err(|source| GateError::Pin { path: self.root.clone(), source })
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join(format!("{MAPS_PREFIX}{}", layout::VERSION))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    pub(super) fn interface(&self, interface: &str) -> PathBuf {
        self.links().join(encode(interface))
    }

    pub(super) fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.interface(interface).join(match hook {
            Hook::XdpNative => "native",
            Hook::XdpGeneric => "generic",
            Hook::TcxEgress => "egress",
        })
    }

    /// Interfaces that have a directory of links.
    pub(super) fn interfaces(&self) -> Result<Vec<String>, GateError> {
        let names =
            names_in(&self.links()).map_err(|source| GateError::Pin { path: self.links(), source })?;
        Ok(names.iter().map(|name| decode(name)).collect())
    }

    /// Removes maps of other layout versions.
    pub(super) fn remove_other_maps(&self) -> Result<(), GateError> {
        let failed = |source| GateError::Pin { path: self.root.clone(), source };
        for name in names_in(&self.root).map_err(failed)? {
            let path = self.root.join(&name);
            if name.starts_with(MAPS_PREFIX) && path != self.maps() {
                fs::remove_dir_all(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes every pin. The bpffs itself stays, since others may use it.
    pub(super) fn remove(&self) -> Result<(), GateError> {
        let failed = |source| GateError::Pin { path: self.root.clone(), source };
        // Where the directory is the root of its bpffs, the kernel has files of its own there.
        let ours = |name: &String| name == LINKS || name.starts_with(MAPS_PREFIX);
        for name in names_in(&self.root).map_err(failed)?.into_iter().filter(ours) {
            fs::remove_dir_all(self.root.join(name)).map_err(failed)?;
        }
        match fs::remove_dir(&self.root) {
            // The directory is the mount point.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(failed),
        }
    }
}

/// Names in a directory, sorted; none if it does not exist.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A bpffs is looked for at the nearest directory that exists. If there is none, one is mounted: at `root`
/// if it can be made, otherwise (in sysfs, where `/sys/fs/bpf` is the place) at that directory.
fn ensure_bpffs(root: &Path) -> io::Result<()> {
    let Some(existing) = root.ancestors().find(|path| path.is_dir()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    if is_bpffs(existing)? {
        return make_dir(root);
    }
    // Two nodes that start at once must not mount one bpffs over the other's.
    let _lock = lock(existing)?;
    if is_bpffs(existing)? {
        return make_dir(root);
    }
    let target = if make_dir(root).is_ok() { root } else { existing };
    if !is_bpffs(target)? {
        // Without a mode it would be everybody's to write to, as /tmp is (kernel/bpf/inode.c).
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", target, "bpf", flags, Some(c"mode=0700"))?;
    }
    make_dir(root)
}

/// Makes a directory and those around it that are missing, for nobody else.
fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What somebody else has made is not used. What an earlier version made may be open to others.
fn make_private(root: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(root)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no directory of this user"));
    }
    fs::set_permissions(root, Permissions::from_mode(0o700))
}

/// Locks a directory until the file is closed. One that somebody holds for longer than it takes is an error.
fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    let until = Instant::now() + OTHERS_TURN;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(ASK_AGAIN),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"));
            }
            result => return Ok(result.map(|()| file)?),
        }
    }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    let found = statfs(path)?;
    Ok(u64::try_from(found.f_type).is_ok_and(|magic| magic & 0xffff_ffff == BPFFS))
}

fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_without_a_dot() {
        for name in ["eth0", "eth0.100", "a%b", "a%2eb", "%25", "..."] {
            let encoded = encode(name);
            assert!(!encoded.contains('.'), "{encoded}");
            assert_eq!(decode(&encoded), name);
        }
    }
}
