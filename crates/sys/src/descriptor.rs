//! Pointing the number of an open descriptor at something else.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::DupFlags;

/// The number of a descriptor that somebody else owns and keeps open.
///
/// A library that takes a descriptor reads and writes it by its number for as long as it runs. Here is how to put
/// another file behind that number while it does.
#[derive(Debug, Clone, Copy)]
pub struct Number(RawFd);

impl Number {
    /// Notes the number of an open descriptor.
    pub fn of(descriptor: &impl AsFd) -> Self {
        Self(descriptor.as_fd().as_raw_fd())
    }

    /// Puts a file behind the number, closed on exec, in place of what was there.
    ///
    /// Calls that use the number from here on reach that file; one under way ends with the former. The owner must
    /// still have the number open and must expect this: a closed number may already be somebody else's.
    pub fn redirect(self, to: &impl AsFd) -> io::Result<()> {
        // SAFETY: the number is open, by the contract above, and is not closed here: `ManuallyDrop` leaves it to its
        // owner. Safe code would need the owner's `OwnedFd`, which the library that owns it does not give out.
        let mut owned = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.0) });
        Ok(rustix::io::dup3(to, &mut owned, DupFlags::CLOEXEC)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_number_shows_another_file_and_stays_its_owners() {
        let (mut one, mut its_peer) = UnixStream::pair().unwrap();
        let (other, mut others_peer) = UnixStream::pair().unwrap();
        let number = Number::of(&one);
        number.redirect(&other).unwrap();
        drop(other);
        others_peer.write_all(b"new").unwrap();
        let mut read = [0; 3];
        one.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"new");
        assert_eq!(its_peer.read(&mut read).unwrap(), 0, "the former file is closed");
        let flags = rustix::io::fcntl_getfd(&one).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        drop(one);
        assert_eq!(others_peer.read(&mut read).unwrap(), 0, "its owner closed it");
    }
}
