//! Whiteouts: what a layer hides of those below it.

use std::sync::Arc;

use super::Builder;
use crate::name::Name;
use crate::tree::{InodeNo, Meta};

impl Builder {
    /// Hides what lower layers have under a name.
    pub(super) fn hide(&mut self, dir: InodeNo, name: &[u8]) {
        let Some(inode) = self.tree.entry(dir, name) else { return };
        if self.keeps(dir, name, inode) {
            return;
        }
        if let Some(entries) = self.tree.entries_mut(dir) {
            entries.remove(name);
        }
        self.parent = None;
    }

    /// Hides all entries that lower layers have in a directory. Recurses as deep as directories nest: a path has at
    /// most [`PATH`](crate::limits::PATH) bytes.
    pub(super) fn hide_entries(&mut self, dir: InodeNo) {
        // A directory of this layer holds nothing else, and one is not searched twice.
        if dir.0 >= self.first || !self.hidden.insert(dir) {
            return;
        }
        let Some(entries) = self.tree.entries_mut(dir) else { return };
        let mut entries = std::mem::take(entries);
        entries.retain(|name, inode| self.keeps(dir, name.as_bytes(), *inode));
        if let Some(place) = self.tree.entries_mut(dir) {
            *place = entries;
        }
        self.parent = None;
    }

    /// Hides what lies below an entry; says whether this layer needs the entry itself.
    fn keeps(&mut self, dir: InodeNo, name: &[u8], inode: InodeNo) -> bool {
        if inode.0 >= self.first {
            return true;
        }
        if !self.tree.is_dir(inode) {
            return Name::parse(name).is_ok_and(|name| self.linked.contains(&(dir, name)));
        }
        self.hide_entries(inode);
        if self.described.contains(&inode) {
            return true;
        }
        let is_empty = self.tree.entries_mut(inode).is_none_or(|entries| entries.is_empty());
        if is_empty && !self.hiding.contains(&inode) {
            return false;
        }
        let xattrs = Arc::clone(&self.no_xattrs);
        self.tree.inode_mut(inode).meta = Meta { mode: 0o755, xattrs, ..Meta::default() };
        true
    }
}
