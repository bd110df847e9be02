//! An OCI archive on standard input, kept in a file without a name: what is in it is read in another order.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use tokio::sync::oneshot;

use super::{BLOCK, check};
use crate::error::Error;
use crate::{limits, scratch};

const WHAT: &str = "an OCI archive on standard input";

/// Reads standard input to its end.
pub(crate) async fn keep() -> Result<File, Error> {
    let (tell, told) = oneshot::channel();
    // Not one of the runtime's threads: it waits for those when it ends, and whoever writes may never come to an end.
    let reading = std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let stdin = io::stdin().lock();
        let kept = match stdin.is_terminal() {
            true => Err(Error::invalid(WHAT, "it is a terminal; pipe an archive into it")),
            false => copy(stdin, &scratch::dir()),
        };
        let _ = tell.send(kept); // nobody waits any more
    });
    let doing = |error| Error::io(format!("reading {WHAT}"), error);
    reading.map_err(doing)?;
    told.await.map_err(|error| doing(io::Error::other(error)))?
}

/// Copies an archive into a file of a directory. What is no archive is not read further than its first block.
fn copy(mut from: impl Read, dir: &Path) -> Result<File, Error> {
    let reading = |error| Error::io(format!("reading {WHAT}"), error);
    let keeping = |error| Error::io(format!("keeping {WHAT} in {} (TMPDIR)", dir.display()), error);
    let mut first = Vec::new();
    from.by_ref().take(BLOCK).read_to_end(&mut first).map_err(reading)?;
    match <&[u8; 512]>::try_from(&first[..]) {
        Ok(header) => check(header, 0).map_err(reading)?,
        Err(_) if first.is_empty() => return Err(Error::invalid(WHAT, "there is nothing")),
        Err(_) => return Err(Error::invalid(WHAT, "it is no tar file")),
    }
    let mut file = scratch::file(dir).map_err(keeping)?;
    file.write_all(&first).map_err(keeping)?;
    let mut piece = vec![0; usize::try_from(limits::PIECE).unwrap_or(usize::MAX)];
    let mut size = BLOCK;
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(file),
            Ok(n) => {
                size += n as u64;
                if size > format::limits::LAYER {
                    return Err(Error::TooLarge { what: WHAT.into(), size, limit: format::limits::LAYER });
                }
                file.write_all(&piece[..n]).map_err(keeping)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(reading(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tests::member;

    #[test]
    fn an_archive_is_kept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tar = [member("a", b'0', &[7; 700_000]), vec![0; 1024]].concat();
        let mut kept = copy(&tar[..], dir.path()).unwrap();
        assert_eq!(crate::archive::members(&mut kept).unwrap()["a"].len, 700_000);
        for (bytes, why) in [
            (&b""[..], "nothing"),
            (&b"short"[..], "no tar file"),
            (&[1; 600][..], "no tar file"),
            (&[&[0x1f, 0x8b][..], &[1; 600]].concat()[..], "gunzip"),
        ] {
            let error = copy(bytes, dir.path()).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(format!("{error}: {cause}").contains(why), "{error}: {cause}");
        }
        let error = copy(&tar[..], &dir.path().join("missing")).unwrap_err();
        assert!(error.to_string().contains("TMPDIR"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
