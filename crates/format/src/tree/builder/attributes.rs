//! Extended attributes: which an inode keeps, and one copy of equal sets.

use std::sync::Arc;

use super::{Builder, TreeProblem, too_large};
use crate::limits;
use crate::tree::Xattrs;

/// What decides about the extended attributes an inode can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Dir,
    File,
    Symlink,
    Special,
}

impl Sort {
    fn keeps(self, name: &[u8]) -> bool {
        let within = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
        if within(b"trusted.overlay.") || within(b"user.overlay.") {
            return false;
        }
        match name {
            b"system.posix_acl_access" => self != Sort::Symlink,
            b"system.posix_acl_default" => self == Sort::Dir,
            _ if within(b"user.") => matches!(self, Sort::Dir | Sort::File),
            _ => within(b"trusted.") || within(b"security.") || within(b"lustre."),
        }
    }
}

impl Builder {
    pub(super) fn xattrs(&mut self, all: &Xattrs, sort: Sort) -> Result<Xattrs, TreeProblem> {
        if all.is_empty() {
            return Ok(Arc::clone(&self.no_xattrs));
        }
        let kept = all.keys().filter(|name| sort.keeps(name)).count();
        if kept == all.len() {
            return self.intern(Arc::clone(all));
        }
        let kept =
            all.iter().filter(|(name, _)| sort.keeps(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
        self.intern(Arc::new(kept))
    }

    pub(super) fn intern(&mut self, xattrs: Xattrs) -> Result<Xattrs, TreeProblem> {
        if xattrs.is_empty() {
            return Ok(Arc::clone(&self.no_xattrs));
        }
        if let Some(known) = self.xattrs.get(&xattrs) {
            return Ok(Arc::clone(known));
        }
        let mut total = 0;
        for (name, value) in xattrs.iter() {
            if name.len() > limits::XATTR_NAME {
                return Err(too_large("the name of an extended attribute", limits::XATTR_NAME as u64));
            }
            if value.len() > limits::XATTR_VALUE {
                return Err(too_large("an extended attribute", limits::XATTR_VALUE as u64));
            }
            total += name.len() + value.len();
        }
        if total > limits::XATTR_TOTAL {
            return Err(too_large("the extended attributes of one file", limits::XATTR_TOTAL as u64));
        }
        self.xattr_bytes += total as u64;
        if self.xattr_bytes > limits::XATTRS {
            return Err(too_large("the different extended attributes of all files", limits::XATTRS));
        }
        self.xattrs.insert(Arc::clone(&xattrs));
        Ok(xattrs)
    }
}
