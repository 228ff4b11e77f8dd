//! Parameters of queries and form bodies (`application/x-www-form-urlencoded`).

use http::{HeaderMap, header};

/// Parameters that are read at most.
const LIMIT: usize = 32;

pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(crate) fn of_query(query: Option<&str>) -> Self {
        Self::parse(query.unwrap_or_default().as_bytes())
    }

    /// Nothing where the body says it is something else.
    pub(crate) fn of_form(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        (super::page::media_type(kind) == "application/x-www-form-urlencoded").then(|| Self::parse(body))
    }

    fn parse(text: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(text).into_owned().take(LIMIT).collect())
    }

    /// The value of `name` if it is there exactly once: what is there twice has two readings.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_twice_is_not_there() {
        let query = Parameters::of_query(Some("a=1&b=2&a=3&c=%2Fx+y"));
        assert_eq!((query.one("a"), query.one("b"), query.one("c")), (None, Some("2"), Some("/x y")));
        assert!(query.has("a") && !query.has("d"));
    }

    #[test]
    fn a_form_says_what_it_is() {
        let mut headers = HeaderMap::new();
        assert!(Parameters::of_form(&headers, b"a=1").is_none());
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert!(Parameters::of_form(&headers, b"a=1").is_none());
        headers.insert(
            header::CONTENT_TYPE,
            "application/x-www-form-urlencoded; charset=UTF-8".parse().unwrap(),
        );
        assert_eq!(Parameters::of_form(&headers, b"a=1").unwrap().one("a"), Some("1"));
    }
}
