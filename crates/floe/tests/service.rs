//! Floe as a service: installed, restarted, rebooted and taken away under running containers, by a real systemd.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use serde_json::json;
use support::containerd::Release;
use support::cri::Cri;
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::systemd::{FLOE, Host, cannot_boot};
use support::until;
use testkit::tar::Entry;

macro_rules! needs_host {
    ($release:expr) => {
        if let Some(why) = cannot_boot().map(str::to_owned).or_else(|| $release.cannot_run()) {
            testkit::skip!("{why}");
        }
    };
}

/// Has a host believe the registry of an image, and fetch only what is read.
fn believe(host: &Host<'_>, reference: &str) {
    let registry_host = reference.split_once('/').unwrap().0;
    host.sh(&format!(
        "mkdir -p /etc/floe && printf '[registry.\"{registry_host}\"]\\ntrust = \"registry\"\\n[fetch]\\nbackground = false\\n' \
         >/etc/floe/config.toml"
    ));
}

/// Says whether a unit runs.
fn is_active(host: &Host<'_>, unit: &str) -> bool {
    host.run(&["systemctl", "is-active", "--quiet", unit]).status.success()
}

each_release!(
    a_service_goes_on_through_restarts_and_reboots_and_leaves_nothing,
    the_configuration_of_containerd_stays_its_administrators,
    what_was_installed_is_gone_at_once_where_nothing_uses_it,
    containers_that_read_notice_no_restart_and_no_upgrade,
);

fn a_service_goes_on_through_restarts_and_reboots_and_leaves_nothing(release: Release) {
    let node = kernel_node!("");
    needs_host!(release);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (small, large) = (image::noise(9, 1_500_000), image::noise(10, 4_000_000)); // its files below /data
    let sum_of = |bytes: &[u8]| format!("{}  -\n", format::Digest::of(bytes).hex());
    let (mut registry, reference) = Embedded::with_index(&node, &image);
    node.ok(&["daemon", "stop"]); // the store becomes the host's
    let mut host = Host::boot(release, &node);
    if !host.has_cgroups() {
        testkit::skip!("containers can have no cgroups on a host in the small");
    }
    believe(&host, &reference);
    host.ok(&["systemctl", "enable", "--now", "containerd"]);

    let said = host.ok(&[FLOE, "install"]);
    assert!(said.contains("/usr/local/bin/floe") && said.contains("(restarted)"), "{said}");
    assert!(host.ok(&["ctr", "plugins", "ls"]).lines().any(|line| line.contains(" floe ")));
    // What 1.6 tells kubelet (see `cri.rs`).
    let images = "/var/lib/containerd/io.containerd.snapshotter.v1.floe";
    assert_eq!(host.ok(&["readlink", images]).trim(), "/var/lib/floe");
    let again = host.ok(&["floe", "install"]);
    assert!(!again.contains("restarted"), "{again}");

    let start = |host: &Host<'_>, name: &str| {
        host.ok(&["ctr", "run", "-d", "--snapshotter", "floe", &reference, name, "sleep", "1000"]);
    };
    host.ok(&["floe", "pull", "--to", "containerd", &reference]);
    start(&host, "one");
    let exec = |host: &Host<'_>, name: &str, file: &str| {
        host.ok(&["ctr", "task", "exec", "--exec-id", "look", name, "cat", file])
    };
    // Killed, the manager starts another; the keeper none.
    host.ok(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "floe"]);
    assert_eq!(exec(&host, "one", "/etc/name"), "tested\n");
    until("it runs again", || is_active(&host, "floe.service"));
    let daemons = || host.sh("pgrep -xc floe || true").trim().parse::<u32>().unwrap();
    until("a daemon and a keeper", || daemons() == 2);
    // Told to end, it leaves its mounts, and who connects starts another.
    host.ok(&["systemctl", "restart", "floe"]);
    host.ok(&["floe", "daemon", "upgrade"]);
    // While none runs, readers wait for the next; and who connects to the socket starts it.
    host.sh("systemctl stop floe.socket floe.service; ! systemctl is-active --quiet floe.service");
    let sum = host
        .sh("(sleep 1; systemctl start floe.socket; ctr snapshots --snapshotter floe ls >/dev/null) & \
         ctr task exec --exec-id sum one sh -c 'cat /data/1 | busybox sha256sum'");
    assert_eq!(sum, sum_of(&large));
    until("a connection starts it", || is_active(&host, "floe.service"));

    registry.down();
    host.reboot();
    assert!(is_active(&host, "floe.service") && is_active(&host, "containerd.service"));
    host.ok(&["ctr", "containers", "rm", "one"]);
    start(&host, "two");
    assert_eq!(exec(&host, "two", "/etc/name"), "tested\n");

    registry.up();
    let refused = host.run(&["floe", "uninstall"]);
    assert!(!refused.status.success() && refused.stderr.contains("--force"), "{refused:?}");
    let said = host.ok(&["floe", "uninstall", "--force"]);
    // Summed inside: ctr may end with the last 64 KiB of what came out still on their way.
    let whole = host.sh("ctr task exec --exec-id all two sh -c 'cat /data/0 /data/1 | busybox sha256sum'");
    assert_eq!(whole, sum_of(&[small, large].concat()));
    assert!(said.contains("next boot"), "{said}");
    assert_eq!(exec(&host, "two", "/etc/name"), "tested\n");
    assert_eq!(host.sh("pgrep -xc floe || true").trim(), "0");
    host.sh(&format!("! test -L {images}"));
    let left = host.sh("ls -d /etc/systemd/system/floe* /etc/containerd/conf.d /etc/systemd/system/*/floe* /usr/local/bin/floe 2>/dev/null || true");
    assert_eq!(left, "");
    assert!(!host.ok(&["containerd", "config", "dump"]).contains("floe"));
    host.reboot();
    assert_eq!(host.sh("ls -A /var/lib/floe; ls /etc/tmpfiles.d | grep floe || true"), "");
}

/// Containers that read at once, and the files that each of them reads.
const READERS: u64 = 4;
const FILES: u64 = 48;

/// Bytes per second of the registry while daemons come and go: there is always something that is not here.
const SLOW: u64 = 1 << 20;

/// Returns an image that reads: `FILES` files, each with its sum beside it.
fn checked() -> Option<TestImage> {
    let base = image::runnable(&json!({ "Env": ["PATH=/bin"] }))?.layers.swap_remove(0);
    let mut entries = vec![Entry::dir("data/"), Entry::dir("sums/")];
    for n in 0..FILES {
        let bytes = image::noise(500 + n, 1_000_000);
        let sum = format!("{}  /data/{n}\n", format::Digest::of(&bytes).hex());
        entries.extend([Entry::file(format!("sums/{n}"), sum), Entry::file(format!("data/{n}"), bytes)]);
    }
    Some(TestImage::new(vec![base, Layer::of(&entries, Pack::Gzip)], &json!({ "Env": ["PATH=/bin"] })))
}

fn containers_that_read_notice_no_restart_and_no_upgrade(release: Release) {
    let node = kernel_node!("");
    needs_host!(release);
    let Some(image) = checked() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    node.ok(&["daemon", "stop"]); // the store becomes the host's
    let host = Host::boot(release, &node);
    if !host.has_cgroups() {
        testkit::skip!("containers can have no cgroups on a host in the small");
    }
    believe(&host, &reference);
    host.ok(&["systemctl", "enable", "--now", "containerd"]);
    host.ok(&[FLOE, "install"]);
    host.ok(&["floe", "pull", "--to", "containerd", &reference]);
    registry.rate(Some(SLOW));

    let daemon = || host.ok(&["systemctl", "show", "--property=MainPID", "floe"]);
    let read = |n: u64| {
        // Each begins elsewhere, and ends at the first sum that is another, or cannot be made.
        let files: Vec<_> = (0..FILES).map(|k| ((k + n * FILES / READERS) % FILES).to_string()).collect();
        let script =
            format!("for n in {}; do busybox sha256sum -c /sums/$n || exit 1; done", files.join(" "));
        let name = format!("reader{n}");
        let run = ["ctr", "run", "--rm", "--snapshotter", "floe", &reference, &name, "sh", "-c", &script];
        host.run(&run)
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|n| scope.spawn(move || read(n))).collect();
        let running = || host.ok(&["ctr", "task", "ls"]).matches("RUNNING").count() as u64;
        until("all read", || running() == READERS);
        for round in 0..3 {
            let other =
                format!("cp {FLOE} /opt/floe/other; echo {round} >>/opt/floe/other; /opt/floe/other install");
            for change in ["systemctl restart floe", "floe daemon upgrade", &other] {
                let (sent, before) = (registry.stats().bytes_sent, daemon());
                host.sh(change);
                assert_ne!(daemon(), before, "{change}");
                until("more is fetched", || registry.stats().bytes_sent > sent + 100_000);
                assert_eq!(running(), READERS, "{change}: {}", host.journal());
            }
        }
        registry.rate(None);
        for reader in readers {
            let outcome = reader.join().unwrap();
            let right = outcome.text().matches(": OK").count() as u64;
            assert!(outcome.status.success() && right == FILES, "{outcome:?}\n{}", host.journal());
        }
    });
    let status = host.ok(&["floe", "status"]);
    assert!(!status.contains("ALERT"), "{status}");
}

fn what_was_installed_is_gone_at_once_where_nothing_uses_it(release: Release) {
    let node = kernel_node!("");
    needs_host!(release);
    let host = Host::boot(release, &node);
    host.sh("systemctl start containerd; mkdir -p /etc/floe && printf '[layers]\\ndir = \"/run/layers\"\\n' >/etc/floe/config.toml");
    host.ok(&[FLOE, "install"]);
    host.sh("mountpoint /run/layers");
    for command in ["install", "uninstall"] {
        let refused = host.run(&["floe", "--root", "/srv/other", command]);
        assert!(!refused.status.success() && refused.stderr.contains("/var/lib/floe"), "{refused:?}");
    }
    // What is brought up to date listens where the former did not.
    host.sh("sed -i /images.sock/d /etc/systemd/system/floe.socket; systemctl daemon-reload; \
             systemctl restart floe.socket floe.service; rm -f /run/floe/images.sock");
    host.ok(&[FLOE, "install"]);
    Cri::at(&host.path("/run/floe/images.sock")).image_fs();
    // A daemon of a command's goes as well.
    host.sh("systemctl stop floe.socket floe.service; mv /etc/systemd/system/floe.service /root; floe gc; \
             mv /root/floe.service /etc/systemd/system/; pgrep -xc floe");
    // kubelet is not left without the images that it asks for here.
    let told = "mkdir -p /var/lib/kubelet && echo 'imageServiceEndpoint: unix:///run/floe/images.sock' >/var/lib/kubelet/config.yaml";
    host.sh(told);
    let refused = host.run(&["floe", "uninstall", "--force"]);
    assert!(!refused.status.success() && refused.stderr.contains("imageServiceEndpoint"), "{refused:?}");
    host.sh("systemctl start floe.socket");
    Cri::at(&host.path("/run/floe/images.sock")).image_fs();
    host.sh("rm /var/lib/kubelet/config.yaml");
    let said = host.ok(&["floe", "uninstall"]);
    assert!(said.contains("removed     /var/lib/floe"), "{said}");
    // Nor does anybody wait where layers were shown.
    assert_eq!(
        host.sh("timeout 10 ls -A /run/layers; mountpoint -q /run/layers && echo mounted; rm -r /etc/floe"),
        ""
    );
    let left = "pgrep -x floe; ls -A /var/lib/floe /run/floe /etc/floe; ls -d /etc/systemd/system/floe* \
                /etc/systemd/system/*/floe* /usr/local/bin/floe /etc/tmpfiles.d/floe*";
    assert_eq!(host.run(&["sh", "-c", left]).text(), "/var/lib/floe:\n");
    host.ok(&[FLOE, "uninstall"]);
}

/// Returns the lines of a configuration of containerd that say who uses which snapshotter where nobody asks for one.
fn defaults(dump: &str) -> Vec<String> {
    let lines = dump.lines().map(str::trim).filter(|line| line.starts_with("snapshotter ="));
    lines.map(str::to_owned).collect()
}

fn the_configuration_of_containerd_stays_its_administrators(release: Release) {
    let node = kernel_node!("");
    needs_host!(release);
    let host = Host::boot(release, &node);
    let knows = || host.ok(&["ctr", "plugins", "ls"]).lines().any(|line| line.contains(" floe "));
    let doctor = || host.ok(&["floe", "doctor"]);
    // Where it imports what is beside it, one more file is there, of a version that every containerd reads.
    let newest = if release == Release::Sid { 3 } else { 2 };
    let own = format!("version = {newest}\noom_score = -6\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n");
    host.sh(&format!(
        "mkdir -p /etc/containerd && printf '{own}' >/etc/containerd/config.toml; systemctl start containerd"
    ));
    let before = defaults(&host.ok(&["containerd", "config", "dump"]));
    assert!(before.iter().any(|line| line.contains("overlayfs")), "{before:?}");
    let said = host.ok(&[FLOE, "install"]);
    assert!(said.contains("/etc/containerd/conf.d/floe.toml") && !said.contains("floe.conf"), "{said}");
    assert!(knows());
    let found = doctor();
    assert!(found.contains("tells it of the snapshotter"), "{found}");
    let dump = host.ok(&["containerd", "config", "dump"]);
    assert!(dump.contains("oom_score = -6") && dump.contains("/run/floe/containerd.sock"), "{dump}");
    assert_eq!(defaults(&dump), before);
    host.ok(&["floe", "uninstall"]);
    assert!(!knows());
    if host.ok(&["containerd", "config", "default"]).contains("/etc/containerd/conf.d") {
        testkit::skip!("{release:?} has a containerd that always imports: no configuration is wrapped");
    }

    // containerd's own configuration is of another version than what is asked of everybody; 2 reads no more of version 1.
    let (first, second) = if release == Release::Sid { (3, 2) } else { (1, 2) };
    host.sh(&format!("printf 'version = {first}\\noom_score = -7\\n' >/etc/containerd/config.toml"));
    host.sh("systemctl restart containerd");
    let before = defaults(&host.ok(&["containerd", "config", "dump"]));
    assert!(before.iter().any(|line| line.contains("overlayfs")), "{before:?}");
    host.ok(&[FLOE, "install"]);
    assert!(knows());
    let dump = || host.ok(&["containerd", "--config", "/etc/floe/containerd.toml", "config", "dump"]);
    assert!(dump().contains("oom_score = -7"), "{}", dump());
    assert_eq!(defaults(&dump()), before);
    let found = doctor();
    assert!(found.contains("tells it of the snapshotter"), "{found}");
    host.sh(&format!("printf 'version = {second}\\n' >/etc/containerd/config.toml"));
    assert!(doctor().contains(&format!("it has version {first}")));
    host.ok(&["floe", "install"]);
    assert!(!doctor().contains("it has version"));
    // Without a configuration of its own, and with one that came later, containerd starts as it would without us.
    host.sh("mv /etc/containerd/config.toml /root; systemctl restart containerd; mv /root/config.toml /etc/containerd");
    assert!(knows());
    host.sh("echo 'oom_score = -8' >>/etc/containerd/config.toml");
    assert!(dump().contains("oom_score = -8"));
    // Where it has directories of its own, the link to the images is there as well, and goes again.
    host.sh("echo 'root = \"/srv/own\"' >>/etc/containerd/config.toml; systemctl restart containerd");
    host.ok(&["floe", "install"]);
    let images = "/srv/own/io.containerd.snapshotter.v1.floe";
    assert_eq!(host.ok(&["readlink", images]).trim(), "/var/lib/floe");
    host.ok(&["floe", "uninstall"]);
    host.sh(&format!("! test -L {images}"));
}
