//! An image of Nydus that is shown in place of the one that it refers to.

use std::fs;
use std::process::Command;

use format::Digest;
use registry::media_type;
use serde_json::{Value, json};
use testkit::dump;
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

use crate::{kernel_node, node};

use super::support::image::{self, Layer, Pack, TestImage, blob_path};
use super::support::servers::{DockerRegistry, Embedded};
use super::support::soci::{descriptor, store};
use super::support::{self, Node};
use super::{assert_same, is_lazy, nydus, nydus_around, origins, references, shown, vector};

/// An ordinary image, and the manifest of one of Nydus of the same files; both in a repository.
fn with_another(node: &Node, repository: &str) -> (TestImage, Value) {
    let original = image::layered(78, 20, 60_000);
    let other = beside(node, &original, repository);
    (original, other)
}

/// Stores an image, and beside it one of Nydus that `floe convert` makes of it; returns the manifest of that.
fn beside(node: &Node, original: &TestImage, repository: &str) -> Value {
    let [from, made] = ["v1", "made"].map(|tag| format!("{repository}:{tag}"));
    original.push(&from);
    node.ok(&["convert", &from, &format!("docker://{made}"), "--format", "nydus"]);
    let named = format!("{repository}@{}", image::nydus_of(&made));
    let found = tokio::runtime::Runtime::new().unwrap().block_on(async {
        image::client().source(&named.parse().unwrap()).await.unwrap().root().await.unwrap()
    });
    serde_json::from_slice(&found.bytes).unwrap()
}

/// Stores an image that says that it is about another one; returns its digest.
fn refer(repository: &str, mut manifest: Value, original: &TestImage) -> Digest {
    manifest["subject"] = descriptor(media_type::MANIFEST, &original.manifest);
    let manifest = manifest.to_string();
    store(&format!("{repository}:x"), &[(media_type::MANIFEST, manifest.as_bytes())], false, &[]);
    Digest::of(manifest.as_bytes())
}

fn why(node: &Node, reference: &str) -> String {
    node.json(&["inspect", reference])["why"].as_str().unwrap().to_owned()
}

/// An image that another one is shown for, which refers to it: also later, and without network.
fn is_found_by_its_original(path: &str, first: &Node, registry: &mut Embedded) {
    let repository = format!("{}/team/app", registry.host());
    let (original, other) = with_another(first, &repository);
    let reference = format!("{repository}:v1");
    let wanted = shown(&reference);
    let found = refer(&repository, other, &original);
    is_lazy(path, registry, &reference, original.layers.len() + 1, &wanted);
    registry.up();

    let node = Node::reading(path, "[fetch]\nbackground = false\n");
    let at = node.mount(&reference);
    let report = node.json(&["inspect", &reference]);
    assert_eq!(report["manifest"], original.digest().to_string(), "what the name means");
    assert!(report["why"].as_str().unwrap().contains(&found.to_string()), "{report}");
    assert!(node.received() < original.packed() / 10, "{}", node.received());
    node.umount(&at);
    node.stop();
    // What is remembered is asked for no more than any name.
    let at = node.mount(&reference);
    assert!(why(&node, &reference).contains(&found.to_string()));
    assert!(node.received() < 10_000, "{}", node.received());
    node.umount(&at);

    // A pull has the original, and from then on that is shown. So does a comparison.
    let pulled = node.json(&["pull", &reference]);
    let layers = pulled["layers"].as_array().unwrap();
    assert_eq!(layers.len(), original.layers.len());
    assert!(layers.iter().all(|layer| layer["proved"] == true), "{pulled}");
    assert!(!why(&node, &reference).contains("Nydus"), "{}", why(&node, &reference));
    let node = Node::new("");
    let at = node.mount(&reference);
    let made = format!("{repository}@{found}");
    assert!(node.ok(&["check", &reference, &made]).starts_with("the same"));
    assert!(!why(&node, &reference).contains("Nydus"), "{}", why(&node, &reference));
    node.umount(&at);
    // What is verified is what the name means.
    let node = Node::new("");
    let at = node.mount(&reference);
    let verified = node.json(&["verify", &reference]);
    assert_eq!(verified["layers"].as_array().unwrap().len(), original.layers.len());
    node.umount(&at);
}

#[test]
fn an_image_of_nydus_is_found_by_its_original_on_the_kernels_own_path() {
    let node = kernel_node!("");
    is_found_by_its_original("erofs", &node, &mut Embedded::start(&node.path("registry")));
}

#[test]
fn an_image_of_nydus_is_found_by_its_original_through_fuse() {
    let node = node!();
    is_found_by_its_original("fuse", &node, &mut Embedded::start(&node.path("registry")));
}

#[test]
fn an_image_of_nydus_is_found_by_the_tag_that_lists_what_refers_to_its_original() {
    let node = node!();
    let Some(registry) = DockerRegistry::start(&node.path("debian")) else {
        testkit::skip!("there is no docker-registry");
    };
    let repository = format!("{}/team/app", registry.host);
    // The blobs of the one are the layers of the other.
    let (original, other) = references();
    original.push(&format!("{repository}:v1"));
    let wanted = shown(&format!("{repository}:v1"));
    other.push(&format!("{repository}:x"));
    let manifest: Value = serde_json::from_slice(&other.manifest).unwrap();
    refer(&repository, manifest, &original);
    let (at, origins) = origins(&node, &format!("{repository}:v1"));
    assert_eq!(origins, ["contents"; 3], "{}", node.log());
    assert_same(&at, &wanted);
    node.umount(&at);
}

#[test]
fn that_another_image_has_the_same_files_is_a_claim() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let repository = format!("{}/team/app", registry.host());
    let (original, other) = with_another(&first, &repository);
    let reference = format!("{repository}:v1");
    let digest = format!("{repository}@{}", original.digest());
    refer(&repository, other, &original);
    let count = original.layers.len();

    // Anybody may have added it, so nothing vouches for it by the image's digest; nor does a policy take it.
    assert_eq!(origins(&Node::new(""), &digest).1, vec!["streamed"; count]);
    let policy = format!("[trust]\nrequire = [\"{}/team/\"]\n", registry.host());
    assert_eq!(origins(&Node::new(&policy), &reference).1, vec!["streamed"; count]);
    // That the host's word is good for indexes makes no difference.
    let trusted = format!("[registry.\"{}\"]\ntrust = \"registry\"\n", registry.host());
    assert_eq!(origins(&Node::new(&trusted), &digest).1, vec!["streamed"; count]);
    let both = format!("{policy}{trusted}");
    assert_eq!(origins(&Node::new(&both), &reference).1, vec!["streamed"; count]);
    assert_eq!(origins(&Node::new(&trusted), &reference).1, vec!["contents"; count + 1]);
    // What was good enough for a tag of the same manifest is not for its digest.
    let node = Node::new("");
    let (at, by_tag) = origins(&node, &reference);
    assert_eq!(by_tag, vec!["contents"; count + 1]);
    let (beside, by_digest) = origins(&node, &digest);
    assert_eq!(by_digest, vec!["streamed"; count]);
    node.umount(&at);
    node.umount(&beside);
    node.stop();
    // A policy of a later day holds for what is remembered, too, also where nobody can be asked.
    fs::write(node.path("config.toml"), &policy).unwrap();
    drop(registry);
    let failed = node.fails(&["mount", &reference, "/mnt"]);
    assert!(failed.contains("nothing of this image is in the store"), "{failed}");

    let registry = Embedded::start(&first.path("registry"));
    let reference = format!("{}/team/app:v1", registry.host());
    // An index of Floe's is preferred.
    first.ok(&["index", "--push", &reference]);
    assert_eq!(origins(&Node::new(""), &reference).1, vec!["registry"; count]);
}

#[test]
fn an_image_that_refers_to_another_and_cannot_be_read_leaves_that_to_be_shown() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let host = registry.host();
    let (original, other) = with_another(&first, &format!("{host}/team/app"));
    let wanted = shown(&format!("{host}/team/app:v1"));
    let count = original.layers.len();
    let last = other["layers"].as_array().unwrap().len() - 1;
    let mut no_tree = other.clone();
    no_tree["layers"][last] = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"noise");
    no_tree["layers"][last]["annotations"] = other["layers"][last]["annotations"].clone();
    let mut mixed = other.clone();
    mixed["layers"][0] = json!({
        "mediaType": media_type::LAYER_GZIP, "digest": other["layers"][0]["digest"], "size": 1
    });
    let mut long = other.clone();
    long["layers"][last]["size"] = json!(original.packed() + 1);
    let mut ordinary = other.clone();
    ordinary["layers"][last].as_object_mut().unwrap().remove("annotations");
    for (name, manifest, told) in [
        ("damaged", no_tree, "the bootstrap is"),
        ("mixed", mixed, "not all of its layers are Nydus's"),
        ("long", long, "its tree is longer"),
        ("ordinary", ordinary, "no index anywhere"),
    ] {
        let repository = format!("{host}/{name}");
        let copied = format!("docker://{repository}:v1");
        first.ok(&[
            "copy",
            &format!("docker://{host}/team/app:made"),
            &format!("docker://{repository}:made"),
        ]);
        store(&format!("{repository}:x"), &[], false, &[b"noise"]);
        first.ok(&["copy", &format!("docker://{host}/team/app:v1"), &copied]);
        refer(&repository, manifest, &original);
        let (node, reference) = (Node::new(""), format!("{repository}:v1"));
        let (at, origins) = origins(&node, &reference);
        assert_eq!(origins, vec!["streamed"; count], "{name}");
        let why = why(&node, &reference);
        assert!(why.contains(told), "{name}: {why}\n{}", node.log());
        assert_same(&at, &wanted);
        node.umount(&at);
    }
    // What is listed as referring to an image, and says itself that it is about another one.
    let repository = format!("{host}/team/app");
    let another = image::layered(79, 3, 1_000);
    another.push(&format!("{repository}:another"));
    refer(&repository, other, &another);
    assert_eq!(origins(&Node::new(""), &format!("{repository}:v1")).1, vec!["streamed"; count]);
}

#[test]
fn one_tree_is_fetched_of_all_images_that_refer_to_another() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let repository = format!("{}/team/app", registry.host());
    let (original, other) = with_another(&first, &repository);
    let (reference, count) = (format!("{repository}:v1"), original.layers.len());
    let last = other["layers"].as_array().unwrap().len() - 1;
    let made_in = |mut manifest: Value, year: u32| {
        manifest["annotations"]["org.opencontainers.image.created"] =
            json!(format!("{year}-01-01T00:00:00Z"));
        refer(&repository, manifest, &original)
    };
    let good = made_in(other.clone(), 2024);
    // One that is passed over before anything of it is fetched.
    let mut long = other.clone();
    long["layers"][last]["size"] = json!(original.packed() / 8 + 1);
    made_in(long, 2025);
    let node = Node::new("");
    assert_eq!(origins(&node, &reference).1, vec!["contents"; count + 1]);
    assert!(why(&node, &reference).contains(&good.to_string()));
    // And one whose tree is none.
    let mut no_tree = other.clone();
    no_tree["layers"][last] = descriptor(media_type::LAYER_GZIP, b"noise");
    no_tree["layers"][last]["annotations"] = other["layers"][last]["annotations"].clone();
    store(&format!("{repository}:x"), &[], false, &[b"noise"]);
    made_in(no_tree, 2026);
    assert_eq!(origins(&Node::new(""), &reference).1, vec!["streamed"; count]);
}

/// What readers of a mount that is up are told cannot be helped; whoever starts the image next need not know of any of it.
fn is_shown_while_its_blobs_are_there(first: &Node, repository: &str, lose: impl FnOnce(&Digest)) {
    let (original, other) = with_another(first, repository);
    let (reference, count) = (format!("{repository}:v1"), original.layers.len());
    let wanted = shown(&reference);
    refer(repository, other.clone(), &original);
    let lazy = "[fetch]\nbackground = false\n";
    let [running, restarted] = [Node::new(lazy), Node::new(lazy)];
    let (up, by_running) = origins(&running, &reference);
    let (at, by_restarted) = origins(&restarted, &reference);
    assert_eq!([by_running, by_restarted], [vec!["contents"; count + 1], vec!["contents"; count + 1]]);
    restarted.umount(&at);
    restarted.stop();

    lose(&other["layers"][0]["digest"].as_str().unwrap().parse().unwrap());
    assert!(dump::disk(&up).is_err(), "it was all there");
    for node in [&restarted, &running, &Node::new(lazy)] {
        let (at, origins) = origins(node, &reference);
        assert_eq!(origins, vec!["streamed"; count], "{}", node.log());
        let why = why(node, &reference);
        assert!(why.contains("a blob cannot be had") && why.contains("not found"), "{why}");
        assert_eq!(dump::difference(&dump::disk(&at).unwrap(), &wanted), None);
        node.umount(&at);
    }
    running.umount(&up);
}

#[test]
fn an_image_whose_blob_is_gone_is_not_shown_for_another_one() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let repository = format!("{}/team/app", registry.host());
    is_shown_while_its_blobs_are_there(&node, &repository, |blob| registry.lose("team/app", blob));
}

#[test]
fn an_image_whose_blob_debians_registry_has_lost_is_not_shown_for_another_one() {
    let node = node!();
    let Some(registry) = DockerRegistry::start(&node.path("debian")) else {
        testkit::skip!("there is no docker-registry");
    };
    let repository = format!("{}/team/app", registry.host);
    is_shown_while_its_blobs_are_there(&node, &repository, |blob| registry.lose(blob));
}

#[test]
fn a_registry_that_falters_has_lost_no_blob() {
    let node = node!("[fetch]\nbackground = false\n");
    let server = Faulty::start();
    let place = |name: &str| format!("/v2/team/app/manifests/{name}");
    let [reference, other_reference] = ["v1", "other"].map(|tag| format!("{}/team/app:{tag}", server.host()));
    let original = image::layered(81, 20, 60_000);
    let other = nydus(&[vector("zstd.blob")], &vector("zstd.boot"));
    original.put(&server, "team/app", "v1");
    other.put(&server, "team/app", "other");
    let wanted = shown(&other_reference);
    let mut manifest: Value = serde_json::from_slice(&other.manifest).unwrap();
    manifest["subject"] = descriptor(media_type::MANIFEST, &original.manifest);
    let manifest = manifest.to_string();
    let mut entry = descriptor(media_type::MANIFEST, manifest.as_bytes());
    server.put(&place(entry["digest"].as_str().unwrap()), media_type::MANIFEST, manifest.as_bytes());
    entry["artifactType"] = json!(media_type::CONFIG);
    let list = json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [entry] });
    let tag = format!("sha256-{}", original.digest().hex());
    server.put(&place(&tag), media_type::INDEX, list.to_string().as_bytes());

    let blob = blob_path("team/app", &other.layers[0].digest());
    let answers = |code| server.fault(&blob, Fault::Status { code, retry_after: None }, u32::MAX);
    answers(503);
    for _ in 0..2 {
        let (at, origins) = origins(&node, &reference);
        assert_eq!(origins, ["contents"; 2], "{}", node.log());
        node.umount(&at);
    }
    server.heal();
    let at = node.mount(&reference);
    assert_same(&at, &wanted);
    node.umount(&at);
    // What is complete is asked for nowhere.
    answers(404);
    assert_eq!(origins(&node, &reference).1, ["contents"; 2]);
    let count = original.layers.len();
    assert_eq!(origins(&Node::new(""), &reference).1, vec!["streamed"; count]);
}

/// Its files are those of the other, so a start of the one tells what a start of the other reads.
#[test]
fn what_a_start_has_read_is_known_of_the_image_that_was_asked_for() {
    let node = node!();
    let script = "cat /data/f7 >/dev/null; echo READY; sleep 60";
    let config = json!({ "Cmd": ["sh", "-c", script], "Env": ["PATH=/bin"] });
    let Some(mut original) = image::runnable(&config) else { testkit::skip!("there is no busybox") };
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    let files = (0..20).map(|n| Entry::file(format!("data/f{n}"), image::noise(n, 300_000)));
    let data: Vec<Entry> = [Entry::dir("data/")].into_iter().chain(files).collect();
    original.layers[1] = Layer::of(&data, Pack::Gzip);
    let original = TestImage::new(original.layers, &config);
    let registry = Embedded::start(&node.path("registry"));
    let repository = format!("{}/team/app", registry.host());
    let other = beside(&node, &original, &repository);
    let found = refer(&repository, other, &original);
    let reference = format!("{repository}:v1");
    let start = |node: &Node| {
        node.ok(&["run", "--ready", "line:READY", "--exit-when-ready", &reference]);
        why(node, &reference)
    };
    let recorded = |node: &Node| node.store().join("profile").join(original.digest().hex());
    let is_own = |node: &Node| {
        let text = String::from_utf8_lossy(&fs::read(recorded(node)).unwrap()).into_owned();
        assert!(text.contains("data/f7"), "{text}");
        !text.contains(r#""segments":[]"#)
    };
    let learner = Node::new("");
    assert!(start(&learner).contains(&found.to_string()));
    assert!(!is_own(&learner));
    let to = learner.path("to");
    let (layout, estargz) = (format!("oci:{}:v1", to.display()), ["--format", "estargz", "--verify"]);
    learner.ok(&[&["optimize", &reference, &layout][..], &estargz].concat());
    let made = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let source = image::client().source(&layout.parse().unwrap()).await.unwrap();
        source.image(&registry::Platform::host()).await.unwrap()
    });
    let layer = to.join("blobs/sha256").join(made.layers[1].digest.hex());
    let listed = support::tool(Command::new("tar").arg("-tzf").arg(layer));
    assert_eq!(listed.lines().take(3).collect::<Vec<_>>(), ["data/", "data/f7", ".prefetch.landmark"]);

    // A start of its own tells more, and that stays.
    learner.ok(&["pull", &reference]);
    assert!(!start(&learner).contains("Nydus"));
    assert!(is_own(&learner));
    let told = Node::new("");
    told.ok(&["status"]);
    fs::create_dir_all(recorded(&told).parent().unwrap()).unwrap();
    fs::copy(recorded(&learner), recorded(&told)).unwrap();
    assert!(start(&told).contains(&found.to_string()));
    assert!(is_own(&told));
}

/// A few kilobytes that become more than anybody who only wants to start an image should have to hold.
#[test]
fn a_tree_that_was_not_asked_for_may_not_be_as_large_as_one_that_was() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let [reference, large] = ["v1", "large"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
    let original = image::layered(80, 20, 60_000);
    original.push(&reference);
    let boot = vector("zstd.boot");
    let image = nydus_around(
        &[vector("zstd.blob")],
        &[Entry::file("more", vec![0; 64 << 20]), Entry::file("image/image.boot", boot)],
    );
    assert!(image.layers[1].blob.len() as u64 <= original.packed() / 8, "its length is no reason");
    image.push(&large);
    refer(
        &format!("{}/team/app", registry.host()),
        serde_json::from_slice(&image.manifest).unwrap(),
        &original,
    );
    assert_eq!(origins(&node, &large).1, ["contents"; 2]);
    let node = Node::new("");
    assert_eq!(origins(&node, &reference).1, vec!["streamed"; original.layers.len()]);
    let why = why(&node, &reference);
    assert!(why.contains("the bootstrap is longer than 67108864 bytes"), "{why}");
}
