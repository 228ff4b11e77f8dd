//! The purity check: the modules that decide get the time, bytes and facts handed in. They read no clock, no
//! environment, no file and no socket, start no thread, and never depend on the order of a hash map.
//!
//! Works on the source text with comments, string literals and test modules blanked out, so that a hit has a line
//! number and needs no compiler. A false accept would be a decision nobody can replay; a false reject costs a rename.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::shell;

/// Files or folders below the workspace, by the start of their path; each must exist.
const PURE: [&str; 16] = [
    "common/src/",
    "node/src/flow",
    "node/src/policy",
    "node/src/saas/oidc",
    "node/src/saml",
    "node/src/tunnel/wire",
    "node/src/tunnel/session",
    "node/src/tunnel/access_wire",
    "node/src/tunnel/carrier/capsule",
    "node/src/tunnel/carrier/choice",
    "node/src/tunnel/carrier/follower",
    "node/src/tunnel/private/book",
    "node/src/tunnel/private/permit",
    "node/src/tunnel/private/works",
    "node/src/tunnel/end_to_end/fragment",
    "node/src/tunnel/end_to_end/wire",
];

/// What must not appear, and what it would be.
const BANNED: [(&str, &str); 25] = [
    ("Instant::now", "reads a clock"),
    ("SystemTime::now", "reads a clock"),
    (".elapsed(", "reads a clock"),
    ("now_utc", "reads a clock"),
    ("now_local", "reads a clock"),
    ("UNIX_EPOCH.elapsed", "reads a clock"),
    ("crate::clock::", "reads a clock"),
    ("std::env", "reads the environment"),
    ("env::var", "reads the environment"),
    ("std::fs", "touches files"),
    ("File::open", "touches files"),
    ("std::process", "touches processes"),
    ("std::thread", "starts or stops threads"),
    ("TcpStream::", "opens sockets"),
    ("TcpListener::", "opens sockets"),
    ("UdpSocket::", "opens sockets"),
    ("UnixStream::", "opens sockets"),
    ("UnixListener::", "opens sockets"),
    ("ToSocketAddrs", "resolves names"),
    ("tokio::", "does I/O"),
    (".await", "waits"),
    ("HashMap", "has no order; use BTreeMap or IndexMap"),
    ("HashSet", "has no order; use BTreeSet"),
    ("thread_rng", "draws random numbers"),
    ("rand::", "draws random numbers"),
];

pub fn run() -> Result<()> {
    let mut hits = Vec::new();
    for start in PURE {
        let files = files_under(shell::root(), start)?;
        ensure!(!files.is_empty(), "purity: nothing is called {start}…; was a pure module renamed?");
        for file in files {
            let source =
                fs::read_to_string(shell::root().join(&file)).with_context(|| file.display().to_string())?;
            hits.extend(impurities(&source).into_iter().map(|hit| format!("{}:{hit}", file.display())));
        }
    }
    ensure!(hits.is_empty(), "pure modules must not act:\n{}", hits.join("\n"));
    Ok(())
}

/// `line: what (why)` for each banned word outside comments, strings and test modules.
fn impurities(source: &str) -> Vec<String> {
    let code = without_tests(&blank(source));
    let mut hits = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for (word, why) in BANNED {
            if contains_word(line, word) {
                hits.push(format!("{}: `{word}` {why}", number + 1));
            }
        }
    }
    hits
}

/// Whether `word` stands in the line and is not the end or the start of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        let bounded_before = !word.starts_with(is_name) || !before.is_some_and(is_name);
        let bounded_after = !word.ends_with(is_name) || !after.is_some_and(is_name);
        bounded_before && bounded_after
    })
}

/// The source with comments and the contents of string and character literals replaced by blanks; lines stay.
fn blank(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let end = match c {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !follows_name(&chars, at) => raw_string_end(&chars, at).unwrap_or(at),
            '\'' => char_end(&chars, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            out.push(c);
            at += 1;
        } else {
            out.extend(chars.iter().take(end).skip(at).map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn follows_name(chars: &[char], at: usize) -> bool {
    at.checked_sub(1).and_then(|before| chars.get(before)).is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars.iter().skip(at).position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
}

/// Block comments nest.
fn comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0_u32;
    while at < chars.len() {
        match (chars.get(at), chars.get(at + 1)) {
            (Some('/'), Some('*')) => (depth, at) = (depth + 1, at + 2),
            (Some('*'), Some('/')) => {
                (depth, at) = (depth.saturating_sub(1), at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(c) = chars.get(at) {
        match c {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `r"…"`, `r#"…"#` and more hashes; `None` where the `r` starts something else.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars.iter().skip(start + 1).take_while(|c| **c == '#').count();
    if chars.get(start + 1 + hashes) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + hashes + 2;
    let end = chars.get(body..)?.windows(close.len()).position(|window| window == close);
    Some(end.map_or(chars.len(), |n| body + n + close.len()))
}

/// A character literal, as against a lifetime.
fn char_end(chars: &[char], start: usize) -> Option<usize> {
    match chars.get(start + 1)? {
        '\\' => {
            let close = chars.iter().skip(start + 3).position(|c| *c == '\'')?;
            Some(start + 3 + close + 1)
        }
        _ => (chars.get(start + 2) == Some(&'\'')).then_some(start + 3),
    }
}

/// Blanks what follows `#[cfg(test)]` up to the end of its braces or its semicolon: tests may act.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let (before, item) = rest.split_at(at);
        let (item, after) = item.split_at(item_end(item));
        out.push_str(before);
        out.extend(item.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn item_end(item: &str) -> usize {
    let mut depth = 0_u32;
    for (at, c) in item.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// Rust files whose path below `root` begins with `start`, sorted.
fn files_under(root: &Path, start: &str) -> Result<Vec<PathBuf>> {
    let (folder, stem) = start.rsplit_once('/').unwrap_or((".", start));
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return Ok(files) };
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)) {
            collect(&path, &mut files)?;
        }
    }
    files.sort();
    Ok(files.into_iter().filter_map(|file| file.strip_prefix(root).map(Path::to_owned).ok()).collect())
}

/// Source files at and below `path`, but for those of tests, which may act.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.file_stem().is_some_and(|name| name == "tests") {
        return Ok(());
    }
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        files.push(path.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> Vec<String> {
        impurities(source)
    }

    #[test]
    fn every_banned_word_is_found_with_its_line() {
        for (word, why) in BANNED {
            let source = format!("fn f() {{\n    let x = {word} ;\n}}\n");
            let hits = lines(&source);
            assert!(hits.iter().any(|hit| *hit == format!("2: `{word}` {why}")), "{word}: {hits:?}");
        }
    }

    #[test]
    fn the_types_of_time_and_address_are_fine_and_so_are_longer_names() {
        let source = "use std::time::{Duration, Instant};\nuse std::net::IpAddr;\n\
                      fn decide(now: Instant, my_rand: u8, x: MyHashMap, environment: u8) -> bool { true }\n";
        assert_eq!(lines(source), Vec::<String>::new());
    }

    #[test]
    fn comments_strings_and_tests_may_say_anything() {
        let source = r####"
//! HashMap /* not open
/* std::env /* nested */ std::fs */
const A: &str = "Instant::now \" tokio::";
const B: &str = r#"std::env " tokio::"#;
const C: char = '"'; fn f<'a>(x: &'a str) {}
#[cfg(test)]
mod tests {
    fn g() { if true { std::env::var("x"); } }
}
#[cfg(test)]
use std::fs;
"####;
        assert_eq!(lines(source), Vec::<String>::new());
    }

    #[test]
    fn code_after_all_that_is_still_seen() {
        let source = "const C: char = '\"'; const D: char = '\\'';\n#[cfg(test)]\nmod t { fn g() {} }\n\
                      const R: &str = r\"\\\";\nfn f() { std::env::var(\"x\") }\n";
        assert_eq!(
            lines(source),
            ["5: `std::env` reads the environment", "5: `env::var` reads the environment"]
        );
    }

    #[test]
    fn files_are_those_whose_path_begins_so() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "a/flow/tests.rs",
            "a/flow/tests/x.rs",
            "a/flow.rs",
            "a/flow/deep/x.rs",
            "a/flow/notes.md",
            "a/other.rs",
            "a/flow_more.rs",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = files_under(dir.path(), "a/flow").unwrap();
        assert_eq!(found, ["a/flow/deep/x.rs", "a/flow.rs", "a/flow_more.rs"].map(PathBuf::from));
        assert!(files_under(dir.path(), "b/").unwrap().is_empty());
    }
}
