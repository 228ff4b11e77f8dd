//! The examples in `deploy/` are what people start from: they must be right.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis_tests::ca::Ca;
use portcullis_tests::portcullis::binary;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// `admin check` on the example with its files put where this test may write.
fn check(config: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let names = ["access.example.com", "wiki.example.com"];
    Ca::new("test").unwrap().issue(&names).unwrap().write(dir.path(), "tls").unwrap();
    fs::write(dir.path().join("okta.secret"), "s3cr3t\n").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let config = config
        .replace("/etc/portcullis/tls/fullchain.pem", &at("tls.pem"))
        .replace("/etc/portcullis/tls/key.pem", &at("tls.key"))
        .replace("/etc/portcullis/okta.secret", &at("okta.secret"))
        .replace("\"portcullis\"", "\"nobody\"");
    let path = dir.path().join("node.toml");
    fs::write(&path, config).unwrap();
    let output =
        Command::new(binary().unwrap()).args(["admin", "--config"]).arg(&path).arg("check").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_example_of_a_node_passes_the_check() {
    let example = fs::read_to_string(deploy("node.toml")).unwrap();
    let (accepted, text) = check(&example);
    assert!(accepted, "{text}");
    let (accepted, text) = check(&example.replace("policies =", "polices ="));
    assert!(!accepted && text.contains("polices"), "{text}");
}

#[test]
fn the_user_of_the_example_is_the_one_that_is_made() {
    let example = fs::read_to_string(deploy("node.toml")).unwrap();
    let made = fs::read_to_string(deploy("portcullis.sysusers.conf")).unwrap();
    let line = made.lines().find(|line| line.starts_with("u ")).unwrap();
    let user = line.split_whitespace().nth(1).unwrap();
    let named = format!("user = \"{user}\"");
    assert!(example.contains(&named), "{line}");
    let (accepted, text) = check(&example.replace(&named, "user = \"no-such-user\""));
    assert!(!accepted && text.contains("there is no user `no-such-user`"), "{text}");
}

#[test]
fn the_example_of_a_connector_is_read() {
    // Its token file is not there, as after the enrolment.
    let read = portcullis::config::load_connector(&deploy("connector.toml")).unwrap();
    assert_eq!(read.connections, 2);
    let allowed: Vec<String> = read.allow.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.0.0.5:8080"]);
}

/// The unit for boot and the rule for interfaces run the same command.
#[test]
fn the_gate_is_put_up_by_a_command_that_exists() {
    let help = Command::new(binary().unwrap()).args(["admin", "gate", "up", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for (file, before) in [("portcullis-gate.service", "ExecStart="), ("80-portcullis.rules", "RUN+=\"")] {
        let text = fs::read_to_string(deploy(file)).unwrap();
        let (_, command) = text.split_once(before).unwrap();
        let command = command.lines().next().unwrap().trim_end_matches('"');
        let options = command.strip_prefix("/usr/local/bin/portcullis admin gate up ").unwrap();
        assert!(options.starts_with("--config /etc/portcullis/node.toml"), "{file}: {options}");
        for option in options.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{file}: no {option}");
        }
    }
    let unit = fs::read_to_string(deploy("portcullis-gate.service")).unwrap();
    assert!(unit.contains("Before=network-pre.target") && unit.contains("DefaultDependencies=no"));
}

#[test]
fn the_units_start_what_exists() {
    for (unit, command) in
        [("portcullis-node.service", "node"), ("portcullis-connector.service", "connector")]
    {
        let text = fs::read_to_string(deploy(unit)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("/usr/local/bin/portcullis"));
        let help = Command::new(binary().unwrap()).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        assert_eq!(words.next(), Some(command));
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{unit}: {command} has no {option}");
        }
    }
}
