//! `cargo xtask mutants gate`: do the tests see a bug?
//!
//! Each bug of the list is planted, alone, in a copy of the working tree, and the tests that should see it are run
//! there: the unit tests of `common`, and if they are content, the gate's. The copy and what is built of it lie in the
//! target folder and are kept, so that only what a bug touches is built again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, command};
use crate::test;

mod gate;

pub struct Mutant {
    pub name: &'static str,
    /// Below the workspace's folder.
    pub file: &'static str,
    /// Occurs once in the file.
    pub old: &'static str,
    pub new: &'static str,
    /// What goes wrong with it.
    pub breaks: &'static str,
}

/// Packets of the differential test in each run: a bug that they do not find is one for a hand-written test.
const PACKETS: &str = "200000";
/// Programs that the gate's tests start. To link the others would take longer than all else.
const PROGRAMS: [&str; 2] = ["gate_hold.rs", "relay_end.rs"];
/// Of cargo-nextest: tests ran, and some failed.
const TESTS_FAILED: i32 = 100;

/// Plants the bugs of those names, or all.
pub fn gate(only: &[String]) -> Result<ExitCode> {
    for name in only {
        ensure!(gate::MUTANTS.iter().any(|mutant| mutant.name == name), "no mutant is called {name}");
    }
    let chosen: Vec<_> = gate::MUTANTS
        .iter()
        .filter(|mutant| only.is_empty() || only.iter().any(|name| name == mutant.name))
        .collect();
    for mutant in &chosen {
        mutant.apply(shell::root())?;
    }
    let tree = Tree::make()?;
    eprintln!("  · control: the tests without any bug (some minutes the first time)");
    if let Some(caught) = tree.judge(Path::new("common"))? {
        bail!("tests fail without any bug planted: {caught}");
    }
    let mut survivors = 0;
    for mutant in &chosen {
        let started = Instant::now();
        let file = tree.source.join(mutant.file);
        let original = fs::read_to_string(&file)?;
        fs::write(&file, mutant.apply(&tree.source)?)?;
        let caught = tree.judge(Path::new(mutant.file));
        fs::write(&file, original)?;
        let seconds = started.elapsed().as_secs();
        match caught.with_context(|| format!("mutant {}", mutant.name))? {
            Some(test) => println!("caught    {:<26} {seconds:>3} s  {test}", mutant.name),
            None => {
                survivors += 1;
                println!("SURVIVED  {:<26} {seconds:>3} s  {}: {}", mutant.name, mutant.file, mutant.breaks);
            }
        }
    }
    println!("{} of {} caught", chosen.len() - survivors, chosen.len());
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Mutant {
    /// The file with the bug in it.
    fn apply(&self, root: &Path) -> Result<String> {
        let path = root.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found = text.matches(self.old).count();
        ensure!(
            found == 1,
            "mutant {} no longer applies: its text is {found} times in {}",
            self.name,
            self.file
        );
        Ok(text.replacen(self.old, self.new, 1))
    }
}

/// The copy.
struct Tree {
    source: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// Makes the copy the same as the working tree. Files that are the same are not written again, so that cargo
    /// takes them for what they are.
    fn make() -> Result<Self> {
        let dir = shell::target()?.join("mutants");
        let tree = Self { source: dir.join("tree"), target: dir.join("target") };
        fs::create_dir_all(&tree.source)?;
        let listed = shell::probe(command("git").args(["ls-files", "-co", "--exclude-standard"]))
            .context("git cannot list the working tree")?;
        let wanted: BTreeSet<PathBuf> = listed
            .lines()
            .map(PathBuf::from)
            .filter(|path| shell::root().join(path).is_file() && is_needed(path))
            .collect();
        for path in files(&tree.source, Path::new(""))? {
            if !wanted.contains(&path) {
                fs::remove_file(tree.source.join(path))?;
            }
        }
        for path in wanted {
            let (from, to) = (shell::root().join(&path), tree.source.join(&path));
            let text = fs::read(&from).with_context(|| from.display().to_string())?;
            if fs::read(&to).ok().as_ref() != Some(&text) {
                fs::create_dir_all(to.parent().unwrap_or(&tree.source))?;
                fs::write(&to, text)?;
            }
        }
        Ok(tree)
    }

    /// The tests that fail once `changed` is, as nextest names them; `None` if all are content.
    fn judge(&self, changed: &Path) -> Result<Option<String>> {
        const GATE: &str = "test(/^(verdicts|tunnel|rewrite|limits|differential|cookie)::/)";
        let unit = ["-p", "portcullis-common"];
        let gate = ["-p", "portcullis-tests", "--test", "gate", "-E", GATE];
        if changed.starts_with("common")
            && let Some(caught) = self.nextest(&unit)?
        {
            return Ok(Some(caught));
        }
        self.nextest(&gate)
    }

    fn nextest(&self, args: &[&str]) -> Result<Option<String>> {
        let mut nextest: Command = command("cargo");
        nextest
            .current_dir(&self.source)
            .args(["nextest", "run", "--fail-fast", "--color", "never"])
            .args(args);
        nextest.env("CARGO_TARGET_DIR", &self.target).env("PORTCULLIS_FUZZ_PACKETS", PACKETS);
        test::as_root(&mut nextest);
        let output = nextest.output().context("cannot run cargo nextest")?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(None),
            Some(TESTS_FAILED) => Ok(Some(failed(&said))),
            _ => bail!("the tests could not be run:\n{said}"),
        }
    }
}

fn is_needed(path: &Path) -> bool {
    !path.starts_with("tests/src/bin") || PROGRAMS.iter().any(|program| path.ends_with(program))
}

/// Files below `root`, relative to it.
fn files(root: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(files(root, &path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// From lines like `FAIL [   0.010s] (3/4) portcullis-common cid::tests::an_empty_slot`.
fn failed(output: &str) -> String {
    let failed: BTreeSet<&str> = output
        .lines()
        .filter(|line| ["FAIL", "SIGABRT", "TIMEOUT"].iter().any(|word| line.trim_start().starts_with(word)))
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    failed.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code moves; the list must move with it.
    #[test]
    fn every_mutant_still_applies() {
        for mutant in gate::MUTANTS {
            let text = mutant.apply(shell::root()).unwrap();
            assert_ne!(mutant.old, mutant.new, "{}", mutant.name);
            assert!(text.contains(mutant.new), "{}", mutant.name);
        }
        let names: BTreeSet<_> = gate::MUTANTS.iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), gate::MUTANTS.len(), "two have one name");
    }

    /// The copy must build: it holds every program that the gate's tests start.
    #[test]
    fn the_programs_of_the_gates_tests_are_copied() {
        let dir = Path::new("tests/tests/gate");
        let mut named = BTreeSet::new();
        for file in files(shell::root(), dir).unwrap() {
            let text = fs::read_to_string(shell::root().join(file)).unwrap();
            for rest in text.split("CARGO_BIN_EXE_").skip(1) {
                named.insert(format!("{}.rs", rest.split('"').next().unwrap()));
            }
        }
        assert_eq!(named, PROGRAMS.map(str::to_owned).into());
    }

    #[test]
    fn failed_tests_are_named_once() {
        let output = "    PASS [   0.010s] (1/4) crate a::passes\n    \
                      FAIL [   0.010s] (3/4) portcullis-common cid::tests::an_empty_slot\n\
                      ---\n    FAIL [   0.010s] (3/4) portcullis-common cid::tests::an_empty_slot\n";
        assert_eq!(failed(output), "cid::tests::an_empty_slot");
    }
}
