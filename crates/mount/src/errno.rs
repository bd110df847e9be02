//! The errno that a process sees; chosen here and nowhere else.
//!
//! A read that fails is `EIO` whatever the reason: it is what programs expect of a file, and a kernel makes
//! `EIO` or `SIGBUS` of most others anyway when it fills its page cache. The reason goes to the observer.

use fuser::Errno;

use crate::fuse::names::Refused;
use crate::observe::Failure;

/// Returns the errno for a read that failed.
pub const fn of_read(why: &Failure) -> Errno {
    match why {
        Failure::Fetch(_) | Failure::Deadline | Failure::Disk(_) | Failure::Corrupt(_) => Errno::EIO,
        // Not EAGAIN or EBUSY: programs take those from a file as "try at once".
        Failure::Stopped | Failure::Crowded => Errno::EIO,
    }
}

/// Returns the name of the same.
pub const fn name_of_read(_: &Failure) -> &'static str {
    "EIO"
}

/// A structure of the metadata image is wrong.
pub const CORRUPT: Errno = Errno::EIO;

/// No such name.
pub const ABSENT: Errno = Errno::ENOENT;

/// A name that no file can have.
pub const TOO_LONG: Errno = Errno::ENAMETOOLONG;

/// No such extended attribute.
pub const NO_XATTR: Errno = Errno::ENODATA;

/// The caller's buffer is too small.
pub const TOO_SMALL: Errno = Errno::ERANGE;

/// An operation that the kernel shall not ask for again.
pub const NEVER: Errno = Errno::ENOSYS;

/// A control operation that a file here does not have.
pub const NO_CONTROL: Errno = Errno::ENOTTY;

/// Returns the errno for a layer that is not to be had: `ENOENT` says that it may be pulled in another way.
pub const fn of_layer(why: Refused) -> Errno {
    match why {
        Refused::Absent => ABSENT,
        Refused::Failed => Errno::EIO,
    }
}

/// What a server before this one told or opened.
pub const STALE: Errno = Errno::ESTALE;

/// More questions or open files than one may have.
pub const CROWDED: Errno = Errno::EMFILE;

/// A change that no file here takes.
pub const FIXED: Errno = Errno::EPERM;

/// No directory.
pub const NO_DIRECTORY: Errno = Errno::ENOTDIR;
