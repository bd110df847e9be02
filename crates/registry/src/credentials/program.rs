//! Programs that are asked for credentials.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::limits;

/// What a program printed, and how it ended.
pub(super) struct Answer {
    pub(super) output: Vec<u8>,
    pub(super) status: ExitStatus,
}

/// Runs a program that is asked over its standard input, for at most so long. The error is fit to print.
pub(super) fn ask(mut command: Command, question: &[u8], time: Duration) -> Result<Answer, String> {
    let deadline = Instant::now() + time;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read it will fail in its own words.
        let _ = stdin.write_all(question);
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    if let Some(stdout) = child.stdout.take() {
        // A thread, because a child of the program can keep the pipe open after the program was killed.
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let result = stdout.take(limits::HELPER_OUTPUT).read_to_end(&mut text).map(|_| text);
            let _ = sender.send(result); // nobody listens after the time is over
        });
    }
    let output = receiver.recv_timeout(time);
    let status = end(&mut child, deadline).map_err(|error| error.to_string())?;
    let Ok(output) = output else { return Err(format!("gave no answer in {} s", time.as_secs_f32())) };
    Ok(Answer { output: output.map_err(|error| error.to_string())?, status })
}

/// Waits for the end of a program; kills it at the deadline.
fn end(child: &mut Child, deadline: Instant) -> std::io::Result<ExitStatus> {
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(1)); // std has no wait with a time limit
    }
    child.kill()?;
    child.wait()
}
