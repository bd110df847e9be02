//! Which mounts of the machine are ours.

use std::path::Path;

use anyhow::Context;
use sys::table::{self, Point};

/// Returns the kernel's table, in the order of mounting.
pub(super) fn mount_points() -> anyhow::Result<Vec<Point>> {
    table::points().context("reading /proc/self/mountinfo")
}

/// Says whether it looks like a mount of an image by us: FUSE says so, EROFS names a metadata image of a store.
pub(super) fn is_ours(point: &Point) -> bool {
    let image = || {
        let path = Path::new(&point.source);
        let named = path.file_name().is_some_and(|name| name.len() == 64);
        named && path.parent().and_then(Path::file_name).is_some_and(|dir| dir == "meta")
    };
    point.fs_type == "fuse.floe" || (point.fs_type == "erofs" && image())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_told_from_others() {
        let is = |fs_type: &str, source: &str| {
            let (fs_type, source) = (fs_type.into(), source.into());
            is_ours(&Point { path: "/m".into(), device: 40, fs_type, source })
        };
        assert!(is("fuse.floe", "floe"));
        assert!(is("erofs", &format!("/var/lib/floe/meta/{}", "a".repeat(64))));
        assert!(!is("erofs", "/dev/vda") && !is("erofs", "/images/base.erofs") && !is("fuse.sshfs", "floe"));
    }
}
