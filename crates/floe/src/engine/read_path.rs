//! The ways in which an image can be read.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// By which way a process reads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReadPath {
    /// The best of them that works here
    #[default]
    Auto,
    /// The kernel's EROFS, which asks for what is missing (Linux 6.14, root)
    Erofs,
    /// The kernel's EROFS alone: for an image that is all here (Linux 6.12, root)
    Plain,
    /// A FUSE server
    Fuse,
}

impl std::fmt::Display for ReadPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl ReadPath {
    /// Returns its name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Erofs => "erofs",
            Self::Plain => "plain",
            Self::Fuse => "fuse",
        }
    }

    /// Says whether who wants this is served by a mount that is read in another way.
    pub(super) fn takes(self, other: Self) -> bool {
        match self {
            Self::Auto => true,
            Self::Erofs => matches!(other, Self::Erofs | Self::Plain),
            Self::Plain | Self::Fuse => self == other,
        }
    }
}
