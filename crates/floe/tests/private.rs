//! Images that not everybody may have: passwords that change under a mount, and what is cached of an image whose registry
//! says no.
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

use containerd::cri::AuthConfig;
use format::Digest;
use serde_json::json;
use support::containerd::{Containerd, Release};
use support::cri::Cri;
use support::image::{self, Layer, Pack, TestImage};
use support::until;
use testkit::faulty::{Faulty, Guard};
use testkit::tar::Entry;

const EIO: Option<i32> = Some(5);

/// A registry with one image and its index, and a node whose kubelet knows the password.
struct Scene {
    server: Faulty,
    image: TestImage,
    kubelet: tempfile::TempDir,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (server, image) = (Faulty::start(), image::simple(seed, 4));
        image.put(&server, "app", "v1");
        image::refer(&server, &image, &image::index_of(&image.layers[0]).encode());
        let kubelet = tempfile::tempdir().unwrap();
        let config = format!(
            "kind: CredentialProviderConfig\nproviders:\n- name: node\n  matchImages: [\"{}\"]\n  \
             defaultCacheDuration: 12h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n",
            server.host()
        );
        fs::write(kubelet.path().join("config.yaml"), config).unwrap();
        testkit::program(&kubelet.path().join("node"), "exec cat \"$0.says\"");
        Self { server, image, kubelet }
    }

    fn config(&self) -> String {
        let dir = self.kubelet.path().display();
        format!(
            "[fetch]\nbackground = false\n[kubelet]\nconfig = \"{dir}/config.yaml\"\nbin_dir = \"{dir}\"\n"
        )
    }

    fn registry_wants(&self, password: &str) {
        self.server.guard(Guard::Basic(format!("node:{password}")));
    }

    fn node_knows(&self, password: &str) {
        let login = format!(r#"{{"username": "node", "password": "{password}"}}"#);
        let text = format!(r#"{{"auth": {{"{}": {login}}}}}"#, self.server.host());
        fs::write(self.kubelet.path().join("node.says"), text).unwrap();
    }
}

fn reads(dir: &Path, seed: u64, n: u64) {
    let read = support::read(&dir.join(format!("data/{n}"))).unwrap();
    assert!(read == image::noise(seed * 1000 + n, 1_500_000), "data/{n}");
}

#[test]
fn a_password_may_change_and_go_under_a_mount() {
    let scene = Scene::new(61);
    let node = node!(&scene.config());
    let tag = format!("{}/app:v1", scene.server.host());
    for (n, password) in (0..).zip(["first", "second"]) {
        scene.registry_wants(password);
        scene.node_knows(password);
        reads(&node.mount(&tag), 61, n);
    }

    // Nobody knows the third one: what is here is read, what is not is an errno.
    let at = node.mount(&tag);
    scene.registry_wants("third");
    reads(&at, 61, 0);
    let error = support::read(&at.join("data/2")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    assert!(node.log().contains(&scene.server.host()), "{}", node.log());

    // Neither does a daemon need it to come back.
    node.replace_daemon();
    reads(&at, 61, 1);
    scene.node_knows("third");
    reads(&at, 61, 2);
}

#[test]
fn what_is_cached_is_no_way_around_the_registry() {
    let scene = Scene::new(62);
    let node = node!(&scene.config());
    let host = scene.server.host();
    let (tag, at) = (format!("{host}/app:v1"), node.mount_point());
    let digest = format!("{host}/app@{}", Digest::of(&scene.image.manifest));
    scene.registry_wants("good");
    scene.node_knows("good");
    for name in [&tag, &digest] {
        node.ok(&["pull", name]);
    }

    // A tag is asked about each time; who is told no is told so, whatever is here.
    scene.node_knows("bad");
    scene.registry_wants("better");
    let complaint = node.fails(&["mount", &tag, at.to_str().unwrap()]);
    assert!(complaint.contains(&host) && complaint.contains("access denied"), "{complaint}");
    assert!(complaint.contains(&format!("hint: docker login {host}")), "{complaint}");
    // A digest that the node has been given once is the same for ever.
    let by_digest = node.mount(&digest);
    reads(&by_digest, 62, 3);
}

each_release!(
    what_a_pods_secret_opens_is_lazy,
    layers_in_common_are_had_from_the_repository_that_had_them_first
);

fn what_a_pods_secret_opens_is_lazy(release: Release) {
    let node = node!("[fetch]\nbackground = false\n");
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    image::refer_all(&server, &image);
    let reference = format!("{}/app:v1", server.host());
    let containerd = Containerd::start_for_pods(release, &node, &reference);
    let mut cri = Cri::at(&containerd.socket()).images_at(&containerd.images());
    let wants = |password: &str| server.guard(Guard::Basic(format!("pod:{password}")));
    let secret = |password| secret("pod", password);

    wants("good");
    assert!(cri.pull(&reference).is_err());
    assert!(cri.pull_as(secret("bad"), &reference).is_err());
    cri.pull_as(secret("good"), &reference).unwrap();
    let layers: usize =
        image.layers.iter().map(|layer| server.count(&image::blob_path("app", &layer.digest()))).sum();
    assert_eq!(layers, 0, "no layer was fetched");
    let pod = cri.pod("pod");
    let one = cri.start(&pod, "one", &reference, &["sleep", "1000"]).unwrap();
    let (small, large) = (image::noise(9, 1_500_000), image::noise(10, 4_000_000));
    assert!(cri.has(&reference) && !cri.has(&reference.replace("v1", "v2")));
    assert!(cri.exec(&one, &["cat", "/data/0"]) == small);

    // Somebody else's secret changes nothing, nor does the daemon's end.
    assert!(cri.pull_as(secret("bad"), &reference).is_err());
    node.replace_daemon();
    assert!(cri.exec(&one, &["head", "-c", "100000", "/data/1"]) == large[..100_000]);

    // One that is good no longer is an error of what is missing, until a pod has the new one.
    wants("better");
    let error = cri.try_exec(&one, &["cat", "/data/1"]).unwrap_err();
    assert!(error.contains("Input/output error"), "{error}");
    assert!(cri.exec(&one, &["cat", "/data/0"]) == small);
    until("containerd has connected again", || cri.pull_as(secret("better"), &reference).is_ok());

    // A reboot forgets it: the image is pulled again before somebody stands on what cannot be fetched. With a secret that is known, or all
    // here, it is there.
    let forget = |cri: &mut Cri| {
        fs::remove_file(floe::daemon::run_dir(&node.store()).unwrap().join("pods")).unwrap();
        node.replace_daemon();
        until("kubelet is heard", || cri.try_image_fs().is_ok());
    };
    forget(&mut cri);
    assert!(!cri.has(&reference));
    until("containerd has connected again", || cri.pull_as(secret("better"), &reference).is_ok());
    assert!(cri.has(&reference));
    assert!(cri.exec(&one, &["cat", "/data/1"]) == large);
    assert!(cri.exec(&one, &["cat", "/bin/busybox"]).len() > 100_000);
    forget(&mut cri);
    assert!(cri.has(&reference), "{}", node.ok(&["status"]));
    // Nothing of it is told: not as it is, nor as it is sent.
    for password in ["good", "better"] {
        let sent = testkit::base64::encode(format!("pod:{password}").as_bytes());
        assert!(!node.log().contains(password) && !node.log().contains(&sent), "{}", node.log());
    }

    cri.remove(&one);
    cri.remove_pod(&pod);
}

/// What a pod's secret says.
fn secret(username: &str, password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: username.into(), password: password.into(), ..AuthConfig::default() })
}

fn layers_in_common_are_had_from_the_repository_that_had_them_first(release: Release) {
    let [first, second, third] = std::array::from_fn(|_| Faulty::start());
    let trust = format!("[registry.\"{}\"]\ntrust = \"registry\"\n", third.host());
    let node = node!(&format!("[fetch]\nbackground = false\n{trust}"));
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    // One image in two repositories, and one that is built on it: of each there is a secret that opens no other.
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let top = Layer::of(&[Entry::file("top", "more")], Pack::Gzip);
    let built = TestImage::new([&image.layers[..], &[top]].concat(), &json!({ "Env": ["PATH=/bin"] }));
    let logins = ["first:good", "second:fine", "third:well"];
    for ((server, image), login) in
        [(&first, &image), (&second, &image), (&third, &built)].into_iter().zip(logins)
    {
        image.put(server, "app", "v1");
        image::refer_all(server, image);
        server.guard(Guard::Basic(login.into()));
    }
    let [one, two, three] = [&first, &second, &third].map(|server| format!("{}/app:v1", server.host()));
    let containerd = Containerd::start_for_pods(release, &node, &one);
    let mut cri = Cri::at(&containerd.socket()).images_at(&containerd.images());
    let (small, large) = (image::noise(9, 1_500_000), image::noise(10, 4_000_000));
    cri.pull_as(secret("first", "good"), &one).unwrap();
    let pod = cri.pod("pod");
    let begun = cri.start(&pod, "begun", &one, &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&begun, &["cat", "/data/0"]) == small);

    // That the layers are here opens nothing: who has no secret of the other repository has no image.
    assert!(cri.pull(&two).is_err());
    assert!(cri.pull_as(secret("first", "good"), &two).is_err());
    assert!(!cri.has(&two));
    assert!(cri.start(&pod, "refused", &two, &["sleep", "1000"]).is_err());

    // With one, they are shared. What is missing comes from where the layers were had first, with the secret of that place.
    cri.pull_as(secret("second", "fine"), &two).unwrap();
    let shares = cri.start(&pod, "shares", &two, &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&shares, &["cat", "/data/0"]) == small);
    assert!(cri.exec(&shares, &["head", "-c", "100000", "/data/1"]) == large[..100_000]);
    let layers = |server: &Faulty| -> usize {
        image.layers.iter().map(|layer| server.count(&image::blob_path("app", &layer.digest()))).sum()
    };
    assert!(layers(&first) > 0);
    assert_eq!(layers(&second), 0);
    let theirs = testkit::base64::encode(b"second:fine");
    let shown = |server: &Faulty| {
        let seen = server.seen().into_iter();
        seen.filter_map(|asked| asked.headers.get("authorization").cloned())
            .any(|said| said.contains(&theirs))
    };
    assert!(shown(&second) && !shown(&first), "it is sent to its own registry only");

    // That secret withdrawn, what is here is read by both, and the rest by none.
    first.guard(Guard::Basic("first:better".into()));
    for container in [&begun, &shares] {
        let error = cri.try_exec(container, &["cat", "/data/1"]).unwrap_err();
        assert!(error.contains("Input/output error"), "{error}");
        assert!(cri.exec(container, &["cat", "/data/0"]) == small);
    }
    // An image with a layer of its own makes its repository known for all of them.
    cri.pull_as(secret("third", "well"), &three).unwrap();
    for container in [&begun, &shares] {
        assert!(cri.exec(container, &["cat", "/data/1"]) == large);
        cri.remove(container);
    }
    assert!(layers(&third) > 0);
    assert_eq!(layers(&second), 0);
    cri.remove_pod(&pod);
}
