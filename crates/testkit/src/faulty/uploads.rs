//! What a registry does when something is pushed, as far as clients need it. Digests are believed.

use super::{Answer, Content, Seen, State};

/// Where an upload goes on.
const UPLOADS: &str = "/blobs/uploads/";

impl State {
    /// Answers a push, if it is one and they are taken.
    pub(super) fn taken(&mut self, seen: &Seen) -> Option<Answer> {
        let place = match &*seen.method {
            "POST" if self.takes && seen.path.ends_with(UPLOADS) => {
                return Some(Answer::status(202).with("Location", format!("{}one", seen.path)));
            }
            "PUT" if self.takes => named(seen)?,
            _ => return None,
        };
        let kind = seen.headers.get("content-type").cloned().unwrap_or_default();
        let content = Content { kind, bytes: seen.body.as_slice().into(), headers: Vec::new() };
        self.content.insert(place.clone(), content);
        Some(Answer::status(201).with("Location", place))
    }
}

/// Returns under which path it can be had afterwards.
fn named(seen: &Seen) -> Option<String> {
    let Some((repository, _)) = seen.path.split_once(UPLOADS) else {
        return seen.path.contains("/manifests/").then(|| seen.path.clone());
    };
    let digest = seen.query.split('&').find_map(|part| part.strip_prefix("digest="))?;
    Some(format!("{repository}/blobs/{}", digest.replace("%3A", ":")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};

    use super::super::{Fault, Faulty};

    #[test]
    fn what_is_pushed_can_be_had_and_misbehaves_then() {
        let server = Faulty::start();
        let ask = |head: &str, body: &str| {
            let mut stream = TcpStream::connect(server.host()).unwrap();
            write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text); // an answer without a body ends it
            text
        };
        let put = "PUT /v2/app/blobs/uploads/one?digest=sha256%3A00 HTTP/1.1";
        assert!(ask(put, "blob").starts_with("HTTP/1.1 404"));
        server.take_uploads();
        server.fault("/v2/app/blobs/sha256:00", Fault::Swap(b"bold".to_vec()), u32::MAX);
        assert!(ask("HEAD /v2/app/blobs/sha256:00 HTTP/1.1", "").starts_with("HTTP/1.1 404"));
        let begun = ask("POST /v2/app/blobs/uploads/ HTTP/1.1", "");
        assert!(begun.contains("Location: /v2/app/blobs/uploads/one\r\n"), "{begun}");
        assert!(ask(put, "blob").starts_with("HTTP/1.1 201"));
        assert!(ask("GET /v2/app/blobs/sha256:00 HTTP/1.1", "").ends_with("bold"));
        let put = "PUT /v2/app/manifests/v1 HTTP/1.1\r\nContent-Type: a/b";
        assert!(ask(put, "{}").starts_with("HTTP/1.1 201"));
        let named = ask("GET /v2/app/manifests/v1 HTTP/1.1", "");
        assert!(named.contains("Content-Type: a/b\r\n") && named.ends_with("{}"), "{named}");
    }
}
