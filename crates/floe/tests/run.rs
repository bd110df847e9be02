//! Containers for real: runc over a tiny root made of busybox. Root and runc needed, else skipped loudly.

mod place;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use floe::exit::Code;
use floe::run::{Exit, Input, Net, Output, Ready, ReadyWhen};
use place::image;
use serde_json::json;

#[test]
fn a_container_sees_its_image_and_leaves_it_alone() {
    let place = place!();
    fs::set_permissions(place.lower(), fs::Permissions::from_mode(0o751)).unwrap();
    let out = place
        .sh("cat /etc/group | head -c 4; stat -c ' %a' /; echo new >/etc/passwd; touch /new /etc/x; ls /new");
    assert_eq!(out, "root 751\n/new\n");
    assert!(!place.lower().join("new").exists());
    assert!(fs::read_to_string(place.lower().join("etc/passwd")).unwrap().starts_with("root:"));
    place.assert_clean();
}

#[test]
fn environment_directory_and_user_come_from_the_image() {
    let place = place!();
    let config = json!({
        "User": "web", "WorkingDir": "/made/on demand", "Env": ["A=image", "B=image"],
        "Entrypoint": ["sh", "-c"], "Cmd": ["never"]
    });
    let mut options = place.options(&["pwd; id; echo $A $B $HOME; hostname"]);
    options.env = vec!["B=own".into()];
    options.hostname = Some("box".into());
    let (outcome, out, _) = place.run_image(config, options).unwrap();
    assert_eq!(outcome.code(), 0);
    assert_eq!(out, "/made/on demand\nuid=33(web) gid=34(web) groups=44(video)\nimage own /srv/www\nbox\n");
    assert!(!place.lower().join("made").exists());
    place.assert_clean();
}

#[test]
fn users_go_by_name_number_and_group() {
    let place = place!();
    for (user, expected) in [
        ("web", "uid=33(web) gid=34(web) groups=44(video)"),
        ("33:44", "uid=33(web) gid=44(video)"),
        ("web:root", "uid=33(web) gid=0(root)"),
        ("1234:5678", "uid=1234 gid=5678"),
        ("0", "uid=0(root) gid=0(root)"),
    ] {
        let mut options = place.options(&["id"]);
        options.user = Some(user.into());
        let (_, out) = place.run(options);
        assert!(out.starts_with(expected), "{user}: {out}");
    }
    let mut options = place.options(&["id"]);
    options.user = Some("nobody".into());
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::NotStarted);
    assert!(shown.contains("user \"nobody\" is not in the image's /etc/passwd"), "{shown}");
    place.assert_clean();
}

#[test]
fn the_exit_code_is_the_containers() {
    let place = place!();
    for (script, exit, code) in [
        ("exit 0", Exit::Returned(0), 0),
        ("exit 3", Exit::Returned(3), 3),
        ("exit 255", Exit::Returned(255), 255),
        ("sh -c 'kill -15 $$' 2>/dev/null; exit $?", Exit::Returned(143), 143),
    ] {
        let (outcome, _) = place.run(place.options(&["sh", "-c", script]));
        assert_eq!((outcome.exit, outcome.code()), (exit, code), "{script}");
        assert!(outcome.ended >= outcome.started);
    }
    place.assert_clean();
}

#[test]
fn a_command_that_cannot_run_is_told_apart() {
    let place = place!();
    fs::write(place.lower().join("plain"), "text").unwrap();
    for (command, code) in [
        ("nope", Code::NotFound),
        ("/nope", Code::NotFound),
        ("/plain", Code::NotExecutable),
        ("/etc", Code::NotExecutable),
    ] {
        let (found, shown) = place.fails(place.options(&[command]));
        assert_eq!(found, code, "{shown}");
        assert!(shown.contains(command), "{shown}");
    }
    let (code, shown) = place.fails(place.options(&[]));
    assert_eq!(code, Code::Misused);
    assert!(shown.contains("neither Entrypoint nor Cmd") && shown.contains("hint:"), "{shown}");
    let mut options = place.options(&["true"]);
    options.workdir = Some("/plain".into());
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::NotStarted, "{shown}");
    place.assert_clean();
}

#[test]
fn standard_streams_pass_through() {
    let place = place!();
    let (from, mut into) = std::io::pipe().unwrap();
    let mut options = place.options(&["sh", "-c", "cat; echo problem >&2"]);
    options.stdin = Input::From(from.into());
    let text = "some text\n".repeat(50_000);
    let (sent, writer) = (
        text.clone(),
        std::thread::spawn(move || {
            let text = "some text\n".repeat(50_000);
            into.write_all(text.as_bytes()).unwrap();
        }),
    );
    let (_, out, err) = place.run_image(json!({}), options).unwrap();
    writer.join().unwrap();
    assert_eq!(out.len(), sent.len());
    assert_eq!(out, sent);
    assert_eq!(err, "problem\n");
    place.assert_clean();
}

#[test]
fn our_own_files_keep_their_owner() {
    let place = place!();
    let mut options = place.options(&["echo", "x"]);
    options.user = Some("33".into());
    place.run(options);
    assert_eq!(fs::metadata(place.dir.path().join("out")).unwrap().uid(), 0);
}

#[test]
fn a_line_makes_it_ready_while_it_runs() {
    let place = place!();
    let (from, mut into) = std::io::pipe().unwrap();
    let mut options = place.options(&["sh", "-c", "echo begin; echo all is READY now; cat"]);
    options.ready = Some(ReadyWhen::Line("READY".into()));
    options.stdin = Input::From(from.into());
    options.stdout = Output::Discard;
    let mut seen = None;
    // It only ends once it was told of as ready: without that, this would never return.
    let on_ready = |ready: Ready| {
        seen = Some(ready);
        into.write_all(b"bye\n").unwrap();
        drop(into);
    };
    let outcome = floe::run::run(&place.lower(), &image(json!({})), options, on_ready).unwrap();
    assert_eq!(outcome.ready, seen);
    assert!(seen.unwrap().at >= outcome.started && seen.unwrap().at <= outcome.ended);
    assert!(!outcome.stopped);
    place.assert_clean();
}

#[test]
fn never_ready_is_not_ready() {
    let place = place!();
    let mut options = place.options(&["echo", "REA DY"]);
    options.ready = Some(ReadyWhen::Line("READY".into()));
    let (outcome, out) = place.run(options);
    assert_eq!((outcome.ready, out.as_str()), (None, "REA DY\n"));
    let mut options = place.options(&["true"]);
    options.ready = Some(ReadyWhen::Exit);
    let (outcome, _) = place.run(options);
    assert_eq!(outcome.ready.map(|ready| ready.at), Some(outcome.ended));
}

#[test]
fn not_ready_in_time_is_a_failure() {
    let place = place!();
    let mut options = place.options(&["sleep", "1000"]);
    options.ready = Some(ReadyWhen::Line("READY".into()));
    options.ready_timeout = Some(Duration::from_millis(300));
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::Failed);
    assert!(shown.contains("not ready after 0.3 s"), "{shown}");
    place.assert_clean();
}

#[test]
fn a_port_makes_it_ready_and_readiness_may_end_it() {
    let place = place!();
    for net in [Net::Host, Net::None] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let script = format!(
            "trap 'echo stopped; exit 9' TERM; nc -l -p {port} 127.0.0.1 & while :; do sleep 0.01; done"
        );
        let mut options = place.options(&["sh", "-c", &script]);
        options.net = net;
        options.ready = Some(ReadyWhen::Port(port));
        options.exit_when_ready = true;
        let (outcome, out) = place.run(options);
        assert!(outcome.ready.is_some() && outcome.stopped, "{net}");
        assert_eq!(
            (outcome.code(), outcome.exit),
            (0, Exit::Returned(9)),
            "{net}: stopped by its signal: {out}"
        );
        assert_eq!(out, "stopped\n");
    }
    place.assert_clean();
}

#[test]
fn what_ignores_its_stop_signal_is_killed() {
    let place = place!();
    let mut options = place.options(&["sh", "-c", "trap '' QUIT; echo READY; while :; do sleep 0.01; done"]);
    options.ready = Some(ReadyWhen::Line("READY".into()));
    options.exit_when_ready = true;
    options.stop_timeout = Duration::from_millis(200);
    let (outcome, _, _) = place.run_image(json!({ "StopSignal": "SIGQUIT" }), options).unwrap();
    assert_eq!((outcome.code(), outcome.exit), (0, Exit::Signalled(9)));
    place.assert_clean();
}

#[test]
fn a_foreign_port_proves_nothing() {
    let place = place!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = place.options(&["true"]);
    options.ready = Some(ReadyWhen::Port(listener.local_addr().unwrap().port()));
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::Misused);
    assert!(shown.contains("somebody else already answers"), "{shown}");
    place.assert_clean();
}

#[test]
fn networks_are_the_hosts_or_loopback_only() {
    let place = place!();
    let mut options =
        place.options(&["sh", "-c", "ls /sys/class/net; ifconfig lo | grep -c UP; cat /etc/resolv.conf"]);
    options.net = Net::None;
    let (_, out) = place.run(options);
    assert_eq!(out.trim(), "lo\n1");
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(place.sh("cat /etc/resolv.conf; echo changed >/etc/resolv.conf"), own);
    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), own);
}

#[test]
fn volumes_are_seen_and_ro_means_it() {
    let place = place!();
    let data = place.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from host").unwrap();
    let mut options = place.options(&["sh", "-c", "cat /d/file; echo back >/w/back; echo no >/d/no; ls /d"]);
    let volume = |at: &str| format!("{}:{at}", data.display()).parse().unwrap();
    options.volumes = vec![volume("/d:ro"), volume("/w")];
    let (_, out, err) = place.run_image(json!({}), options).unwrap();
    assert_eq!(out, "from hostback\nfile\n");
    assert!(err.contains("Read-only file system"), "{err}");
    assert_eq!(fs::read_to_string(data.join("back")).unwrap(), "back\n");
    assert!(!data.join("no").exists());
    let mut options = place.options(&["true"]);
    options.volumes = vec!["/no/such:/x".parse().unwrap()];
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::Misused);
    assert!(shown.contains("/no/such"), "{shown}");
}

#[test]
fn two_runs_at_once_do_not_meet() {
    let place = place!();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|number| {
                let place = &place;
                scope.spawn(move || {
                    let out = place.dir.path().join(format!("out{number}"));
                    let script = format!("echo {number} >/mine; sleep 0.2; cat /mine; exit {number}");
                    let mut options = place.options(&["sh", "-c", &script]);
                    options.stdout = fs::File::create(&out).unwrap().into();
                    let outcome = floe::run::run(&place.lower(), &image(json!({})), options, |_| {}).unwrap();
                    (outcome.code(), fs::read_to_string(out).unwrap())
                })
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap(), (u8::try_from(number).unwrap(), format!("{number}\n")));
        }
    });
    place.assert_clean();
}

#[test]
fn layers_may_be_several_directories() {
    let place = place!();
    let top = place.dir.path().join("top");
    fs::create_dir(&top).unwrap();
    fs::write(top.join("above"), "above").unwrap();
    let mut options = place.options(&["cat", "/above", "/etc/group"]);
    let out = place.dir.path().join("out");
    options.stdout = fs::File::create(&out).unwrap().into();
    floe::run::run_over(&[&top, &place.lower()], &image(json!({})), options, |_| {}).unwrap();
    assert!(fs::read_to_string(out).unwrap().starts_with("aboveroot"));
}

#[test]
fn what_is_missing_is_named() {
    let place = place!();
    let mut options = place.options(&["true"]);
    options.runtime = Some("/no/such/runtime".into());
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::NotStarted);
    assert!(shown.contains("/no/such/runtime") && shown.contains("apt-get install runc"), "{shown}");

    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut options = place.options(&["true"]);
    options.store = file.join("store");
    let (code, shown) = place.fails(options);
    assert_eq!(code, Code::NotStarted);
    assert!(shown.contains("file/store/run") && shown.contains("--root DIR"), "{shown}");

    let mut options = place.options(&["true"]);
    options.store = "/proc/store".into(); // root may write anywhere but here
    let (_, shown) = place.fails(options);
    assert!(shown.contains("/proc/store"), "{shown}");
}

#[test]
fn output_may_go_into_a_pipe() {
    let place = place!();
    let (mut from, to) = std::io::pipe().unwrap();
    let mut options = place.options(&["echo", "through a pipe"]);
    options.stdout = Output::To(OwnedFd::from(to));
    floe::run::run(&place.lower(), &image(json!({})), options, |_| {}).unwrap();
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through a pipe\n");
}
