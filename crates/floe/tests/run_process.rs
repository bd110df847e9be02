//! What only a process of its own can show of a run: signals, being killed, a terminal, not being root.
//!
//! The test program starts itself: [`child`] is what the others run.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; the lint's own exception knows #[test] functions only"
)]

mod place;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use floe::run::Options;
use place::{Place, image};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// The runs other tests start in a process of its own, by name.
#[test]
fn child() {
    let Some(what) = std::env::var_os("FLOE_TEST_CHILD") else { return };
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let mut options = Options::new(path("FLOE_TEST_STORE"));
    options.state = path("FLOE_TEST_STATE");
    let script = match what.to_str().unwrap() {
        "signals" => {
            "for s in INT TERM HUP QUIT USR1 USR2; do trap \"echo got $s\" $s; done; trap 'echo bye; exit 7' USR2; \
             echo READY; while :; do sleep 0.01; done"
        }
        "deaf" => "trap '' TERM; echo READY; while :; do sleep 0.01; done",
        "tty" => {
            options.tty = true;
            "stty size; echo READY; read line; echo \"got $line\""
        }
        other => panic!("{other}"),
    };
    options.args = ["sh", "-c", script].map(String::from).to_vec();
    let code = match floe::run::run(&path("FLOE_TEST_LOWER"), &image(json!({})), options, |_| {}) {
        Ok(outcome) => outcome.code(),
        Err(error) => floe::exit::report(&error).number(),
    };
    std::process::exit(code.into());
}

impl Place {
    /// Returns the pid of the one container that runs here. The runtime writes it when the container already runs.
    fn container(&self) -> i32 {
        loop {
            let found = fs::read_dir(self.store().join("run"))
                .unwrap()
                .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("pid")).ok())
                .find_map(|pid| pid.trim().parse().ok());
            match found {
                Some(pid) => return pid,
                None => std::thread::yield_now(),
            }
        }
    }

    fn child(&self, what: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture"])
            .env("FLOE_TEST_CHILD", what)
            .env("FLOE_TEST_STORE", self.store())
            .env("FLOE_TEST_STATE", self.dir.path().join("state"))
            .env("FLOE_TEST_LOWER", self.lower())
            .stdout(Stdio::piped());
        command
    }
}

/// Says whether a process runs; one that ended and was not waited for does not.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

struct Lines(BufReader<std::process::ChildStdout>);

impl Lines {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().unwrap()))
    }

    /// Reads until a line holds this text.
    fn until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "no {text:?}");
        }
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn signals_reach_the_container() {
    let place = place!();
    let mut child = place.child("signals").stdin(Stdio::null()).spawn().unwrap();
    let mut lines = Lines::of(&mut child);
    lines.until("READY");
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::TERM, "TERM"),
    ] {
        send(&child, signal);
        lines.until(&format!("got {name}"));
    }
    send(&child, Signal::WINCH);
    send(&child, Signal::USR2);
    lines.until("bye");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    place.assert_clean();
}

#[test]
fn asking_often_enough_ends_a_deaf_container() {
    let place = place!();
    let mut child = place.child("deaf").stdin(Stdio::null()).spawn().unwrap();
    Lines::of(&mut child).until("READY");
    // Two pending signals of one kind are one, so ask until it is gone. Cleaning up takes longer than a signal.
    let pid = place.container();
    while is_alive(pid) {
        send(&child, Signal::TERM);
        std::thread::yield_now();
    }
    assert_eq!(child.wait().unwrap().code(), Some(137));
    place.assert_clean();
}

#[test]
fn a_killed_run_is_swept_by_the_next() {
    let place = place!();
    let mut child = place.child("deaf").stdin(Stdio::null()).spawn().unwrap();
    Lines::of(&mut child).until("READY");
    let pid = place.container();
    child.kill().unwrap();
    child.wait().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.dir.path().to_str().unwrap()), "no mount is left on the host");
    assert_eq!(fs::read_dir(place.store().join("run")).unwrap().count(), 2, "its directory and lock are");

    assert_eq!(place.sh("echo next"), "next\n");
    place.assert_clean();
    assert!(!is_alive(pid), "its container is gone too");
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let place = place!();
    let child = place.child("tty").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tty needs a terminal"));
    place.assert_clean();
}

#[test]
fn a_terminal_is_the_containers() {
    let place = place!();
    let script = Path::new("/usr/bin/script");
    if !script.exists() {
        testkit::skip!("a terminal comes from script(1)");
    }
    // script(1) gives its child a terminal of which we hold the keyboard and the screen.
    let inner = place.child("tty");
    let words: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut command = Command::new(script);
    command.args(["-qefc", &format!("stty rows 33 cols 77; {}", words.join(" ")), "/dev/null"]);
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    let mut lines = Lines::of(&mut child);
    lines.until("READY");
    keyboard.write_all(b"hello\r").unwrap();
    lines.until("got hello");
    drop(keyboard);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    place.assert_clean();
}

#[test]
fn without_root_the_way_out_is_told() {
    let place = place!();
    let Some(setpriv) =
        ["/usr/bin/setpriv", "/bin/setpriv"].map(Path::new).into_iter().find(|path| path.exists())
    else {
        testkit::skip!("setpriv is not installed");
    };
    let inner = place.child("deaf");
    // The program must be readable for everybody: the build directory may not be.
    let copy = place.dir.path().join("program");
    fs::copy(inner.get_program(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(setpriv)
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(copy)
        .args(inner.get_args())
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(shown.contains("needs root") && shown.contains("sudo floe run"), "{shown}");
}
