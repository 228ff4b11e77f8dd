//! The stanzas of `ssh_config(5)` that make `ssh NAME` go through the node.
//!
//! They are written to a file of their own, `~/.ssh/portcullis/<auth domain>.conf`, and `~/.ssh/config` gets one `Include`
//! line at its top: a stanza ends where the next begins, so that nothing that follows in the person's own file changes its
//! meaning. Writing twice changes nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::private_file::{self, PrivateFileError};

use super::profile::Profile;
use super::ssh::{SshCertError, SshIdentity};

/// Relative to `~/.ssh`, as `Include` takes it.
const FOLDER: &str = "portcullis";
const INCLUDE: &str = "Include portcullis/*.conf";

/// Why no stanza can be written.
#[derive(Debug, thiserror::Error)]
pub enum SshConfigError {
    #[error(transparent)]
    Name(#[from] SshCertError),
    #[error("{0:?} cannot be written in an ssh_config")]
    Path(PathBuf),
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// The stanzas of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// Of the file.
    name: String,
    text: String,
}

impl SshConfig {
    /// Stanzas for `applications` of the profile's node. `options` are what `portcullis access` needs to find that
    /// profile, as they are typed.
    ///
    /// # Errors
    /// When a name is none that an application can have, or the profile is in a place that `ssh_config` cannot name.
    pub fn new(profile: &Profile, applications: &[String], options: &str) -> Result<Self, SshConfigError> {
        let name = profile.url().trim_start_matches("https://").to_owned();
        Ok(Self { text: stanzas(profile.directory(), profile.url(), applications, options)?, name })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the stanzas below `ssh` (`~/.ssh`) and includes them. The paths of the files that have changed.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, ssh: &Path) -> Result<Vec<PathBuf>, SshConfigError> {
        private_file::make_directory(&ssh.join(FOLDER))?;
        let mut changed = Vec::new();
        let own = ssh.join(FOLDER).join(format!("{}.conf", self.name));
        if read(&own)?.as_deref() != Some(self.text.as_str()) {
            private_file::replace(&own, self.text.as_bytes())?;
            changed.push(own);
        }
        // The file may be a link into a person's collection: what it leads to is changed.
        let main = ssh.join("config");
        let main = std::fs::canonicalize(&main).unwrap_or(main);
        let before = read(&main)?.unwrap_or_default();
        if !is_included(&before) {
            let after =
                if before.is_empty() { format!("{INCLUDE}\n") } else { format!("{INCLUDE}\n\n{before}") };
            private_file::replace(&main, after.as_bytes())?;
            changed.push(main);
        }
        Ok(changed)
    }
}

fn stanzas(
    directory: &Path,
    node: &str,
    applications: &[String],
    options: &str,
) -> Result<String, SshConfigError> {
    let mut text = format!("# {node}, written by `portcullis access ssh-config`: changes are lost.\n");
    for application in applications {
        let identity = SshIdentity::of(directory, application)?;
        let (key, certificate) = (quoted(&identity.key)?, quoted(&identity.certificate)?);
        // First the certificate: where the node gives none, the other ways to log in are left as they are.
        let _ = write!(
            text,
            "\nMatch originalhost {application} exec \"portcullis access{options} ssh-cert {application}\"\n\
             \x20   IdentityFile {key}\n    CertificateFile {certificate}\n    IdentitiesOnly yes\n\
             Host {application}\n    ProxyCommand portcullis access{options} ssh %h\n"
        );
    }
    Ok(text)
}

/// A path as an argument: in quotes, and with what `ssh` would expand made plain.
fn quoted(path: &Path) -> Result<String, SshConfigError> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\\']) && !text.contains(char::is_control));
    let text = text.ok_or_else(|| SshConfigError::Path(path.to_owned()))?;
    Ok(format!("\"{}\"", text.replace('%', "%%").replace("${", "$%%{")))
}

/// Whether the line is there, and not within the stanza of some hosts only.
fn is_included(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .take_while(|line| {
            let keyword = line.split([' ', '\t', '=']).next().unwrap_or_default();
            !keyword.eq_ignore_ascii_case("host") && !keyword.eq_ignore_ascii_case("match")
        })
        .any(|line| line == INCLUDE)
}

fn read(path: &Path) -> Result<Option<String>, SshConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SshConfigError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(applications: &[&str]) -> SshConfig {
        let applications: Vec<String> = applications.iter().map(|name| (*name).to_owned()).collect();
        let text =
            stanzas(Path::new("/home/ann/p"), "https://access.example.com", &applications, "").unwrap();
        SshConfig { name: "access.example.com".into(), text }
    }

    #[test]
    fn a_stanza_asks_for_the_certificate_and_goes_through_the_node() {
        assert_eq!(
            config(&["prod"]).text(),
            "# https://access.example.com, written by `portcullis access ssh-config`: changes are lost.\n\n\
             Match originalhost prod exec \"portcullis access ssh-cert prod\"\n    \
             IdentityFile \"/home/ann/p/ssh/prod\"\n    \
             CertificateFile \"/home/ann/p/ssh/prod-cert.pub\"\n    \
             IdentitiesOnly yes\nHost prod\n    ProxyCommand portcullis access ssh %h\n"
        );
    }

    #[test]
    fn a_name_or_place_that_would_be_read_otherwise_is_refused() {
        let stanza = |directory: &str, name: &str| {
            stanzas(Path::new(directory), "https://a.example", &[name.to_owned()], "")
        };
        for name in ["a b", "a\nProxyCommand evil", "\"", "*", "!a", "%h", "$(x)", "`x`", ""] {
            assert!(matches!(stanza("/p", name), Err(SshConfigError::Name(_))), "{name:?}");
        }
        for place in ["/p\"x", "/p\nx", "/p\\x"] {
            assert!(matches!(stanza(place, "a"), Err(SshConfigError::Path(_))), "{place:?}");
        }
        assert!(stanza("/a b/50%h", "a").unwrap().contains("IdentityFile \"/a b/50%%h/ssh/a\""));
    }

    #[test]
    fn writing_twice_changes_nothing_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let ssh = directory.path().join(".ssh");
        let own = ssh.join("portcullis/access.example.com.conf");
        assert_eq!(config(&["prod"]).write(&ssh).unwrap(), [own.clone(), ssh.join("config")]);
        assert_eq!(config(&["prod"]).write(&ssh).unwrap(), [] as [PathBuf; 0]);
        assert_eq!(std::fs::read_to_string(ssh.join("config")).unwrap(), format!("{INCLUDE}\n"));
        assert_eq!(config(&["prod", "test"]).write(&ssh).unwrap(), [own]);

        let theirs = "Host x\n    User y\n";
        for before in [theirs.to_owned(), format!("{theirs}    {INCLUDE}\n")] {
            std::fs::write(ssh.join("config"), &before).unwrap();
            assert_eq!(config(&["prod", "test"]).write(&ssh).unwrap(), [ssh.join("config")]);
            assert_eq!(config(&["prod", "test"]).write(&ssh).unwrap(), [] as [PathBuf; 0]);
            let after = std::fs::read_to_string(ssh.join("config")).unwrap();
            assert_eq!(after, format!("{INCLUDE}\n\n{before}"));
        }
    }

    /// What `ssh` itself makes of it, with a `portcullis` that gets a certificate or does not.
    #[test]
    fn ssh_reads_it_as_it_is_meant() {
        let directory = tempfile::tempdir().unwrap();
        let (bin, file) = (directory.path().join("bin"), directory.path().join("config"));
        std::fs::create_dir(&bin).unwrap();
        let place = directory.path().join("a b/50%h");
        let text =
            stanzas(&place, "https://a.example:8443", &["prod".to_owned()], " --node https://a.example:8443");
        std::fs::write(&file, text.unwrap() + "Host *\n    User someone\n").unwrap();
        let read = |host: &str, certificate: bool| {
            let script = format!(
                "#!/bin/sh\n[ \"$*\" = 'access --node https://a.example:8443 ssh-cert prod' ] && {certificate}\n"
            );
            std::fs::write(bin.join("portcullis"), script).unwrap();
            std::fs::set_permissions(
                bin.join("portcullis"),
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )
            .unwrap();
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
            let mut ssh = std::process::Command::new("ssh");
            let output = ssh.env("PATH", path).arg("-G").arg("-F").arg(&file).arg(host).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let ours = [
            format!("identityfile {}/ssh/prod\n", place.display()),
            format!("certificatefile {}/ssh/prod-cert.pub\n", place.display()),
            "identitiesonly yes\n".to_owned(),
        ];
        let proxy = "proxycommand portcullis access --node https://a.example:8443 ssh %h\n";
        let told = read("prod", true).replace("%%", "%");
        assert!(told.contains(proxy) && ours.iter().all(|line| told.contains(line)), "{told}");
        let told = read("prod", false);
        assert!(told.contains(proxy) && !ours.iter().any(|line| told.contains(line)), "{told}");
        let told = read("prod2", true);
        assert!(!told.contains("portcullis") && told.contains("user someone\n"), "{told}");
    }

    #[test]
    fn a_linked_file_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (ssh, real) = (directory.path().join(".ssh"), directory.path().join("dotfiles"));
        std::fs::create_dir(&ssh).unwrap();
        std::fs::write(&real, "Host x\n").unwrap();
        std::os::unix::fs::symlink(&real, ssh.join("config")).unwrap();
        config(&["prod"]).write(&ssh).unwrap();
        assert!(std::fs::symlink_metadata(ssh.join("config")).unwrap().is_symlink());
        assert!(std::fs::read_to_string(real).unwrap().starts_with(INCLUDE));
    }
}
