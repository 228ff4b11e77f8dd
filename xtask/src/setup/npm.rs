//! npm packages that the tests and the demo use as third parties: see `tests/third-party/npm`.

use std::path::Path;

use anyhow::{Context, Result};

use crate::shell::{self, command, probe};

/// The packages need this or later; Debian 12 has 18, in which case a newer runtime comes from the npm registry too.
const NODE_MAJOR: u32 = 20;

pub fn setup() -> Result<()> {
    let dir = shell::root().join("tests/third-party");
    if node_major().is_none_or(|major| major < NODE_MAJOR) {
        install(&dir.join("node"), "a newer Node.js runtime")?;
    }
    install(&dir.join("npm"), "third parties of the tests")
}

fn node_major() -> Option<u32> {
    let version = probe(command("node").arg("--version"))?;
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// `npm ci`, unless what is installed is what the lock file says. npm writes the installed state, hashes and all,
/// to `node_modules/.package-lock.json`.
fn install(dir: &Path, what: &str) -> Result<()> {
    if is_current(dir)? {
        return Ok(());
    }
    shell::long(
        &format!("npm ci: {what}"),
        command("npm").args(["ci", "--no-audit", "--no-fund", "--no-progress"]).current_dir(dir),
    )
}

fn is_current(dir: &Path) -> Result<bool> {
    let wanted =
        std::fs::read_to_string(dir.join("package-lock.json")).with_context(|| dir.display().to_string())?;
    let Ok(installed) = std::fs::read_to_string(dir.join("node_modules/.package-lock.json")) else {
        return Ok(false);
    };
    Ok(integrities(&wanted) == integrities(&installed))
}

/// The hashes of a lock file, in order. Optional packages for other systems are in the wanted list only, so they
/// are left out of both: none is used here.
fn integrities(lock: &str) -> Vec<&str> {
    lock.lines().filter_map(|line| line.trim().strip_prefix("\"integrity\": ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "{\n \"a\": {\n  \"integrity\": \"sha512-x\",\n  \"v\": 1\n }\n}\n";

    #[test]
    fn an_install_is_current_only_with_the_same_hashes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("package-lock.json"), LOCK).unwrap();
        assert!(!is_current(dir.path()).unwrap());
        std::fs::create_dir(dir.path().join("node_modules")).unwrap();
        let installed = dir.path().join("node_modules/.package-lock.json");
        std::fs::write(&installed, LOCK.replace(" \"v\": 1\n", " \"v\": 2\n")).unwrap();
        assert!(is_current(dir.path()).unwrap());
        std::fs::write(&installed, LOCK.replace("sha512-x", "sha512-y")).unwrap();
        assert!(!is_current(dir.path()).unwrap());
    }
}
