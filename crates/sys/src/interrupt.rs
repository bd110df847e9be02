//! Cutting short a system call of another thread.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// The signal that does it. Nobody misses it: by default it is ignored, and it means out-of-band data of sockets to
/// those who ask for it, which nobody here does.
const SIGNAL: libc::c_int = libc::SIGURG;

/// A thread of this process that may be interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Interruptible(libc::pid_t);

impl Interruptible {
    /// Makes the calling thread one.
    ///
    /// Gives `SIGURG` a handler that does nothing, for the whole process, and lets this thread receive it.
    pub fn current() -> io::Result<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: a `sigaction` of zeros is a valid one without flags: no SA_RESTART, so that calls end with EINTR.
        // The handler does nothing, so it is safe in any thread at any time. The set is made by `sigemptyset` before
        // it is used, and the pointers that may be null are. No safe interface installs a handler.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            if libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGNAL);
            match libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut()) {
                0 => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Ok(Self(rustix::thread::gettid().as_raw_pid()))
    }

    /// Ends the thread's system call, if it is in one that waits, with `EINTR`; otherwise does nothing.
    ///
    /// If the thread is gone its number may be another's of this process, which then is interrupted instead.
    pub fn interrupt(self) -> io::Result<()> {
        let process = rustix::process::getpid().as_raw_pid();
        // SAFETY: three numbers, no memory. The signal has a handler, or else is ignored. rustix has no such call.
        let done = unsafe { libc::syscall(libc::SYS_tgkill, process, self.0, SIGNAL) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_read_that_waits_is_cut_short() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let (tell, told) = mpsc::channel();
        let read = thread::spawn(move || {
            tell.send(Interruptible::current().unwrap()).unwrap();
            rustix::io::read(&reader, &mut [0; 1])
        });
        let thread = told.recv().unwrap();
        // It may not have begun to read yet.
        while !read.is_finished() {
            thread.interrupt().unwrap_or_default();
            thread::yield_now();
        }
        assert_eq!(read.join().unwrap(), Err(rustix::io::Errno::INTR));
    }
}
