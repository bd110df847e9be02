//! The first look at a tree: which inodes names lead to, in which order they will lie, how many names each has,
//! and which time most of them share.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::WriteError;
use crate::name::printable;
use crate::tree::{InodeNo, Kind, Meta, Time, Tree};

/// What is known of a tree before anything is placed.
pub(crate) struct Survey {
    /// Reachable inodes: a directory, then what is in it but directories, then its subdirectories likewise.
    pub(crate) order: Vec<InodeNo>,
    /// `st_nlink` by inode number; 0 for inodes that no name leads to.
    links: Vec<u32>,
    /// The directory of the first name, by inode number; the root's is the root.
    parents: Vec<InodeNo>,
    /// The most frequent modification time of inodes that could be compact.
    pub(crate) time: Time,
}

impl Survey {
    /// Walks a tree from its root.
    pub(crate) fn of(tree: &Tree) -> Result<Self, WriteError> {
        let count = tree.inodes.len();
        let mut survey = Self {
            order: Vec::with_capacity(count),
            links: vec![0; count],
            parents: vec![Tree::ROOT; count],
            time: Time::default(),
        };
        survey.links[0] = 2;
        // Not recursive: depth is up to whoever made the image.
        let mut stack = vec![Tree::ROOT];
        while let Some(directory) = stack.pop() {
            survey.enter(tree, directory, &mut stack)?;
        }
        survey.time = survey.most_frequent_time(tree);
        Ok(survey)
    }

    /// Returns the number of names of an inode, as `stat` tells it.
    pub(crate) fn links(&self, inode: InodeNo) -> u32 {
        self.links[inode.0 as usize]
    }

    /// Returns the directory in which an inode has its first name.
    pub(crate) fn parent(&self, inode: InodeNo) -> InodeNo {
        self.parents[inode.0 as usize]
    }

    /// Says whether owner and number of names fit the short form of an inode; size and time are other questions.
    pub(crate) fn small(&self, inode: InodeNo, meta: &Meta) -> bool {
        let limit = u32::from(u16::MAX);
        meta.uid <= limit && meta.gid <= limit && self.links(inode) <= limit
    }

    /// Returns the path of an inode, without the leading slash, fit to print.
    pub(crate) fn path(&self, tree: &Tree, inode: InodeNo) -> String {
        let mut names = Vec::new();
        let mut at = inode;
        while at != Tree::ROOT {
            let parent = self.parent(at);
            let Kind::Dir(entries) = &tree.inode(parent).kind else { break };
            let name = entries.iter().find(|(_, child)| **child == at);
            names.push(name.map_or_else(String::new, |(name, _)| printable(name.as_bytes())));
            at = parent;
        }
        names.reverse();
        names.join("/")
    }

    fn enter(&mut self, tree: &Tree, directory: InodeNo, stack: &mut Vec<InodeNo>) -> Result<(), WriteError> {
        self.order.push(directory);
        let Kind::Dir(entries) = &tree.inode(directory).kind else { return Ok(()) };
        let first = stack.len();
        for (name, &child) in entries {
            let links = &mut self.links[child.0 as usize];
            let is_dir = matches!(tree.inode(child).kind, Kind::Dir(_));
            if is_dir && *links != 0 {
                let mut path = self.path(tree, directory);
                if !path.is_empty() {
                    path.push('/');
                }
                return Err(WriteError::DirectoryTwice { path: path + &name.to_string() });
            }
            if *links == 0 {
                self.parents[child.0 as usize] = directory;
            }
            if is_dir {
                *links = 2;
                self.links[directory.0 as usize] += 1;
                stack.push(child);
            } else {
                if *links == 0 {
                    self.order.push(child);
                }
                *links += 1;
            }
        }
        stack[first..].reverse();
        Ok(())
    }

    fn most_frequent_time(&self, tree: &Tree) -> Time {
        let mut counts: HashMap<Time, u32> = HashMap::new();
        for &number in &self.order {
            let meta = &tree.inode(number).meta;
            if self.small(number, meta) {
                *counts.entry(meta.mtime).or_default() += 1;
            }
        }
        // The order of a hash map must not show: of equally frequent times, the earliest.
        let most = counts.into_iter().max_by_key(|&(time, count)| (count, Reverse(time)));
        most.map_or_else(Time::default, |(time, _)| time)
    }
}
