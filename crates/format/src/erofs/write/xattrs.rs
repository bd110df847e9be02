//! Extended attributes: those that several inodes have are stored once, the others with their inode.

use std::collections::{BTreeMap, HashMap};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::WriteError;
use super::survey::Survey;
use crate::erofs::disk::{self, BLOCK, XattrEntry, XattrHeader};
use crate::limits;
use crate::name::printable;
use crate::tree::{InodeNo, Tree};

/// Extended attributes of one inode.
type Set = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Which attributes are shared, and where.
pub(crate) struct XattrPlan<'a> {
    /// Shared attributes: name and value to id. An id counts 4-byte units from `block`.
    ids: HashMap<(&'a [u8], &'a [u8]), u32>,
    /// The shared entries.
    pub(crate) shared: Vec<u8>,
    /// Block from which ids count.
    pub(crate) block: u32,
}

/// The attributes of one inode, split.
struct Split<'s> {
    ids: Vec<u32>,
    inline: Vec<(&'s [u8], &'s [u8])>,
}

impl<'a> XattrPlan<'a> {
    /// Shares none.
    pub(crate) fn apart(tree: &Tree, survey: &Survey) -> Result<Self, WriteError> {
        for &number in &survey.order {
            for (name, value) in tree.inode(number).meta.xattrs.iter() {
                check(name, value, tree, survey, number)?;
            }
        }
        Ok(Self { ids: HashMap::new(), shared: Vec::new(), block: 0 })
    }

    /// Decides what is shared; the shared area begins `at` bytes into the image, a multiple of 4.
    pub(crate) fn new(tree: &'a Tree, survey: &Survey, at: usize) -> Result<Self, WriteError> {
        let block = u32::try_from(at / BLOCK).map_err(|_| WriteError::TooLarge)?;
        let mut plan = Self { ids: HashMap::new(), shared: Vec::new(), block };
        let mut counts: HashMap<(&[u8], &[u8]), u32> = HashMap::new();
        for &number in &survey.order {
            for (name, value) in tree.inode(number).meta.xattrs.iter() {
                check(name, value, tree, survey, number)?;
                *counts.entry((name, value)).or_default() += 1;
            }
        }
        // In the order of the inodes, never in that of the hash map.
        for &number in &survey.order {
            for (name, value) in tree.inode(number).meta.xattrs.iter() {
                let key = (&**name, &**value);
                if counts.get(&key).is_some_and(|count| *count > 1) && !plan.ids.contains_key(&key) {
                    let id = (at % BLOCK + plan.shared.len()) / 4;
                    plan.ids.insert(key, u32::try_from(id).map_err(|_| WriteError::TooLarge)?);
                    append(&mut plan.shared, name, value);
                    if plan.shared.len() as u64 > limits::METADATA {
                        return Err(WriteError::TooLarge);
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Returns the `xattr_count` of an inode, or nothing where its attributes do not fit.
    pub(crate) fn count(&self, set: &Set) -> Option<u16> {
        if set.is_empty() {
            return Some(0);
        }
        let split = self.split(set);
        let inline = split
            .inline
            .iter()
            .map(|(name, value)| disk::xattr_entry_size(disk::split_xattr_name(name).1.len(), value.len()));
        u16::try_from(1 + split.ids.len() + inline.sum::<usize>() / 4).ok()
    }

    /// Returns the bytes that follow an inode which has attributes.
    pub(crate) fn body(&self, set: &Set) -> Vec<u8> {
        let split = self.split(set);
        // At most 255, see `split`.
        let shared = u8::try_from(split.ids.len()).unwrap_or(u8::MAX);
        let head = XattrHeader { name_filter: U32::ZERO, shared, reserved: [0; 7] };
        let mut out = head.as_bytes().to_vec();
        for id in split.ids {
            out.extend_from_slice(&id.to_le_bytes());
        }
        for (name, value) in split.inline {
            append(&mut out, name, value);
        }
        out
    }

    fn split<'s>(&self, set: &'s Set) -> Split<'s> {
        let mut split = Split { ids: Vec::new(), inline: Vec::new() };
        for (name, value) in set {
            match self.ids.get(&(&**name, &**value)) {
                // The count of shared ids is a byte.
                Some(&id) if split.ids.len() < usize::from(u8::MAX) => split.ids.push(id),
                _ => split.inline.push((name, value)),
            }
        }
        split
    }
}

fn check(name: &[u8], value: &[u8], tree: &Tree, survey: &Survey, number: InodeNo) -> Result<(), WriteError> {
    let sound = !name.is_empty() && name.len() <= limits::XATTR_NAME && !name.contains(&0);
    if sound && value.len() <= limits::XATTR_VALUE {
        return Ok(());
    }
    Err(WriteError::Xattr { path: survey.path(tree, number), name: printable(name) })
}

/// Appends one entry; name and value have been checked, so their lengths fit.
fn append(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let (name_index, rest) = disk::split_xattr_name(name);
    let name_len = u8::try_from(rest.len()).unwrap_or(u8::MAX);
    let value_len = U16::new(u16::try_from(value.len()).unwrap_or(u16::MAX));
    let end = out.len() + disk::xattr_entry_size(rest.len(), value.len());
    out.extend_from_slice(XattrEntry { name_len, name_index, value_len }.as_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(end, 0);
}
