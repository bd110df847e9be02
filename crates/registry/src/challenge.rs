//! The `WWW-Authenticate` header (RFC 9110, section 11): which proof of identity a server wants.

use reqwest::Url;

/// What a registry asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from a token server.
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// Returns the challenge to answer: Bearer where it is offered, because it shows the password to fewer.
pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, parameters) in headers.flat_map(parse) {
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm").and_then(|realm| Url::parse(&realm).ok())
            && matches!(realm.scheme(), "http" | "https")
        {
            return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// Splits a header into schemes and their parameters. What it cannot read, it leaves out.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match value.map(|value| value.trim_start_matches([' ', '\t'])) {
            // A word before '=' is a parameter, one without begins a scheme.
            None => {
                found.push((word.into(), Vec::new()));
                rest = after;
            }
            Some(value) => {
                let Some((_, parameters)) = found.last_mut() else { return found };
                let (value, after) = match value.strip_prefix('"') {
                    Some(quoted) => match unquote(quoted) {
                        Some(pair) => pair,
                        None => return found,
                    },
                    None => {
                        let end = value.find(|c: char| !is_token(c)).unwrap_or(value.len());
                        (value[..end].to_owned(), &value[end..])
                    }
                };
                parameters.push((word.into(), value));
                rest = after;
            }
        }
    }
}

/// The text up to the closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let realm = Url::parse(realm).unwrap();
        Some(Challenge::Bearer { realm, service: service.map(String::from), scope: scope.map(String::from) })
    }

    #[test]
    fn headers_as_they_come() {
        let chosen = |texts: &[&'static str]| choose(texts.iter().copied());
        assert_eq!(
            chosen(&[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#
            ]),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/nginx:pull,push")
            )
        );
        assert_eq!(chosen(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(chosen(&["basic"]), Some(Challenge::Basic));
        assert_eq!(
            chosen(&[r#"Basic realm="x", bearer Realm = "http://a/t""#]),
            bearer("http://a/t", None, None)
        );
        assert_eq!(
            chosen(&["Basic realm=x", r#"Bearer realm="https://a/""#]),
            bearer("https://a/", None, None)
        );
        assert_eq!(
            chosen(&[r#"Bearer realm="https://a/\"b",service=x"#]),
            bearer("https://a/%22b", Some("x"), None)
        );
        for none in [
            "",
            "Negotiate",
            "Bearer",
            r#"Bearer realm="ftp://a""#,
            r#"Bearer realm="https://a"#,
            "=,",
            "realm=\"x\"",
        ] {
            assert_eq!(chosen(&[none]), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(text in "(Bearer|Basic|[a-z\"=, \\\\]){0,4}\\PC{0,40}") {
            let _ = choose(std::iter::once(&*text));
        }
    }
}
