//! Exclusive XML Canonicalization 1.0 without comments, of a whole element (<https://www.w3.org/TR/xml-exc-c14n/>).
//!
//! Also the way we write XML: what is sent is what was signed, byte for byte. A signature may list prefixes that are
//! declared wherever they are in scope (`InclusiveNamespaces`), as those of Shibboleth and Okta do for types of values.

use super::xml::{Element, Node};

const XML: &str = "http://www.w3.org/XML/1998/namespace";

/// The canonical form of `element` and all below it.
pub fn canonical(element: &Element) -> String {
    canonical_with(element, &[])
}

/// The same, with the prefixes of `inclusive` declared wherever they are in scope; `#default` is the default namespace.
pub(super) fn canonical_with(element: &Element, inclusive: &[&str]) -> String {
    let mut out = String::new();
    write(element, inclusive, &mut Vec::new(), &mut out);
    out
}

/// `rendered` is what ancestors in the output have declared, the innermost last.
fn write<'a>(
    element: &'a Element,
    inclusive: &[&str],
    rendered: &mut Vec<(&'a str, &'a str)>,
    out: &mut String,
) {
    let outer = rendered.len();
    let mut used = vec![(element.name.prefix.as_str(), element.name.namespace.as_str())];
    used.extend(
        element
            .attributes
            .iter()
            .filter(|attribute| !attribute.name.prefix.is_empty())
            .map(|attribute| (attribute.name.prefix.as_str(), attribute.name.namespace.as_str())),
    );
    let listed = |prefix: &str| inclusive.contains(&if prefix.is_empty() { "#default" } else { prefix });
    used.extend(
        element
            .scope
            .iter()
            .map(|(prefix, namespace)| (prefix.as_str(), namespace.as_str()))
            .filter(|(prefix, _)| listed(prefix)),
    );
    used.retain(|(_, namespace)| *namespace != XML);
    used.sort_unstable();
    used.dedup();
    let name = |prefix: &str, local: &str, out: &mut String| {
        if !prefix.is_empty() {
            out.push_str(prefix);
            out.push(':');
        }
        out.push_str(local);
    };
    out.push('<');
    name(&element.name.prefix, &element.name.local, out);
    for (prefix, namespace) in used {
        let declared = rendered.iter().rev().find(|(found, _)| *found == prefix).map(|(_, uri)| *uri);
        if declared.unwrap_or_default() == namespace {
            continue;
        }
        rendered.push((prefix, namespace));
        out.push_str(" xmlns");
        if !prefix.is_empty() {
            out.push(':');
            out.push_str(prefix);
        }
        out.push_str("=\"");
        escape(namespace, true, out);
        out.push('"');
    }
    let mut attributes: Vec<_> = element.attributes.iter().collect();
    attributes.sort_by_key(|attribute| (&attribute.name.namespace, &attribute.name.local));
    for attribute in attributes {
        out.push(' ');
        name(&attribute.name.prefix, &attribute.name.local, out);
        out.push_str("=\"");
        escape(&attribute.value, true, out);
        out.push('"');
    }
    out.push('>');
    for child in &element.children {
        match child {
            Node::Element(child) => write(child, inclusive, rendered, out),
            Node::Text(text) => escape(text, false, out),
        }
    }
    out.push_str("</");
    name(&element.name.prefix, &element.name.local, out);
    out.push('>');
    rendered.truncate(outer);
}

fn escape(text: &str, attribute: bool, out: &mut String) {
    // Most texts have nothing to escape, and keys and signatures are long. 0xEF begins what XML cannot say, among others.
    let special = |byte: &u8| *byte < b' ' || b"&<>\"\xef".contains(byte);
    let at = text.as_bytes().iter().position(special).unwrap_or(text.len());
    let (plain, rest) = text.split_at_checked(at).unwrap_or(("", text));
    out.push_str(plain);
    for c in rest.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' if !attribute => out.push_str("&gt;"),
            '"' if attribute => out.push_str("&quot;"),
            '\t' if attribute => out.push_str("&#x9;"),
            '\n' if attribute => out.push_str("&#xA;"),
            '\r' => out.push_str("&#xD;"),
            // XML cannot say these at all (XML 1.0 §2.2), and names from elsewhere may hold them.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
}
