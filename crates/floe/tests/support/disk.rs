//! File systems that the kernel's own read path works on, each in a file in memory: it is fast, and can be filled up.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use super::{program, tool};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    /// Returns the program that makes one, and what it takes not to ask.
    fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-m", "0"]),
            Self::Xfs => ("mkfs.xfs", &["-q"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q"]),
        }
    }

    /// Returns whether one can be made here.
    pub fn can_be_made(self) -> bool {
        program(self.mkfs().0).is_some() && Path::new("/dev/loop-control").exists()
    }
}

/// Makes a file system of so many bytes in a directory `backing` and mounts it at another one.
pub fn make(kind: Kind, size: u64, backing: &Path, at: &Path) {
    fs::create_dir(backing).unwrap();
    mount("floe-e2e", backing, "tmpfs", MountFlags::empty(), c"size=3g,mode=700").unwrap();
    let image = backing.join("disk");
    File::create(&image).unwrap().set_len(size).unwrap();
    let (mkfs, options) = kind.mkfs();
    tool(Command::new(program(mkfs).unwrap()).args(options).arg(&image));
    // The loop device goes with the mount.
    tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at));
}
