//! What an application elsewhere was told of a person: kept for administrators, without what proves it.

use std::collections::BTreeMap;

use serde::Serialize;

/// Attributes and values of each that are kept, and characters of each text.
const MOST: usize = 64;
const LONGEST: usize = 256;
/// Characters of all of it; what is beyond is only counted.
const ALL: usize = 8192;

/// The name and the attributes of an assertion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sent {
    name_id: String,
    attributes: BTreeMap<String, Vec<String>>,
    /// Values that are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<usize>,
}

impl Sent {
    pub fn new<'a>(name_id: &str, attributes: impl IntoIterator<Item = (&'a str, &'a [String])>) -> Self {
        let cut = |text: &str| text.chars().take(LONGEST).collect::<String>();
        let mut sent = Self { name_id: cut(name_id), attributes: BTreeMap::new(), more: None };
        let (mut length, mut more) = (0, 0);
        for (name, values) in attributes {
            if sent.attributes.len() == MOST {
                more += values.len();
                continue;
            }
            let name = cut(name);
            length += name.chars().count();
            let kept = sent.attributes.entry(name).or_default();
            for value in values {
                let value = cut(value);
                length += value.chars().count();
                if kept.len() < MOST && length <= ALL { kept.push(value) } else { more += 1 }
            }
        }
        sent.more = (more > 0).then_some(more);
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_what_is_not_is_counted() {
        let many: Vec<String> = (0..100).map(|n| format!("g{n}")).collect();
        let long = ["x".repeat(1000)];
        let sent = Sent::new("ann", [("groups", &many[..]), ("long", &long[..])]);
        assert_eq!((sent.attributes["groups"].len(), sent.more), (64, Some(36)));
        assert_eq!(sent.attributes["long"], ["x".repeat(256)]);
        let names: Vec<String> = (0..100).map(|n| format!("a{n}")).collect();
        let values = vec!["y".repeat(256); 8];
        let sent = Sent::new("ann", names.iter().map(|name| (name.as_str(), &values[..])));
        assert_eq!(sent.attributes.len(), 64);
        let text = serde_json::to_string(&sent).unwrap();
        assert!(text.len() < 16 * 1024, "{}", text.len());
        let kept: usize = sent.attributes.values().map(Vec::len).sum();
        assert_eq!(kept + sent.more.unwrap(), 800);
        assert!(!serde_json::to_string(&Sent::new("ann", [])).unwrap().contains("more"));
    }
}
