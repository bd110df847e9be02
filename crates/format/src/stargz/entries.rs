//! The JSON of a table of contents, entry by entry, as it arrives.

use std::io::Read;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Deserializer;

use super::TableError;
use super::toc::Entry;

/// Bytes that are read at once, at least.
const PIECE: usize = 64 << 10;

/// Bytes of a value, about: no entry has so many.
const LONGEST: usize = 4 << 20;

/// Shows each entry of a table, in order.
pub(super) fn each(
    json: impl Read,
    mut each: impl FnMut(&Entry) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut json = Json { from: json, bytes: Vec::new(), at: 0, ended: false };
    let (mut version, mut has_entries) = (None, false);
    json.list(b'{', b'}', |json| {
        let key: String = json.value()?;
        json.expect(b':')?;
        let is_said = match &*key {
            "version" => version.is_some(),
            "entries" => has_entries,
            _ => false,
        };
        if is_said {
            return Err(TableError::Form("it says something twice")); // readers differ in which they take
        }
        match &*key {
            "version" => version = Some(json.value()?),
            "entries" => {
                has_entries = true;
                // An empty list may be written as none at all.
                if json.mark()? == Some(b'n') {
                    return json.value::<()>();
                }
                json.list(b'[', b']', |json| each(&json.value()?))?;
            }
            _ => drop(json.value::<IgnoredAny>()?),
        }
        Ok(())
    })?;
    match (json.mark()?, version) {
        (Some(_), _) => Err(TableError::Form("something follows it")),
        (None, Some(1)) => Ok(()),
        (None, other) => Err(TableError::Version(other.unwrap_or(0))),
    }
}

/// JSON of which a part is here.
struct Json<R> {
    from: R,
    bytes: Vec<u8>,
    at: usize,
    /// Nothing follows what is here.
    ended: bool,
}

impl<R: Read> Json<R> {
    /// Reads what is between two marks, with commas between.
    fn list(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        self.expect(open)?;
        if self.mark()? == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            match self.mark()? {
                Some(b',') => self.at += 1,
                _ => return self.expect(close),
            }
        }
    }

    /// Takes a mark.
    fn expect(&mut self, mark: u8) -> Result<(), TableError> {
        match self.mark()? {
            Some(found) if found == mark => self.at += 1,
            Some(_) => return Err(TableError::Form("another mark than JSON has there")),
            None => return Err(TableError::Form("it ends early")),
        }
        Ok(())
    }

    /// Returns the next byte that is no space, and goes there.
    fn mark(&mut self) -> Result<Option<u8>, TableError> {
        loop {
            let is_mark = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            if let Some(n) = self.bytes[self.at..].iter().position(is_mark) {
                self.at += n;
                return Ok(Some(self.bytes[self.at]));
            }
            self.at = self.bytes.len();
            if self.ended {
                return Ok(None);
            }
            self.more()?;
        }
    }

    /// Takes the next value, once it is here whole.
    fn value<T: DeserializeOwned>(&mut self) -> Result<T, TableError> {
        loop {
            let mut values = Deserializer::from_slice(&self.bytes[self.at..]).into_iter();
            let (value, end) = (values.next(), self.at + values.byte_offset());
            match value {
                // Right at the end of what is here a number may go on.
                Some(Ok(value)) if self.ended || end < self.bytes.len() => {
                    self.at = end;
                    return Ok(value);
                }
                Some(Err(error)) if self.ended || !error.is_eof() => return Err(TableError::Json(error)),
                None if self.ended => return Err(TableError::Form("it ends early")),
                _ => self.more()?,
            }
        }
    }

    /// Reads more, at least as much as there is of what is not whole: so nothing is looked at more than a few times.
    fn more(&mut self) -> Result<(), TableError> {
        self.bytes.drain(..std::mem::take(&mut self.at));
        if self.bytes.len() > LONGEST {
            return Err(TableError::Form("a value of several MiB"));
        }
        let most = self.bytes.len().max(PIECE) as u64;
        self.ended = (&mut self.from).take(most).read_to_end(&mut self.bytes)? == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comes in pieces of so many bytes.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let len = buf.len().min(self.1);
            self.0.read(&mut buf[..len])
        }
    }

    fn names(json: impl Read) -> Result<Vec<String>, TableError> {
        let mut names = Vec::new();
        each(json, |entry| {
            names.push(entry.name.clone());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn entries_come_in_order_however_they_arrive() {
        let long = "n".repeat(3 * PIECE);
        let json = format!(
            " {{ \"other\" : [1, {{\"entries\": []}}], \"version\":1\n,\t\"entries\" : [ {{\"name\":\"a\\\"}}\"}} ,\r{{\"name\":\"{long}\"}},{{}}], \"n\":17}} \n"
        );
        for pieces in [1, 7, PIECE, json.len()] {
            let found = names(Pieces(json.as_bytes(), pieces)).unwrap();
            assert!(found == ["a\"}", &long, ""], "{pieces}");
        }
        for none in [r#"{"entries":[],"version":1}"#, r#"{"version":1,"entries": null}"#, r#"{"version":1}"#]
        {
            assert_eq!(names(none.as_bytes()).unwrap(), Vec::<String>::new());
        }
        // A number, a character and an escape at the end of what is read at once.
        for cut in
            [r#"{"n":12345,"version":1,"#, "{\"n\":\"ä\",\"version\":1,", r#"{"n":"\u00e4","version":1,"#]
        {
            for at in 0..cut.len() {
                let json = format!("{}{cut}\"entries\":[{{\"name\":\"a\"}}]}}", " ".repeat(PIECE - at));
                assert_eq!(names(json.as_bytes()).unwrap(), ["a"], "{cut} at {at}");
            }
        }
    }

    #[test]
    fn what_is_no_table_is_told() {
        let whole = r#"{"version":1,"entries":[{"name":"a"},{"name":"b"}]}"#;
        assert!(names(whole.as_bytes()).is_ok());
        for len in 0..whole.len() {
            let error = names(&whole.as_bytes()[..len]);
            assert!(matches!(error, Err(TableError::Json(_) | TableError::Form(_))), "{len}: {error:?}");
        }
        for form in [
            r#"{"version":1,"entries":[{"name":"a"},]}"#,
            r#"{"version":1,"entries":[{"name":"a"}{"name":"b"}]}"#,
            r#"{"version":1,"entries":[{"name":"a"}}"#,
            r#"{"version":1,"entries":{"name":"a"}}"#,
            r#"{"version":1,"entries":[17]}"#,
            r#"{"version":"1","entries":[]}"#,
            r#"{"version":1 "entries":[]}"#,
            r#"{"version":1,"entries":[]}x"#,
            r#"{"version":1,"entries":[],"entries":[]}"#,
            r#"{"version":1,"version":1,"entries":[]}"#,
            r#"{"version":1,"entries":nul}"#,
            "\u{feff}{\"version\":1,\"entries\":[]}",
            &format!(r#"{{"version":1,"other":"{}"}}"#, "x".repeat(3 * LONGEST)),
            r#"{"version":1,"entries":[]}{}"#,
            r#"{,}"#,
            r#"[]"#,
        ] {
            let error = names(form.as_bytes());
            assert!(matches!(error, Err(TableError::Json(_) | TableError::Form(_))), "{form}: {error:?}");
        }
        for (json, version) in [("{}", 0), (r#"{"version":2,"entries":[]}"#, 2), (r#"{"version":12}"#, 12)] {
            assert!(matches!(names(Pieces(json.as_bytes(), 1)), Err(TableError::Version(v)) if v == version));
        }
    }
}
