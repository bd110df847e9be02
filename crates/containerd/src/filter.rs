//! Filters of lists, as containerd's `pkg/filters` has them:
//!
//! ```text
//! filter   = selector *( "," selector )                 all of them
//! selector = field path [ operator value ]              without operator: the field is there
//! field path = field *( "." field )
//! field    = quoted | letter *( letter | digit | "_" )
//! operator = "==" | "!=" | "~="                         the last: matches a regular expression
//! value    = quoted | *( any byte but space and "," )   an expression may also be between "/" or "|"
//! quoted   = a string as Go writes it, in double quotes
//! ```
//!
//! Several filters of one request are alternatives.

use regex::Regex;

/// Bytes of one filter. containerd's own are some hundred.
const LIMIT: usize = 8 << 10;

/// Memory of one compiled expression.
const EXPRESSION: usize = 1 << 20;

/// What is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {what}")]
pub struct FilterError {
    filter: String,
    what: String,
}

/// The filters of one request. None let everything pass.
#[derive(Debug, Clone)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    There,
    Is(String),
    IsNot(String),
    Matches(Regex),
}

impl Filters {
    /// Understands the filters of a request.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let parse = |filter: &S| {
            let filter = filter.as_ref();
            let failed = |what: String| FilterError { filter: filter.chars().take(256).collect(), what };
            if filter.len() > LIMIT {
                return Err(failed(format!("at most {LIMIT} bytes are understood")));
            }
            Parser { rest: filter }.filter().map_err(failed)
        };
        filters.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Says whether something passes; `field` returns the value of a field path, if it has one.
    pub fn pass<'a>(&self, field: impl Fn(&[String]) -> Option<&'a str>) -> bool {
        let holds = |selector: &Selector| match (&selector.test, field(&selector.path)) {
            (Test::There, value) => value.is_some(),
            (Test::Is(wanted), value) => value.is_some_and(|value| value == wanted),
            // Of what is not there nothing is known, and so it is not that.
            (Test::IsNot(other), value) => value.is_none_or(|value| value != other),
            (Test::Matches(pattern), value) => value.is_some_and(|value| pattern.is_match(value)),
        };
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(holds))
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        if self.rest.is_empty() {
            return Ok(selectors); // holds always
        }
        loop {
            selectors.push(self.selector()?);
            if self.rest.is_empty() {
                return Ok(selectors);
            }
            if !self.take(",") {
                return Err(format!("a comma is missing before {:?}", self.rest));
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        let test = if self.take("==") {
            Test::Is(self.value()?)
        } else if self.take("!=") {
            Test::IsNot(self.value()?)
        } else if self.take("~=") {
            let value = self.expression()?;
            let pattern = regex::RegexBuilder::new(&value).size_limit(EXPRESSION).build();
            Test::Matches(pattern.map_err(|error| error.to_string())?)
        } else {
            Test::There
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (field, rest) = self.rest.split_at(end);
        if !field.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(format!("a field is missing before {:?}", self.rest));
        }
        self.rest = rest;
        Ok(field.to_owned())
    }

    fn value(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(value.to_owned())
    }

    fn expression(&mut self) -> Result<String, String> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '/' | '|')) else {
            return self.value();
        };
        let (mut expression, mut chars) = (String::new(), self.rest.char_indices().skip(1));
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(expression);
                }
                '\\' => match chars.next() {
                    Some((_, c)) if c == quote => expression.push(c),
                    Some((_, c)) => expression.extend(['\\', c]),
                    None => break,
                },
                c => expression.push(c),
            }
        }
        Err(format!("{quote} is missing at the end of an expression"))
    }

    /// Reads a string as Go's `strconv.Quote` writes it.
    fn quoted(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let mut chars = self.rest.char_indices().skip(1);
        let mut next = || chars.next().ok_or("a quotation mark is missing");
        loop {
            let (at, c) = next()?;
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return String::from_utf8(bytes).map_err(|_| "a string is not UTF-8".to_owned());
                }
                '\\' => match next()?.1 {
                    'x' => bytes.push(u8::try_from(hex(&mut next, 2)?).map_err(|error| error.to_string())?),
                    'u' => push(&mut bytes, hex(&mut next, 4)?)?,
                    'U' => push(&mut bytes, hex(&mut next, 8)?)?,
                    'a' => bytes.push(7),
                    'b' => bytes.push(8),
                    'f' => bytes.push(12),
                    'n' => bytes.push(b'\n'),
                    'r' => bytes.push(b'\r'),
                    't' => bytes.push(b'\t'),
                    'v' => bytes.push(11),
                    c @ ('"' | '\\' | '\'') => push(&mut bytes, u32::from(c))?,
                    c => return Err(format!("\\{c} is not understood")),
                },
                c => push(&mut bytes, u32::from(c))?,
            }
        }
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

fn hex(next: &mut impl FnMut() -> Result<(usize, char), &'static str>, digits: u32) -> Result<u32, String> {
    let mut number = 0;
    for _ in 0..digits {
        let digit = next()?.1.to_digit(16).ok_or("an escape has too few digits")?;
        number = number << 4 | digit;
    }
    Ok(number)
}

fn push(bytes: &mut Vec<u8>, code: u32) -> Result<(), String> {
    let c = char::from_u32(code).ok_or_else(|| format!("there is no character {code:#x}"))?;
    bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot of containerd's: `sha256:a` on `p`, with a label.
    fn passes(filters: &[&str]) -> Result<bool, FilterError> {
        let filters = Filters::parse(filters)?;
        Ok(filters.pass(|path| match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["name"] => Some("sha256:a"),
            ["parent"] => Some("p"),
            ["kind"] => Some("committed"),
            ["labels", "containerd.io/snapshot.ref"] => Some("sha256:a b,\"c\""),
            ["labels", "empty"] => Some(""),
            _ => None,
        }))
    }

    #[test]
    fn filters_select_as_containerds_do() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&[""], true),
            (&["name==sha256:a"], true),
            (&["name==sha256:b"], false),
            (&["name==sha256:b", "parent==p"], true),
            (&["name==sha256:a,parent==q"], false),
            (&["kind!=committed"], false),
            (&["unknown!=x"], true),
            (&["unknown==x"], false),
            (&["unknown"], false),
            (&["parent"], true),
            (&["labels.empty"], true),
            (&["name~=^sha256:.$"], true),
            (&["name~=\"b,\""], false),
            (&[r"name~=/^sha256:.$/,parent==p"], true),
            (&[r"name~=|^x\|6:|"], true),
            (&[r"name~=/\/x/"], false),
            (&[r#"labels."containerd.io/snapshot.ref"=="sha256:a b,\"c\"",parent==p"#], true),
            (&[r#"labels."containerd.io/snapshot.ref"==sha256:a"#], false),
            (&[r#"name=="sha256:\x61""#, "parent==nobody"], true),
            (&[r#"name=="sha256:\u0061""#], true),
        ];
        for (filters, wanted) in table {
            assert_eq!(passes(filters), Ok(*wanted), "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for filter in [
            "=",
            "a==b c",
            "a,",
            ",a",
            "a.",
            "\"a",
            "a==\"\\q\"",
            "a~=(",
            "a~=/x",
            "a b",
            "a==\"\\ud800\"",
            "9a",
        ] {
            assert!(passes(&[filter]).is_err(), "{filter}");
        }
        assert!(passes(&[&"a".repeat(LIMIT + 1)]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in ".{0,60}") {
            let _ = passes(&[&text]); // it comes back
        }

        #[test]
        fn a_quoted_value_is_that_value(text in ".{0,40}") {
            let quoted = format!("name=={}", quote(&text));
            let filters = Filters::parse(&[quoted]).unwrap();
            proptest::prop_assert!(filters.pass(|_| Some(text.as_str())));
        }
    }

    fn quote(text: &str) -> String {
        let mut quoted = String::from("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                c if c.is_control() => quoted += &format!("\\u{:04x}", u32::from(c)),
                c => quoted.push(c),
            }
        }
        quoted + "\""
    }
}
