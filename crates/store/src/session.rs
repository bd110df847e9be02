//! Whether the bytes below a segment's size can be trusted after the last shutdown.
//!
//! Segments are written without a sync: a reader waits for each of them. As long as the kernel lives that is
//! safe, whatever happens to our processes: what `write(2)` accepted is what `read(2)` returns. After a power
//! loss or a kernel crash a file may have its size and not its bytes. So the store has an *era*, a name that
//! changes at the first start after such a crash, and each layer remembers the era in which it was last
//! known to be good. A layer of another era is suspect: its segments are re-hashed before they are used,
//! each when it is first wanted, so no image waits for another's check. Layers that were synced as a whole
//! (`segments.rs`, sealed) are beyond harm and never suspect.
//!
//! The file `SESSION` holds the era, the boot in which it was written, and whether the store was closed
//! cleanly, which includes a sync of the whole file system. The era goes on if it was, or if the boot is still
//! the same one; otherwise the id of the present boot names the next era. A lost or damaged `SESSION` begins
//! an era, which costs time and never trust.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::record::{self, Kind};
use crate::store::Store;

const PATH: &str = "SESSION";
const LIMIT: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Session {
    era: String,
    boot: String,
    clean: bool,
}

/// Begins a session and returns its era; from here on a power loss makes the store unclean.
pub(crate) fn begin(store: &Store, boot: &str) -> Result<String, StoreError> {
    let era = next_era(last(store)?.as_ref(), boot);
    tracing::debug!(era, boot, "session begins");
    match write(store, &era, boot, false) {
        // Removing needs no room, and a missing session is an unclean one. `gc` must be able to run.
        Err(StoreError::Full { .. }) => store.remove_durably(Path::new(PATH))?,
        result => result?,
    }
    Ok(era)
}

/// Ends a session after everything has been synced.
pub(crate) fn end(store: &Store, era: &str, boot: &str) -> Result<(), StoreError> {
    write(store, era, boot, true)
}

/// Returns the id of this boot of the kernel, or a name no other boot has if the kernel does not tell.
pub(crate) fn this_boot() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
        _ => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            format!("unknown-{}-{}", std::process::id(), now.as_nanos())
        }
    }
}

fn last(store: &Store) -> Result<Option<Session>, StoreError> {
    let body = match record::read(store, Kind::Session, Path::new(PATH), LIMIT) {
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!(%error, "the last session is unknown: segments will be checked before use");
            None
        }
        body => body?,
    };
    Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
}

fn next_era(last: Option<&Session>, boot: &str) -> String {
    match last {
        Some(last) if last.clean || last.boot == boot => last.era.clone(),
        _ => boot.to_owned(),
    }
}

fn write(store: &Store, era: &str, boot: &str, clean: bool) -> Result<(), StoreError> {
    let session = Session { era: era.to_owned(), boot: boot.to_owned(), clean };
    record::write(store, Kind::Session, Path::new(PATH), &crate::record::json(&session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_ends_only_with_a_lost_kernel() {
        let last = |boot: &str, clean| Session { era: "e".into(), boot: boot.into(), clean };
        for (session, boot, era) in [
            (None, "b", "b"),
            (Some(last("a", true)), "b", "e"),
            (Some(last("b", false)), "b", "e"),
            (Some(last("a", false)), "b", "b"),
        ] {
            assert_eq!(next_era(session.as_ref(), boot), era, "{session:?}");
        }
    }
}
