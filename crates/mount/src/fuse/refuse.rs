//! Requests of a mount that nobody serves: they end with `EIO`, and the mount stays for who serves it next.
//!
//! Only what the device has given can be answered, so what a dead process had read is asked for again first (Linux 6.9; before, its
//! readers wait on). The device's open file is shared with those who serve it later: it does not block while we read it, and blocks again
//! when we are done.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::filesystem::REQUEST;
use super::wire;

/// The kernel gives nothing to a buffer that would not hold the longest request there may be: the header, and a write's.
const BUFFER: usize = REQUEST as usize + 4096;

/// Requests that are refused before somebody else is listened to: readers that try again at once would keep us for ever.
const AT_ONCE: usize = 64;

/// Begins; what was read and not answered comes again.
pub(crate) fn begin(device: impl AsFd) -> io::Result<()> {
    set_blocking(&device, false)?;
    match rustix::io::write(&device, &wire::resend()) {
        // An older kernel: only what comes from now on.
        Ok(_) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Refuses what waits; an error says that there is nothing more to come from this device.
pub(crate) fn refuse(device: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.resize(BUFFER, 0);
    for _ in 0..AT_ONCE {
        let len = match rustix::io::read(&device, &mut buffer[..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::NOENT) => continue, // its reader has gone
            Err(error) => return Err(error.into()),
        };
        if let Some(answer) = wire::refusal(&buffer[..len]) {
            let _ = rustix::io::write(&device, &answer); // its reader has gone
        }
    }
    Ok(())
}

/// Leaves the device to who serves it.
pub(crate) fn end(device: impl AsFd) -> io::Result<()> {
    set_blocking(&device, true)
}

fn set_blocking(device: impl AsFd, blocking: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(&device)?;
    flags.set(OFlags::NONBLOCK, !blocking);
    Ok(fcntl_setfl(&device, flags)?)
}
