//! Images copied with all that belongs to them: between registries, layouts and archives, and past what goes wrong.
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
use std::process::{Command, Stdio};

use bytes::Bytes;
use format::Digest;
use registry::{Content, Manifest, Pick, Repository, Tag, media_type};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::image::{self, Layer, Pack, TestImage};
use support::servers::{DockerRegistry, Embedded};
use support::{Node, until};
use testkit::faulty::{Fault, Faulty, Guard};
use testkit::tar::Entry;

/// Nothing here needs more retries.
fn impatient(server: &Faulty) -> String {
    format!("[registry.\"{}\".budgets]\nstall = 1\nretries = 1\nretry_min = 0.01\n", server.host())
}

fn repository(reference: &str) -> Repository {
    let name = image::name(reference);
    image::client().repository(name.host(), name.repository())
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Returns what a name means in a registry.
fn resolved(reference: &str) -> Option<Digest> {
    let name = image::name(reference);
    match run(repository(reference).manifest(&Pick::of(&name))) {
        Ok(manifest) => Some(manifest.digest),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("{reference}: {error}"),
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

fn manifest(kind: &str, value: &Value) -> Manifest {
    let bytes = Bytes::from(value.to_string());
    Manifest { digest: Digest::of(&bytes), media_type: kind.into(), bytes }
}

/// Stores something of one blob, about a manifest or under a tag.
fn attach(reference: &str, blob: &str, subject: Option<&Manifest>, tag: Option<&Tag>) -> Manifest {
    let mut value = json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "artifactType": "application/vnd.test.signature",
        "config": descriptor(media_type::EMPTY, b"{}"), "layers": [descriptor("text/plain", blob.as_bytes())],
        "annotations": { "test": blob }
    });
    if let Some(subject) = subject {
        value["subject"] = descriptor(&subject.media_type, &subject.bytes);
    }
    let made = manifest(media_type::MANIFEST, &value);
    let to = repository(reference);
    run(async {
        for bytes in ["{}", blob] {
            to.push_blob(&Content::bytes(Bytes::copy_from_slice(bytes.as_bytes())), None).await.unwrap();
        }
        let pick = tag.map_or(Pick::Digest(made.digest), |tag| Pick::Tag(tag.clone()));
        to.push_manifest(&made, &pick).await.unwrap();
    });
    made
}

/// An image for two platforms with all that an image can have: an index of Floe's for one of them, signatures of the
/// list, one of these signed in turn, and what cosign keeps under tags.
struct Everything {
    reference: String,
    list: Manifest,
    /// Which manifest is listed as referring to which.
    referrers: Vec<(Digest, Digest)>,
    tags: Vec<Tag>,
}

impl Everything {
    fn push(reference: &str, here: &TestImage) -> Self {
        let other = Layer::of(&[Entry::file("elsewhere", image::noise(3, 9_000_000))], Pack::Gzip);
        let there = TestImage::new(vec![here.layers[0].clone(), other], &json!({ "Cmd": ["other"] }));
        let platform = |image: &TestImage, arch: &str| {
            let mut entry = descriptor(media_type::MANIFEST, &image.manifest);
            entry["platform"] = json!({ "os": "linux", "architecture": arch });
            entry
        };
        let [own, foreign] =
            if cfg!(target_arch = "aarch64") { ["arm64", "amd64"] } else { ["amd64", "arm64"] };
        let list = json!({
            "schemaVersion": 2, "mediaType": media_type::INDEX, "annotations": { "kept": "as it is" },
            "manifests": [platform(&there, foreign), platform(here, own)]
        });
        let list = manifest(media_type::INDEX, &list);
        there.push(reference);
        here.push(reference);
        run(repository(reference).push_manifest(&list, &Pick::of(&image::name(reference)))).unwrap();
        Node::new("").ok(&["index", "--push", reference]);

        let signature = attach(reference, "signature", Some(&list), None);
        let over = attach(reference, "signature over a signature", Some(&signature), None);
        let mut referrers = vec![(list.digest, signature.digest), (signature.digest, over.digest)];
        let indexes = run(repository(reference).referrers(&here.digest(), None)).unwrap();
        assert_eq!(indexes.len(), 1, "{indexes:?}");
        referrers.push((here.digest(), indexes[0].digest));
        let tags = [&Tag::cosign(&list.digest)[0], &Tag::cosign(&here.digest())[1]].map(Clone::clone);
        for tag in &tags {
            attach(reference, tag.as_str(), None, Some(tag));
        }
        Self { reference: reference.to_owned(), list, referrers, tags: tags.into() }
    }

    /// Compares what is in a repository with what was pushed.
    fn is_at(&self, reference: &str) {
        assert_eq!(resolved(reference), Some(self.list.digest), "{reference}");
        let (from, to) = (repository(&self.reference), repository(reference));
        run(async {
            for (subject, referrer) in &self.referrers {
                let listed = to.referrers(subject, None).await.unwrap();
                assert_eq!(listed, from.referrers(subject, None).await.unwrap(), "{reference}");
                assert!(listed.iter().any(|entry| entry.digest == *referrer));
                to.manifest(&Pick::Digest(*referrer)).await.unwrap();
            }
            for tag in &self.tags {
                let pick = Pick::Tag(tag.clone());
                let [there, here] = [to.manifest(&pick).await.unwrap(), from.manifest(&pick).await.unwrap()];
                assert_eq!(there.bytes, here.bytes, "{reference} {tag}");
            }
        });
    }
}

#[test]
fn everything_goes_through_every_kind_of_place() {
    let node = node!("");
    let image = image::simple(60, 2);
    let registry = Embedded::start(&node.path("registry"));
    let Some(debian) = DockerRegistry::start(&node.path("debian")) else {
        testkit::skip!("there is no docker-registry");
    };
    let all = Everything::push(&format!("{}/team/app:v1", registry.host()), &image);
    let copy = |from: &str, to: &str| node.json(&["copy", from, to]);

    let (dir, archive) = (node.path("layout"), node.path("image.tar"));
    let places = [
        format!("docker://{}", all.reference),
        format!("docker://{}/app:v1", debian.host), // no referrers API
        format!("oci:{}:first", dir.display()),
        format!("oci-archive:{}:second", archive.display()),
        format!("docker://{}/back:v2", registry.host()),
    ];
    for pair in places.windows(2) {
        let report = copy(&pair[0], &pair[1]);
        assert_eq!(report["digest"], all.list.digest.to_string());
        assert_eq!((&report["manifests"], &report["referrers"]), (&json!(3), &json!(5)), "{report}");
        let blobs = ["sent", "mounted", "existed"].map(|how| report[how].as_u64().unwrap());
        // Two configs, two layers, an index of each layer of one image, the empty config, four of `attach`.
        assert_eq!(blobs.iter().sum::<u64>(), 10, "{report}");
        if let Some(reference) = pair[1].strip_prefix("docker://") {
            all.is_at(reference);
        }
        // A second time nothing is sent, except to an archive, which is made anew.
        let again = copy(&pair[0], &pair[1]);
        if !pair[1].starts_with("oci-archive:") {
            assert_eq!((&again["sent"], &again["existed"]), (&json!(0), &json!(10)), "{again}");
        }
    }
    assert!(node.daemon().is_none(), "no daemon is needed");

    // What came around all of them is lazy, and its bytes are those of the source.
    let last = places[4].strip_prefix("docker://").unwrap();
    let other = Node::new("[fetch]\nbackground = false\n");
    let at = other.mount(last);
    assert_eq!(fs::read(at.join("etc/hello")).unwrap(), b"hello 60\n");
    assert!(other.received() < image.packed() / 2, "{} of {}", other.received(), image.packed());
    assert!(fs::read(at.join("data/1")).unwrap() == image::noise(60_001, 1_500_000));

    // The archive on stdout is the same as in a file.
    let outcome = node.run(&["copy", &places[2], "oci-archive:-:second"]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.stdout == fs::read(&archive).unwrap());
    assert!(outcome.stderr.contains(&all.list.digest.to_string()), "{}", outcome.stderr);

    // And on stdin.
    let streamed = node.path("streamed");
    let mut command = node.command(&["copy", "oci-archive:-:second", &format!("oci:{}", streamed.display())]);
    command.stdin(fs::File::open(&archive).unwrap());
    let outcome = node.spawn(command).end();
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(streamed.join("blobs/sha256").join(all.list.digest.hex()).exists());
    let complaint = node.fails(&["copy", "oci-archive:-", &format!("oci:{}", streamed.display())]);
    assert!(complaint.contains("there is nothing"), "{complaint}");

    // Others can read what was written.
    let Some(skopeo) = support::program("skopeo") else { testkit::skip!("there is no skopeo") };
    for (n, place) in places[1..].iter().enumerate() {
        let mut command = Command::new(&skopeo);
        command.args(["--insecure-policy", "copy", "--all", "--src-tls-verify=false", place]);
        let to = node.path(&format!("skopeo-{n}"));
        support::tool(command.arg(format!("oci:{}:x", to.display())));
        let list = to.join("blobs/sha256").join(all.list.digest.hex());
        assert_eq!(fs::read(list).unwrap(), all.list.bytes, "{place}");
    }
}

#[test]
fn between_repositories_of_a_registry_blobs_are_mounted() {
    let node = node!("");
    let image = image::layered(61, 3, 300_000);
    let embedded = Embedded::start(&node.path("registry"));
    let debian = DockerRegistry::start(&node.path("debian"));
    for host in
        [Some(embedded.host()), debian.as_ref().map(|debian| debian.host.clone())].into_iter().flatten()
    {
        let (from, to) = (format!("{host}/from:v1"), format!("{host}/deep/to:v2"));
        image.push(&from);
        let report = node.json(&["copy", &from, &to]);
        assert_eq!((&report["mounted"], &report["sent"]), (&json!(4), &json!(0)), "{report}");
        assert_eq!(resolved(&to), Some(image.digest()));
        // Another tag of the same repository needs nothing; a digest that is given must be the image's.
        let report = node.json(&["copy", &to, &format!("{host}/deep/to:v3@{}", image.digest())]);
        assert_eq!(report["existed"], 4, "{report}");
        assert_eq!(resolved(&format!("{host}/deep/to:v3")), Some(image.digest()));
        let wrong = format!("{host}/deep/to:v4@{}", Digest::of(b"another"));
        let complaint = node.fails(&["copy", &to, &wrong]);
        assert!(complaint.contains("no copy can be"), "{complaint}");
        assert_eq!(resolved(&format!("{host}/deep/to:v4")), None);
    }
}

/// A registry that has an image of some layers and misbehaves, and a registry to copy it to.
struct Scene {
    server: Faulty,
    image: TestImage,
    from: String,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (server, image) = (Faulty::start(), image::layered(seed, 4, 400_000));
        image.put(&server, "app", "v1");
        let from = format!("{}/app:v1", server.host());
        Self { server, image, from }
    }

    fn blob(&self, layer: usize) -> String {
        image::blob_path("app", &self.image.layers[layer].digest())
    }
}

/// Returns whether a registry has so many of an image's blobs.
fn has(node: &Node, dir: &str, image: &TestImage, count: usize) -> bool {
    let layers = image.layers.iter().map(Layer::digest).chain([Digest::of(&image.config)]);
    let there = layers.filter(|digest| node.path(dir).join("blobs/sha256").join(digest.hex()).exists());
    there.count() == count
}

#[test]
fn a_copy_goes_on_where_a_registry_died() {
    let scene = Scene::new(62);
    let node = node!(&impatient(&scene.server));
    let mut registry = Embedded::start(&node.path("registry"));
    let to = format!("{}/app:v1", registry.host());
    // The source fails in the middle of a layer, for good.
    scene.server.fault(&scene.blob(2), Fault::Close { after: 10 }, u32::MAX);
    let complaint = node.fails(&["copy", &scene.from, &to]);
    assert!(complaint.contains("are not sent again"), "{complaint}");
    assert_eq!(resolved(&to), None);
    scene.server.heal();
    // The others may or may not have arrived by then; they have when the layer does not come at all.
    scene.server.fault(&scene.blob(2), Fault::Stall { after: 10 }, u32::MAX);
    let copying = node.spawn(node.command(&["copy", &scene.from, &to]));
    until("all but one have arrived", || has(&node, "registry", &scene.image, 4));
    registry.down();
    scene.server.heal();
    let outcome = copying.end();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("are not sent again"), "{outcome:?}");
    registry.up();
    assert_eq!(resolved(&to), None);
    let report = node.json(&["copy", &scene.from, &to]);
    assert_eq!((&report["sent"], &report["existed"]), (&json!(1), &json!(4)), "{report}");
    assert_eq!(report["bytes"], scene.image.layers[2].blob.len());
    assert_eq!(resolved(&to), Some(scene.image.digest()));
}

#[test]
fn wrong_bytes_are_refused_and_name_nothing() {
    let scene = Scene::new(63);
    let node = node!(&impatient(&scene.server));
    let registry = Embedded::start(&node.path("registry"));
    let (dir, archive) = (node.path("layout"), node.path("image.tar"));
    let places = [
        format!("{}/app:v1", registry.host()),
        format!("oci:{}:v1", dir.display()),
        format!("oci-archive:{}:v1", archive.display()),
    ];
    let evil = image::noise(99, scene.image.layers[1].blob.len());
    scene.server.fault(&scene.blob(1), Fault::Swap(evil), u32::MAX);
    for to in &places {
        let complaint = node.fails(&["copy", &scene.from, to]);
        let layer = scene.image.layers[1].digest().to_string();
        assert!(complaint.contains(&layer) && complaint.contains("what came has digest"), "{complaint}");
        assert!(complaint.contains("nothing was named"), "{complaint}");
    }
    // One of another length is not even read.
    scene.server.heal();
    scene.server.fault(&scene.blob(1), Fault::Swap(vec![1; 10]), u32::MAX);
    for to in &places {
        node.fails(&["copy", &scene.from, to]);
    }
    // A manifest that is not what its list says.
    scene.server.heal();
    let list = json!({ "schemaVersion": 2, "mediaType": media_type::INDEX,
        "manifests": [descriptor(media_type::MANIFEST, &scene.image.manifest)] });
    scene.server.put("/v2/app/manifests/list", media_type::INDEX, list.to_string().as_bytes());
    let manifest = format!("/v2/app/manifests/{}", scene.image.digest());
    scene.server.fault(&manifest, Fault::Swap(list.to_string().into()), u32::MAX);
    for to in &places {
        let complaint = node.fails(&["copy", &scene.from.replace(":v1", ":list"), to]);
        assert!(complaint.contains("what came has digest"), "{complaint}");
    }
    assert_eq!(resolved(&places[0]), None);
    assert_nothing_is_named(&dir, &archive);
}

/// Says that a layout that was copied to has no image, and that neither it nor an archive has left a draft.
fn assert_nothing_is_named(dir: &Path, archive: &Path) {
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"], json!([]));
    assert!(!archive.exists());
    for dir in [dir, &dir.join("blobs/sha256"), archive.parent().unwrap()] {
        let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
        let drafts: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(".tmp-")).collect();
        assert!(drafts.is_empty(), "{drafts:?}");
    }
}

#[test]
fn a_destination_that_refuses_is_named_with_a_hint() {
    let node = node!("");
    let source = Embedded::start(&node.path("registry"));
    let from = format!("{}/app:v1", source.host());
    image::layered(64, 2, 100_000).push(&from);
    let refused = |code: u16, hint: &str| {
        let server = Faulty::start();
        server.fault("/v2/to/blobs/uploads/", Fault::Status { code, retry_after: None }, u32::MAX);
        let to = format!("{}/to:v1", server.host());
        let complaint = node.fails(&["copy", &from, &to]);
        assert!(complaint.contains(&server.host()) && complaint.contains(hint), "{code}: {complaint}");
        assert!(
            server.seen().iter().all(|seen| !seen.path.contains("/manifests/")),
            "{code}: nothing is named"
        );
    };
    refused(403, "hint: docker login");
    refused(401, "hint: docker login");
    refused(413, "client_max_body_size");
    let locked = Faulty::start();
    locked.guard(Guard::Basic("user:secret".into()));
    let complaint = node.fails(&["copy", &from, &format!("{}/to:v1", locked.host())]);
    assert!(complaint.contains("hint: docker login"), "{complaint}");

    let complaint = node.fails(&["copy", &from.replace(":v1", ":v9"), &from]);
    assert!(complaint.contains("not found") && complaint.contains("is the name right?"), "{complaint}");
    let complaint = node.fails(&["copy", &from, "dir:/tmp"]);
    assert!(complaint.contains("not supported"), "{complaint}");
}

#[test]
fn an_interrupted_copy_ends_at_once_and_leaves_no_draft() {
    let scene = Scene::new(65);
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let (dir, archive) = (node.path("layout"), node.path("image.tar"));
    let remote = format!("{}/app:v1", registry.host());
    let places =
        [remote.clone(), format!("oci:{}", dir.display()), format!("oci-archive:{}", archive.display())];
    scene.server.fault(&scene.blob(3), Fault::Stall { after: 100_000 }, u32::MAX);
    for (n, to) in places.iter().enumerate() {
        let copying = node.spawn(node.command(&["copy", &scene.from, to]));
        until("the layer is asked for", || scene.server.count(&scene.blob(3)) > n);
        copying.signal(Signal::INT);
        let outcome = copying.end();
        assert_eq!(outcome.status.code(), Some(130), "{outcome:?}");
        assert!(outcome.stderr.contains("interrupted"), "{outcome:?}");
    }
    assert_eq!(resolved(&remote), None);
    assert_nothing_is_named(&dir, &archive);
    scene.server.heal();
    for to in &places {
        node.ok(&["copy", &scene.from, to]);
    }
    assert_eq!(resolved(&remote), Some(scene.image.digest()));
    // What has no name is the only one there is.
    for place in &places[1..] {
        assert_eq!(node.json(&["copy", place, &remote])["existed"], 5);
    }
}

#[test]
fn what_is_listed_falsely_or_kept_elsewhere_is_left_out_and_told() {
    let scene = Scene::new(66);
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let image = &scene.image;
    // One that is about something else, one that is not there, one of a kind that nobody knows.
    let stranger = json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": descriptor(media_type::EMPTY, b"{}"),
        "layers": [], "subject": descriptor(media_type::MANIFEST, b"another")
    });
    let stranger = manifest(media_type::MANIFEST, &stranger);
    let path = format!("/v2/app/manifests/{}", stranger.digest);
    scene.server.put(&path, media_type::MANIFEST, &stranger.bytes);
    let list = json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [
        descriptor(media_type::MANIFEST, &stranger.bytes), descriptor(media_type::MANIFEST, b"gone"),
        descriptor("application/vnd.nobody.knows", b"x")
    ]});
    let path = format!("/v2/app/referrers/{}", image.digest());
    scene.server.put(&path, media_type::INDEX, list.to_string().as_bytes());
    // A layer that Windows images have.
    let mut value: Value = serde_json::from_slice(&image.manifest).unwrap();
    let mut foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"licensed");
    foreign["urls"] = json!(["https://vendor.example/layer"]);
    value["layers"].as_array_mut().unwrap().push(foreign);
    scene.server.put("/v2/app/manifests/foreign", media_type::MANIFEST, value.to_string().as_bytes());

    let outcome = node.run(&["copy", &scene.from, &format!("{}/app:v1", registry.host())]);
    assert!(outcome.status.success(), "{outcome:?}");
    for why in ["it does not", "it is not there", "are not known"] {
        assert!(outcome.stderr.contains(why), "{why}: {}", outcome.stderr);
    }
    let from = scene.from.replace(":v1", ":foreign");
    let outcome = node.run(&["copy", &from, &format!("{}/app:v2", registry.host())]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.stderr.contains("https://vendor.example/layer"), "{}", outcome.stderr);
}

/// A copy of a layer of hundreds of megabytes must not need as much memory.
#[test]
fn a_large_layer_passes_through_little_memory() {
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let debian = DockerRegistry::start(&node.path("debian"));
    let file = Entry::file("large", image::noise(67, 150_000_000));
    let image = TestImage::new(vec![Layer::of(&[file], Pack::Plain)], &json!({}));
    let from = format!("{}/app:v1", registry.host());
    image.push(&from);
    let hosts = [Some(registry.host()), debian.as_ref().map(|debian| debian.host.clone())];
    let mut places: Vec<_> = hosts.into_iter().flatten().map(|host| format!("{host}/to:v1")).collect();
    places.extend([format!("oci:{}", node.path("layout").display()), "oci-archive:/dev/null/no".into()]);
    for to in &places[..places.len() - 1] {
        // 96 MiB of anonymous memory, threads' stacks and all: no layer fits in.
        let mut command = Command::new("sh");
        let floe = node.command(&["copy", &from, to]);
        command.args(["-c", "ulimit -d 98304 && exec \"$0\" \"$@\""]).arg(floe.get_program());
        command.args(floe.get_args()).stdin(Stdio::null());
        node.isolate(&mut command);
        let outcome = node.spawn(command).end();
        assert!(outcome.status.success(), "{to}: {outcome:?}");
    }
    node.fails(&["copy", &from, &places[places.len() - 1]]);
}
