//! As much of HTML and URLs as the login page needs.

/// A form: where it goes and what it carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) action: Option<String>,
    inputs: Vec<(String, String)>,
    user: String,
    password: String,
}

impl Form {
    /// The body of the POST, `application/x-www-form-urlencoded`.
    pub(super) fn filled(&self, user: &str, password: &str) -> String {
        let value = |name: &str, value: &str| match name {
            name if name == self.user => user.to_owned(),
            name if name == self.password => password.to_owned(),
            _ => value.to_owned(),
        };
        let pairs = self.inputs.iter().map(|(name, preset)| (name, value(name, preset)));
        pairs
            .map(|(name, value)| format!("{}={}", encode(name), encode(&value)))
            .collect::<Vec<_>>()
            .join("&")
    }
}

/// The first form of a page that asks for a password.
pub(super) fn login_form(html: &str) -> Option<Form> {
    html.split("<form").skip(1).find_map(|rest| {
        let inside = rest.split("</form").next()?;
        let head = inside.split('>').next()?;
        let (mut inputs, mut user, mut password) = (Vec::new(), None, None);
        for tag in inside.split("<input").skip(1) {
            let tag = tag.split('>').next()?;
            let Some(name) = attribute(tag, "name") else { continue };
            match attribute(tag, "type").as_deref() {
                Some("password") => password = Some(name.clone()),
                Some("hidden") => {}
                Some("text" | "email") | None => user = user.or(Some(name.clone())),
                Some(_) => continue,
            }
            inputs.push((name, attribute(tag, "value").unwrap_or_default()));
        }
        Some(Form { action: attribute(head, "action"), inputs, user: user?, password: password? })
    })
}

/// The address of a `<meta http-equiv="refresh">`.
pub(super) fn refresh(html: &str) -> Option<String> {
    let tags = html.split("<meta").skip(1).filter_map(|rest| rest.split('>').next());
    let tag = tags.into_iter().find(|tag| {
        attribute(tag, "http-equiv").is_some_and(|value| value.eq_ignore_ascii_case("refresh"))
    })?;
    let content = attribute(tag, "content")?;
    let (_, url) = content.split_once(';')?;
    let url = url.trim();
    Some(url.strip_prefix("url=").or(url.strip_prefix("URL="))?.trim_matches('\'').to_owned())
}

/// The text between two marks.
pub(super) fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

/// `https://host:port` of an address.
pub(super) fn origin(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url
        .get(authority..)
        .and_then(|rest| rest.find(['/', '?', '#']))
        .map_or(url.len(), |at| authority + at);
    url.get(..end).unwrap_or(url)
}

/// The host of an address, without its port.
pub(super) fn host(url: &str) -> &str {
    let origin = origin(url);
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

/// A link of a page, absolute. Relative paths do not occur on the node's pages.
pub(super) fn resolve(page: &str, link: &str) -> String {
    match link {
        "" => page.to_owned(),
        link if link.contains("://") => link.to_owned(),
        link => format!("{}{link}", origin(page)),
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let start = tag
        .match_indices(&format!("{name}=\""))
        .find(|(at, _)| tag.get(..*at).is_some_and(|before| before.ends_with(char::is_whitespace)))?;
    let value = tag.get(start.0 + name.len() + 2..)?.split('"').next()?;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    let named = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#x27;", "'");
    let numbered =
        named.replace("&#34;", "\"").replace("&#38;", "&").replace("&#39;", "'").replace("&#60;", "<");
    numbered.replace("&#62;", ">").replace("&amp;", "&")
}

fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<form action="/search"><input name="q"></form>
<form method="post" action="/login?a=1&amp;b=2"><input type="hidden" name="ticket" value="a&#38;b">
<input id="x" name="username" value="" type="text"><input name="password" type="password"><button>Go</button></form>"#;

    #[test]
    fn the_login_form_is_found_and_filled() {
        let form = login_form(PAGE).unwrap();
        assert_eq!(form.action.as_deref(), Some("/login?a=1&b=2"));
        assert_eq!(form.filled("me", "p w"), "ticket=a%26b&username=me&password=p%20w");
        assert_eq!(login_form("<form><input name=\"q\"></form>"), None);
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(origin("https://a.test:8443/x?y"), "https://a.test:8443");
        assert_eq!(host("wss://a.test:8443/x"), "a.test");
        assert_eq!(resolve("https://a.test/x", "/y"), "https://a.test/y");
        assert_eq!(resolve("https://a.test/x", ""), "https://a.test/x");
        assert_eq!(resolve("https://a.test/x", "https://b.test/"), "https://b.test/");
    }

    #[test]
    fn a_refresh_is_found() {
        let html = r#"<meta charset="utf-8"><meta http-equiv="refresh" content="0; url=https://a.test/?a=1&#38;b=2">"#;
        assert_eq!(refresh(html).as_deref(), Some("https://a.test/?a=1&b=2"));
        assert_eq!(refresh(PAGE), None);
    }
}
