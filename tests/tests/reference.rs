//! `docs/reference.md` names every configuration key, metric, event field and reason, and nothing that is not.

use std::collections::BTreeSet;
use std::path::Path;

use portcullis_common::Verdict;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// The part of the page below a heading, up to the next heading of the same or a higher rank.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`"));
    let rank = heading.chars().take_while(|c| *c == '#').count();
    let body = &page[start + heading.len()..];
    let end = (1..=rank).filter_map(|rank| body.find(&format!("\n{} ", "#".repeat(rank)))).min();
    &body[..end.unwrap_or(body.len())]
}

/// The names in backquotes in the first column of a section's tables.
fn listed(section: &str) -> BTreeSet<String> {
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|name| name.split(' ').next().unwrap_or(name).to_owned())
        .collect()
}

/// Identifiers between `from` and `to` on the lines of a source that hold `from`.
fn between<'a>(source: &'a str, from: &str, to: &str) -> BTreeSet<String> {
    let name =
        |line: &'a str| line.split_once(from)?.1.split_once(to).map(|(name, _)| name.trim().to_owned());
    source.lines().filter_map(name).filter(|name| !name.is_empty()).collect()
}

fn body<'a>(source: &'a str, item: &str) -> &'a str {
    let start = source.find(item).unwrap_or_else(|| panic!("no `{item}`"));
    &source[start..start + source[start..].find("\n}").unwrap()]
}

#[test]
fn configuration_keys_are_listed() {
    let (page, raw) = (read("docs/reference.md"), read("node/src/config/raw.rs"));
    for (heading, item, not_here) in [
        ("### `[node]`", "struct Node {", &[][..]),
        ("### `[gate]`", "struct Gate {", &[]),
        ("### `[tunnel]`", "struct Tunnel {", &[]),
        ("### `[events]`", "struct Events {", &[]),
        ("### `[[identity_provider]]`", "struct IdentityProvider {", &[]),
        ("### `[[application]]`", "struct Application {", &[]),
        ("### `oidc` of an application", "struct Oidc {", &[]),
        ("### `saml` of an application", "struct Saml {", &[]),
    ] {
        let source = body(&raw, item);
        let mut keys = between(source, "pub(super) ", ":");
        for (field, key) in [("kind", "type"), ("certificates", "certificate")] {
            if keys.remove(field) {
                assert!(source.contains(&format!("rename = \"{key}\"")), "{field} of {item}");
                keys.insert(key.to_owned());
            }
        }
        keys.retain(|key| !not_here.contains(&key.as_str()));
        assert_eq!(listed(section(&page, heading)), keys, "{heading}");
    }
    let selectors = section(&page, "### `[[group]]` and `[[policy]]`");
    for variant in body(&raw, "enum Selector {").lines().filter_map(|line| line.trim().split_once('(')) {
        let snake = variant.0.chars().enumerate().fold(String::new(), |mut name, (index, c)| {
            if c.is_uppercase() && index > 0 {
                name.push('_');
            }
            name.extend(c.to_lowercase());
            name
        });
        assert!(selectors.contains(&format!("`{snake}")), "selector {snake}");
    }
}

#[test]
fn metrics_are_listed() {
    let source = read("node/src/metrics.rs");
    let product = source.split("#[cfg(test)]").next().unwrap();
    let in_code: BTreeSet<String> = product
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("portcullis_"))
        .map(str::to_owned)
        .collect();
    assert!(in_code.len() > 5);
    assert_eq!(listed(section(&read("docs/reference.md"), "## Metrics")), in_code);
}

#[test]
fn event_fields_and_reasons_are_listed() {
    let page = read("docs/reference.md");
    let record = read("node/src/event/record.rs");
    let mut fields: BTreeSet<String> = body(&record, "pub struct Event {")
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['/', '#']) && !line.starts_with("pub "))
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.to_owned()))
        .collect();
    let of_reasons = listed(section(&page, "### Reasons"));
    fields.extend(of_reasons.iter().cloned());
    assert_eq!(listed(section(&page, "## Events")), fields);
    let actions = section(&page, "## Events").lines().find(|line| line.starts_with("| `action`")).unwrap();
    for action in between(&record, "=> \"", "\"") {
        assert!(actions.contains(&format!("`{action}`")), "action {action}");
    }
    assert_eq!(of_reasons, between(&read("node/src/flow/facts.rs"), "=> \"", "\""));
}

#[test]
fn reasons_at_the_gate_are_listed() {
    let names: BTreeSet<String> = Verdict::all().map(|verdict| verdict.reason().to_owned()).collect();
    assert_eq!(listed(section(&read("docs/reference.md"), "## Reasons at the gate")), names);
}
