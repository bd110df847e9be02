//! Limits on waiting: whatever is broken, there is an answer.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// How long one trial may take. It takes milliseconds.
pub(super) const TRIAL: Duration = Duration::from_secs(10);

/// How often the end of a program is looked for.
const AGAIN: Duration = Duration::from_millis(5);

/// What is read of what a program prints, in bytes: less than fits in its pipe, so that it never waits for us.
const PRINTED: u64 = 4096;

/// Returns what `work` returns, or nothing if that takes longer; the work is then left to itself.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = channel();
    let run = move || {
        let _ = sender.send(work()); // nobody waits any more
    };
    std::thread::Builder::new().name("trial".into()).spawn(run).ok()?;
    receiver.recv_timeout(limit).ok()
}

/// Runs a program that prints little; one that does not end in time is killed.
pub(super) fn output(command: &mut Command, limit: Duration) -> std::io::Result<(bool, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < until => std::thread::sleep(AGAIN),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
        }
    };
    // A child of its own may still hold the pipe: what is there is enough.
    let said = within(AGAIN * 20, move || {
        let mut said = String::new();
        let _ = child.stdout.take().map(|out| out.take(PRINTED).read_to_string(&mut said)); // half a line will do
        said
    });
    Ok((status.success(), said.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn what_takes_too_long_is_left() {
        let (held, hold) = channel::<()>();
        assert_eq!(within(TRIAL, || 7), Some(7));
        assert_eq!(within(SHORT, move || hold.recv().is_ok()), None);
        drop(held);
    }

    #[test]
    fn programs_end_in_time_or_are_ended() {
        let sh = |script: &str| output(Command::new("/bin/sh").args(["-c", script]), SHORT * 40);
        assert_eq!(sh("echo one; echo two >&2").unwrap(), (true, "one\n".to_owned()));
        assert!(!sh("exit 3").unwrap().0);
        let error = output(Command::new("/bin/sleep").arg("600"), SHORT).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(output(&mut Command::new("/nonexistent/x"), SHORT).is_err());
    }
}
