//! EROFS metadata images: a [`crate::tree::Tree`] in the form that the kernel mounts.
//!
//! An image holds names and attributes only. The bytes of files are on other devices, one per segment; an image
//! names those devices in its device table, so it says by itself which segment files it needs. The image of one layer, for others
//! to mount, has the bytes in itself ([`write::layer`]); an [`index`] is made of one.

pub mod disk;
#[cfg(test)]
pub(crate) mod fixture;
pub mod index;
#[cfg(test)]
mod kernel_tests;
pub mod read;
pub mod write;
