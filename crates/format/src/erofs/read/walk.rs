//! Visiting every name of an image, and finding the names of an inode.

use std::ops::ControlFlow;

use super::{Corrupt, Entry, Image, Kind, Nid};
use crate::limits;

/// A name that a walk has come to.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Path from the root, without a leading slash.
    pub path: &'a [u8],
    /// The entry at the end of it.
    pub entry: Entry<'a>,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Visits all names but "." and "..", parents first, in the order of the image, until told to stop.
    ///
    /// Bounded whatever the image holds: by [`limits::ENTRIES`] names and by [`limits::PATH`], past which a
    /// directory that contains itself ends, too.
    pub fn walk(&self, mut visit: impl FnMut(Step<'_>) -> ControlFlow<()>) -> Result<(), Corrupt> {
        let mut path = Vec::new();
        // Directories that are open: inode, where to go on, length of their path.
        let mut open = vec![(self.inode(self.root())?, 0, 0)];
        let mut budget = limits::ENTRIES;
        while let Some((dir, cookie, base)) = open.last_mut() {
            path.truncate(*base);
            let Some(entry) = self.entries(dir, *cookie)?.next().transpose()? else {
                open.pop();
                continue;
            };
            *cookie = entry.next;
            budget = budget.checked_sub(1).ok_or(dir.corrupt("more names than an image may have"))?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
            if path.len() > limits::PATH {
                return Err(dir.corrupt("path too long: a directory in itself?"));
            }
            if visit(Step { path: &path, entry }).is_break() {
                return Ok(());
            }
            if entry.kind == Kind::Dir {
                open.push((self.inode(entry.nid)?, 0, path.len()));
            }
        }
        Ok(())
    }

    /// Says whether any inode has a POSIX access control list. Costs a walk of the image.
    pub fn has_acls(&self) -> bool {
        let has = |nid| {
            let inode = self.inode(nid)?;
            let found = self.xattrs(&inode)?.flatten().any(|x| x.prefix.starts_with(b"system.posix_acl_"));
            Ok::<_, Corrupt>(found)
        };
        // What is damaged cannot be served, with a list or without.
        let mut found = has(self.root()).unwrap_or_default();
        let walked = self.walk(|step| {
            found |= has(step.entry.nid).unwrap_or_default();
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let _ = walked; // as above
        found
    }

    /// Returns the first path that leads to an inode, from the root and with a leading slash.
    ///
    /// Costs a walk of the image: for messages, not for serving.
    pub fn path_of(&self, nid: Nid) -> Option<Vec<u8>> {
        if nid == self.root() {
            return Some(b"/".to_vec());
        }
        let mut found = None;
        let walked = self.walk(|step| {
            if step.entry.nid != nid {
                return ControlFlow::Continue(());
            }
            found = Some([b"/", step.path].concat());
            ControlFlow::Break(())
        });
        let _ = walked; // a damaged image has fewer names; none is as good an answer as the error
        found
    }
}
