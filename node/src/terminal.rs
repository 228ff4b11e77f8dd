//! What others have named (a person, an application, an error) on somebody's terminal.

/// Takes the place of what is not shown.
const HIDDEN: char = '\u{fffd}';

/// One line, in which nothing moves the cursor or hides, joins or reorders what stands beside it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { HIDDEN }).collect()
}

/// No control character, line or paragraph separator, and no format character without a shape of its own: those
/// that set a direction (UAX #9 §2), have no width, annotate or are tags.
fn is_plain(c: char) -> bool {
    let shapeless = matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    !c.is_control() && !shapeless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_line_and_moves_nothing() {
        assert_eq!(shown("a\n\x1b[2Jb\u{9b}c"), "a\u{fffd}\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(shown("exe\u{202e}gpj\u{2066}\u{200b}\u{2028}"), "exe\u{fffd}gpj\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn every_script_is_shown() {
        for name in ["Zoë Müller", "山田太郎", "אבג", "e\u{301}", "🦀", "a b"] {
            assert_eq!(shown(name), name);
        }
    }
}
