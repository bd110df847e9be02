//! Containers in user namespaces of their own, on images whose owners are shifted and not copied.
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
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use support::containerd::{Containerd, Release};
use support::cri::Cri;
use support::image;
use support::servers::Embedded;
use support::{mounts_of, until};

const USERS: u32 = 100_000;
const GROUPS: u32 = 200_000;

/// A plugin for pods' networks: theirs have nothing, and an address all the same.
const NO_NETWORK: &str = r#"[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],
"ips":[{"version":"4","interface":0,"address":"192.0.2.2/24"}]}'"#;

/// Where the plugin is used.
const NETWORK: &str = r#"{"cniVersion":"0.3.1","name":"nowhere","plugins":[{"type":"none"}]}"#;

each_release!(
    owners_are_shifted_by_the_kernels_own_path,
    a_pod_with_users_of_its_own_runs_without_the_layers_of_its_image
);

fn owners_are_shifted_by_the_kernels_own_path(release: Release) {
    let node = kernel_node!("[fetch]\nbackground = false\n[mount]\npath = \"erofs\"\n");
    owners_are_shifted(&node, release);
}

fn owners_are_shifted(node: &support::Node, release: Release) {
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(node, &image);
    let containerd = Containerd::start(release, node, &reference);
    containerd.pull(&reference);
    let run = |options: &[&str], name: &str, words: &[&str]| {
        let base = ["run", "--snapshotter", "floe"];
        containerd.ok(&[&base[..], options, &[&reference, name], words].concat())
    };
    let (users, groups) = (format!("0:{USERS}:65536"), format!("0:{GROUPS}:65536"));
    let mapped = |how| [how, "--uidmap", &users, "--gidmap", &groups, "--remap-labels"];
    let script = "test -O /etc/name && test -G /etc/name && echo x >>/etc/name && echo y >/etc/new && \
                  cat /etc/name /etc/new; cat /proc/self/uid_map";
    let said = run(&mapped("--rm"), "mapped", &["sh", "-c", script]);
    assert!(said.starts_with("tested\nx\ny\n") && said.contains(&USERS.to_string()), "{said}");

    // What it writes is its root's outside; what it only reads is neither copied nor fetched.
    run(&mapped("-d"), "stays", &["sh", "-c", "echo z >/etc/new; cat /etc/new; sleep 1000"]);
    until("it has written", || !written(&node.store()).is_empty());
    for file in written(&node.store()) {
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USERS, GROUPS), "{}", file.display());
    }
    let shifted = floe::daemon::run_dir(&node.store()).unwrap().join("shifted");
    // containerd collects what has ended a moment later, and never what ended while it did so (`lastCollection` of its
    // `plugins/gc/scheduler.go`): it is asked to.
    let shown = || {
        let at = format!(" / {}/", shifted.display());
        mounts_of(&shifted).iter().filter(|mount| mount.contains(&at)).count()
    };
    containerd.collect();
    until("only what runs is shown", || shown() == 1);
    // Nobody else on the host gets there.
    let mode = fs::metadata(&shifted).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700);
    // Beside it one that has none, of the same mount; and the next daemon goes on for both.
    assert_eq!(run(&["--rm"], "plain", &["cat", "/etc/name"]), "tested\n");
    node.replace_daemon();
    let exec = ["tasks", "exec", "--exec-id", "x", "stays", "cat", "/data/0"];
    assert!(containerd.ctr(&exec).stdout == image::noise(9, 1_500_000));
    assert!(node.received() < image.packed() / 2, "{} of {}", node.received(), image.packed());

    until("a daemon serves containerd", || {
        containerd.ctr(&["snapshots", "--snapshotter", "floe", "ls"]).status.success()
            && containerd.ctr(&["snapshots", "--snapshotter", "stargz", "ls"]).status.success()
    });
    // Who does not know that we can changes the owners in a copy, and says the same; they are not shifted twice.
    containerd.pull_as("stargz", &reference);
    let copied = ["run", "--snapshotter", "stargz"];
    let copied = [&copied[..], &mapped("--rm"), &[&reference, "copied", "sh", "-c", script]].concat();
    let said = containerd.ok(&copied);
    assert!(said.starts_with("tested\nx\ny\n"), "{said}");

    containerd.ok(&["tasks", "rm", "-f", "stays"]);
    containerd.ok(&["containers", "rm", "stays"]);
    containerd.collect();
    until("nothing is shown any more", || shown() == 0);
}

fn a_pod_with_users_of_its_own_runs_without_the_layers_of_its_image(release: Release) {
    let node = kernel_node!("[fetch]\nbackground = false\n[mount]\npath = \"erofs\"\n");
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    if release == Release::Installed {
        testkit::skip!("containerd 1.6 has no pods with users of their own");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let cni = node.path("cni");
    fs::create_dir(&cni).unwrap();
    fs::write(cni.join("nowhere.conflist"), NETWORK).unwrap();
    for plugin in ["none", "loopback"] {
        testkit::program(&cni.join(plugin), NO_NETWORK);
    }
    let containerd = Containerd::start_for_pods(release, &node, &reference);
    let mut cri = Cri::at(&containerd.socket());
    cri.pull(&reference).unwrap();
    let pod = cri.pod_of_others("pod", USERS, GROUPS).unwrap();
    let one = match cri.start(&pod, "one", &reference, &["sleep", "1000"]) {
        // containerd 2 asks the runtime first, and runc says so from 1.2 on.
        Err(refused) if refused.message().contains("missing `mountExtensions.idmap` entry") => {
            cri.remove_pod(&pod);
            testkit::skip!("runc is too old for the containers of such a pod: {}", refused.message());
        }
        started => started.unwrap(),
    };
    let script = "test -O /etc/name && test -G /etc/name && echo x >>/etc/name && echo y >/etc/new && \
                  cat /etc/name /etc/new; cat /proc/self/uid_map /proc/self/gid_map";
    let said = String::from_utf8(cri.exec(&one, &["sh", "-c", script])).unwrap();
    assert!(said.starts_with("tested\nx\ny\n"), "{said}");
    assert!([USERS, GROUPS].iter().all(|id| said.contains(&id.to_string())), "{said}");
    // A copy would have read every file.
    assert!(node.received() < image.packed() / 2, "{} of {}", node.received(), image.packed());
    assert!(cri.exec(&one, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
    for file in written(&node.store()) {
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USERS, GROUPS), "{}", file.display());
    }
    assert!(!written(&node.store()).is_empty());
    cri.remove(&one);
    cri.remove_pod(&pod);
}

/// Returns the files that containers have written into `/etc`.
fn written(store: &Path) -> Vec<PathBuf> {
    let snapshots = fs::read_dir(store.join("snapshots")).into_iter().flatten().flatten();
    snapshots.map(|snapshot| snapshot.path().join("fs/etc/new")).filter(|file| file.exists()).collect()
}
