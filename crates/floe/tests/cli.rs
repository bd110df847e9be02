//! Commands and flags that no other test needs, as a user types them.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs;
use std::path::Path;

use format::Digest;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::image::{self, TestImage};
use support::servers::Embedded;
use support::{Node, tool, until};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_mount_that_fails_says_what_helps() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let (reference, nowhere) = (format!("{}/app:v1", registry.host()), node.path("some/where"));
    let complaint = node.fails(&["mount", &reference, nowhere.to_str().unwrap()]);
    assert!(complaint.contains(&format!("hint: mkdir -p {}", nowhere.display())), "{complaint}");
    let complaint = node.fails(&["mount", &reference, node.mount_point().to_str().unwrap()]);
    assert!(complaint.contains("not found\n  hint: are name and tag right?"), "{complaint}");
}

/// `-o` once wanted a layout that was there already, and said so of the directory it was to make.
#[test]
fn an_index_goes_into_a_layout_of_its_own() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    let image = image::simple(60, 1);
    image.push(&reference);
    let layout = node.path("some/layout");
    let command = ["index", "-o", layout.to_str().unwrap(), &reference];
    let artifact = node.json(&command)["artifact"].as_str().unwrap().to_owned();
    let blob =
        |digest: &Value| layout.join("blobs/sha256").join(&digest.as_str().unwrap()["sha256:".len()..]);

    let listed = json_of(&layout.join("index.json"))["manifests"].clone();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["digest"]), (1, &artifact.clone().into()));
    let manifest = json_of(&blob(&listed[0]["digest"]));
    assert_eq!(manifest["subject"]["digest"], image.digest().to_string());
    for entry in manifest["layers"].as_array().unwrap() {
        let bytes = fs::read(blob(&entry["digest"])).unwrap();
        assert_eq!(
            (Digest::of(&bytes).to_string().into(), bytes.len().into()),
            (entry["digest"].clone(), entry["size"].clone())
        );
    }

    // Once more, beside the image itself: there it is found.
    node.ok(&command);
    let beside = node.path("image");
    image.layout(&beside, "v1");
    node.ok(&["index", "-o", beside.to_str().unwrap(), &reference]);
    let other = support::Node::new("");
    let report = other.json(&["inspect", &format!("oci:{}:v1", beside.display())]);
    assert_eq!(report["layers"][0]["origin"], "registry", "{report}");
}

#[test]
fn a_profile_from_a_file_is_shipped_and_a_wrong_one_is_not() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    let image = image::simple(61, 3);
    image.push(&reference);
    let report = node.json(&["pull", &reference]);
    let (index, segments) =
        (&report["layers"][0]["index"], report["layers"][0]["segments"].as_u64().unwrap());
    let file = node.path("profile.json");
    let flag = format!("--profile={}", file.display());
    for (profile, word) in [
        ("{".to_owned(), "parsing a profile"),
        (json!({ "version": 9, "layers": [], "segments": [] }).to_string(), "version 9"),
        (json!({ "version": 1, "layers": [], "segments": [[0, 0]] }).to_string(), "contradicts"),
    ] {
        fs::write(&file, profile).unwrap();
        assert!(node.fails(&["index", "--push", &flag, &reference]).contains(word), "{word}");
    }
    assert!(
        node.fails(&["index", "--push", "--profile=/nonexistent/p", &reference]).contains("/nonexistent/p")
    );
    assert!(node.fails(&["index", "--push", "--profile", &reference]).contains("hint: run the image once"));

    let last = segments - 1;
    fs::write(&file, json!({ "version": 1, "layers": [index], "segments": [[0, last]] }).to_string())
        .unwrap();
    node.ok(&["index", "--push", &flag, &reference]);
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    // The image has no program, so the container does not start; what a start reads is fetched all the same.
    let other = Node::new("");
    let outcome = other.run(&["run", "--no-background", &reference, "--", "/none"]);
    assert_eq!(outcome.status.code(), Some(127), "{outcome:?}");
    until("the profile's segment is here", || {
        other.json(&["inspect", &reference])["layers"][0]["local"] != 0
    });
    let device = fs::read_dir(other.store().join("device")).unwrap().next().unwrap().unwrap().path();
    assert!(fs::metadata(device.join(last.to_string())).unwrap().len() > 0);
    assert!(!device.join("0").exists());
}

#[test]
fn what_nobody_has_proved_is_not_signed() {
    let node = node!();
    if support::program("openssl").is_none() {
        testkit::skip!("there is no openssl");
    }
    let (_registry, reference) = Embedded::with_index(&node, &image::simple(62, 1));
    let key = node.path("key.pem");
    tool(std::process::Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&key));
    let sign = ["index", "--push", "--sign", key.to_str().unwrap(), &reference];
    let complaint = node.fails(&sign);
    assert!(
        complaint.contains("has not been proved") && complaint.contains("hint: floe pull"),
        "{complaint}"
    );
    node.ok(&["pull", &reference]);
    node.ok(&sign);
    fs::write(&key, "no key\n").unwrap();
    assert!(node.fails(&sign).contains(key.to_str().unwrap()));
}

#[test]
fn every_command_has_a_manual_page() {
    let node = Node::new("");
    let dir = node.path("share/man/man1");
    node.ok(&["man", dir.to_str().unwrap()]);
    let page = fs::read_to_string(dir.join("floe-pull.1")).unwrap();
    for word in [".TH floe-pull 1", "SYNOPSIS", "\\-\\-to", "Example: floe pull"] {
        assert!(page.contains(word), "{word} in {page}");
    }
    let help = node.ok(&["--help"]);
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| {
        line.strip_prefix("  ")?.split(' ').next().filter(|name| !matches!(*name, "" | "help"))
    });
    let missing: Vec<_> = names.filter(|name| !dir.join(format!("floe-{name}.1")).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn shells_get_their_completion() {
    let node = Node::new("");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef floe"), ("fish", "complete -c floe")] {
        let script = node.ok(&["completion", shell]);
        assert!(script.contains(word) && script.contains("umount"), "{shell}: {script}");
    }
    if support::program("bash").is_none() {
        testkit::skip!("there is no bash");
    }
    let script = node.path("completion");
    fs::write(&script, node.ok(&["completion", "bash"])).unwrap();
    tool(std::process::Command::new("bash").arg("-n").arg(&script));
    assert_eq!(node.run(&["completion", "tcsh"]).status.code(), Some(2));
}

/// Commands once did not find such a daemon; and it took others the right to list the directory of its socket, `/tmp`
/// if it was there, and removed whatever file had that name.
#[test]
fn a_daemon_at_another_socket_is_found_and_harms_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let node = node!();
    let dir = node.path("sockets");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    let (socket, file) = (dir.join("floe.sock"), dir.join("file"));
    fs::write(&file, "somebody's").unwrap();
    for bad in ["relative", "unix:relative", "tcp:127.0.0.1:1"] {
        assert_eq!(node.run(&["daemon", "--listen", bad]).status.code(), Some(2), "{bad}");
    }
    let complaint = node.fails(&["daemon", "--listen", &format!("unix:{}", file.display())]);
    assert!(complaint.contains(file.to_str().unwrap()), "{complaint}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");

    for killed in [true, false] {
        let daemon = node.spawn(node.command(&["daemon", "--listen", &format!("unix:{}", socket.display())]));
        until("it answers", || node.status()["pid"] == daemon.child.id());
        node.ok(&["gc"]);
        assert_eq!(node.status()["pid"], daemon.child.id(), "no other was started");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        if killed {
            support::kill_and_wait(daemon.pid());
            continue;
        }
        node.stop();
        assert_eq!(daemon.end().status.code(), Some(0));
        assert!(!socket.exists());
    }
    // And the next one is where all are.
    node.ok(&["gc"]);
    assert!(!socket.exists());
}

/// Somebody waited for a socket that the daemon of another store was to make.
#[test]
fn a_daemon_that_leaves_a_socket_to_the_usual_store_says_so() {
    let node = node!("[containerd]\nsocket = \"/nowhere/floe.sock\"");
    node.ok(&["gc"]);
    let log = node.log();
    assert!(log.contains("[containerd] is left to the daemon of /var/lib/floe"), "{log}");
}

#[test]
fn a_socket_of_another_program_is_left_alone_and_one_of_another_user_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    let node = node!();
    let theirs = node.path("theirs.sock");
    let _listener = UnixListener::bind(&theirs).unwrap();
    let complaint = node.fails(&["daemon", "--listen", &format!("unix:{}", theirs.display())]);
    assert!(complaint.contains("theirs.sock"), "{complaint}");
    assert!(UnixStream::connect(&theirs).is_ok());

    // The usual place under another name.
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    fs::create_dir_all(&run).unwrap();
    let linked = node.path("run");
    std::os::unix::fs::symlink(&run, &linked).unwrap();
    let listen = format!("unix:{}", linked.join("daemon.sock").display());
    let daemon = node.spawn(node.command(&["daemon", "--listen", &listen]));
    until("it answers", || node.status()["pid"] == daemon.child.id());
    node.stop();
    assert_eq!(daemon.end().status.code(), Some(0));

    node.ok(&["gc"]);
    node.stop();
    for file in ["daemon.log", "start.lock"] {
        let mode = fs::metadata(run.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} is {mode:o}");
    }
    if support::program("setpriv").is_none() || !Path::new("/usr/bin/python3").exists() {
        testkit::skip!("being somebody else needs setpriv and python3");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let socket = dir.path().join("floe.sock");
    let script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(600)";
    let mut nobody = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script])
        .arg(&socket)
        .spawn()
        .unwrap();
    until("nobody listens", || UnixStream::connect(&socket).is_ok());
    std::os::unix::fs::symlink(&socket, run.join("daemon.sock")).unwrap();
    let complaint = node.fails(&["gc"]);
    nobody.kill().unwrap();
    nobody.wait().unwrap();
    assert!(complaint.contains("65534"), "{complaint}");
    fs::remove_file(run.join("daemon.sock")).unwrap();
}

#[test]
fn the_registry_command_serves_until_it_is_told_to_end() {
    let node = node!();
    let dir = node.path("registry");
    let image = image::simple(63, 1);
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = node.command(&[
            "registry",
            dir.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--rate",
            "400mbit",
        ]);
        let (said, out) = std::io::pipe().unwrap();
        let registry = command.stdout(out).stderr(std::process::Stdio::null()).spawn().unwrap();
        drop(command);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
        let host = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("{line}")).1.to_owned();
        assert!(line.starts_with(&format!("serving {}", dir.display())), "{line}");
        let reference = format!("{host}/app:v1");
        // What the first one was given the second has.
        if signal == Signal::TERM {
            image.push(&reference);
        }
        assert_eq!(node.json(&["pull", &reference])["manifest"], image.digest().to_string());
        rustix::process::kill_process(rustix::process::Pid::from_child(&registry), signal).unwrap();
        assert_eq!(registry.wait_with_output().unwrap().status.code(), Some(0));
    }
    assert!(node.run(&["registry", "/proc/none"]).stderr.contains("/proc/none"));
    assert_eq!(node.run(&["registry", dir.to_str().unwrap(), "--rate", "fast"]).status.code(), Some(2));
}

fn busybox(node: &Node) -> Option<(Embedded, String, TestImage)> {
    support::program("runc")?;
    let image = image::runnable(&json!({ "Env": ["PATH=/bin", "FROM=image"] }))?;
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    Some((registry, reference, image))
}

#[test]
fn variables_volumes_and_networks_reach_the_container() {
    let node = node!();
    let Some((_registry, reference, _)) = busybox(&node) else {
        testkit::skip!("running containers needs runc and a static busybox");
    };
    let shared = node.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the machine\n").unwrap();
    let run = |flags: &[&str], script: &str| {
        let mut command = node.command(&[&["run"], flags, &[&reference, "--", "sh", "-c", script]].concat());
        command.env("PASSED", "on");
        node.spawn(command).end()
    };
    let outcome =
        run(&["-e", "FROM=me", "-e", "PASSED", "--env", "EMPTY="], "echo $FROM $PASSED-${EMPTY-unset}");
    assert_eq!(outcome.text(), "me on-\n", "{outcome:?}");

    let (writable, read_only) = (format!("{}:/in", shared.display()), format!("{}:/in:ro", shared.display()));
    let outcome = run(&["-v", &writable], "cat /in/file; echo changed >/in/file");
    assert_eq!(outcome.text(), "of the machine\n", "{outcome:?}");
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "changed\n");
    let outcome = run(&["--volume", &read_only], "cat /in/file; echo again 2>&1 >/in/file || exit 9");
    assert_eq!(
        (outcome.status.code(), outcome.text().starts_with("changed\n")),
        (Some(9), true),
        "{outcome:?}"
    );
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "changed\n");
    for volume in ["/nonexistent:/in", "nowhere", "/tmp:relative"] {
        let outcome = run(&["-v", volume], "true");
        assert_eq!(outcome.status.code(), Some(2), "{volume}: {outcome:?}");
        assert!(outcome.stderr.contains(volume.split(':').next().unwrap()), "{outcome:?}");
    }

    let interfaces = "cat /proc/net/dev | wc -l";
    let host = fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    assert_eq!(run(&[], interfaces).text().trim(), host.to_string());
    assert_eq!(run(&["--net", "none"], interfaces).text().trim(), "3", "two lines of heading, and loopback");
}

/// Timings once came on stdout under `--output json`, in the middle of what the container prints.
#[test]
fn timings_never_mix_with_what_the_container_prints() {
    let node = node!();
    let Some((_registry, reference, image)) = busybox(&node) else {
        testkit::skip!("running containers needs runc and a static busybox");
    };
    let file = node.path("timings");
    let to_file = format!("--timings={}", file.display());
    let script = "wc -c </data/1; echo READY; exit 3";
    let run = |flags: &[&str]| {
        let rest = ["--ready", "line:READY", &reference, "--", "sh", "-c", script];
        let outcome = node.run(&[&["run"], flags, &rest].concat());
        assert_eq!((outcome.status.code(), &*outcome.text()), (Some(3), "4000000\nREADY\n"), "{outcome:?}");
        outcome.stderr
    };
    let human = |table: &str| {
        // Rows and units; the values are what they are.
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let names: Vec<&str> = rows.iter().map(|row| row[0]).filter(|name| *name != "waited").collect();
        assert_eq!(
            names,
            ["resolve", "index", "mount", "waits", "application", "ready", "received"],
            "{table}"
        );
        for row in &rows {
            let (value, unit) = (row[1].parse::<f64>(), row[2]);
            let right = if row[0] == "received" { unit.ends_with('B') } else { unit == "s" };
            assert!(value.is_ok() && right, "{row:?}");
        }
        assert!(table.contains(" requests, ") && table.contains(" repeated"), "{table}");
    };
    let machine = |text: &str| {
        let timings: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(timings["report"]["manifest"], image.digest().to_string(), "{timings}");
        for field in ["running", "waiting"] {
            assert!(timings[field]["secs"].is_u64(), "{timings}");
        }
        // Not what the first start said, which streamed it.
        assert!(timings["report"]["why"].as_str().unwrap().starts_with("lazy: "), "{timings}");
        assert!(timings["traffic"]["requests"].is_u64() && timings["waits"].is_array(), "{timings}");
    };
    assert_eq!(run(&[]), "");
    human(&run(&["--timings"]));
    machine(&run(&["--timings", "--output", "json"]));
    assert_eq!(run(&[&to_file]), "");
    human(&fs::read_to_string(&file).unwrap());
    assert_eq!(run(&[&to_file, "--output", "json"]), "");
    machine(&fs::read_to_string(&file).unwrap());
    let complaint = run(&["--timings=/nonexistent/file"]);
    assert!(complaint.contains("/nonexistent/file"), "{complaint}");
}
