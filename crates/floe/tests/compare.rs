//! Images side by side: what differs between versions, whether a copy is one.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use serde_json::{Value, json};
use support::image::{Layer, Pack, TestImage, noise};
use support::servers::Embedded;
use support::{Node, Outcome};
use testkit::tar::Entry;

/// Stores an image under a tag, with its index, made by another node; returns the reference.
fn indexed(registry: &Embedded, tag: &str, image: &TestImage) -> String {
    let reference = stored(registry, tag, image);
    Node::new("").ok(&["index", "--push", &reference]);
    reference
}

fn stored(registry: &Embedded, tag: &str, image: &TestImage) -> String {
    let reference = format!("{}/app:{tag}", registry.host());
    image.push(&reference);
    reference
}

fn image(layers: &[(&[Entry], Pack)]) -> TestImage {
    let layers = layers.iter().map(|(entries, pack)| Layer::of(entries, *pack)).collect();
    TestImage::new(layers, &json!({}))
}

/// Runs a comparison that must find differences.
fn differ(node: &Node, args: &[&str]) -> Outcome {
    let outcome = node.run(args);
    assert_eq!(outcome.status.code(), Some(4), "floe {args:?}: {outcome:?}\nlog: {}", node.log());
    outcome
}

fn differences(node: &Node, args: &[&str]) -> Value {
    differ(node, &[&["--output", "json"], args].concat()).json()["differences"].clone()
}

fn base() -> Vec<Entry> {
    let mut entries = vec![Entry::dir("usr/"), Entry::file("usr/large", noise(1, 900_000))];
    entries.extend((0..10).map(|n| Entry::file(format!("usr/{n}"), noise(10 + n, 2000))));
    entries
}

#[test]
fn versions_differ_in_what_has_changed_and_little_is_fetched_to_tell() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let base = base();
    let (kept, moved) = (noise(30, 400_000), noise(31, 600_000));
    let first = [
        Entry::dir("app/"),
        Entry::file("app/kept", &kept),
        Entry::file("app/changed", noise(32, 300_000)),
        Entry::file("app/gone", &moved),
        Entry::file("app/mode", "m"),
        Entry::symlink("app/link", "kept"),
    ];
    let second = [
        Entry::dir("app/").owner(5, 6),
        Entry::file("app/added", &moved),
        Entry::file("app/kept", &kept).mtime(1_800_000_000, 0),
        Entry::file("app/changed", noise(33, 300_000)),
        Entry::file("app/mode", "m").mode(0o755).xattr("security.x", "y"),
        Entry::symlink("app/link", "changed"),
    ];
    let first = image(&[(&base, Pack::Gzip), (&first, Pack::Gzip)]);
    let second = image(&[(&base, Pack::Gzip), (&second, Pack::Gzip)]);
    let (v1, v2) = (indexed(&registry, "v1", &first), indexed(&registry, "v2", &second));

    let lines = "~ /app  owner\n+ /app/added\n~ /app/changed  content\n- /app/gone\n~ /app/kept  time\n\
                 ~ /app/link  target\n~ /app/mode  mode, xattrs\n7 of 19 entries differ\n";
    let text = differ(&node, &["diff", &v1, &v2]).text();
    assert!(text.starts_with(lines), "{text}");
    assert!(text.contains("an upgrade fetches 1 of 2 layers, "), "{text}");
    // "m" shares its chunk with nobody on either side, and the indexes tell all of the rest.
    assert!(node.received() < 50_000, "{}", node.received());

    let report = differ(&node, &["--output", "json", "diff", &v1, &v2]).json();
    assert_eq!(
        report["differences"][0],
        json!({ "path": "/app", "difference": "changed", "what": ["owner"] })
    );
    assert_eq!((&report["entries"], &report["left_out"]), (&json!(19), &json!(0)));
    let upgrade = &report["upgrade"];
    let blob = second.layers[1].blob.len();
    assert_eq!((&upgrade["new_layers"], &upgrade["layers"]), (&json!(1), &json!(2)), "{upgrade}");
    assert_eq!(
        (&upgrade["new_layer_bytes"], &upgrade["layer_bytes"]),
        (&json!(blob), &json!(second.packed()))
    );
    assert_eq!(upgrade["new_chunk_bytes"], 300_000, "the rest is in chunks of v1");
    let packed = upgrade["new_chunk_packed"].as_u64().unwrap();
    assert!((60_000..400_000).contains(&packed), "{packed} of {blob}");

    // The other way round, what was added was removed; and nothing differs from itself.
    let back = differences(&node, &["diff", &v2, &v1]);
    assert_eq!((&back[1]["path"], &back[1]["difference"]), (&json!("/app/added"), &json!("removed")));
    let same = node.ok(&["diff", &v1, &v1]);
    assert!(same.starts_with("the same: 18 entries, ") && same.contains("fetches 0 of 2 layers"), "{same}");
}

/// What the indexes cannot tell is read, of both, and no more than that.
#[test]
fn small_files_whose_neighbours_have_changed_are_read() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let entries = |changed: u64| {
        let mut entries = base();
        entries[5] = Entry::file("usr/3", noise(changed, 2000));
        image(&[(&entries, Pack::Gzip)])
    };
    let [v1, v2, v3] =
        [("v1", 1), ("v2", 1), ("v3", 2)].map(|(tag, changed)| indexed(&registry, tag, &entries(changed)));
    node.ok(&["diff", &v1, &v2]);
    let report = differ(&node, &["--output", "json", "diff", &v1, &v3]).json();
    assert_eq!(
        report["differences"],
        json!([{ "path": "/usr/3", "difference": "changed", "what": ["content"] }])
    );
    assert_eq!(report["read"], 10 * 2000);
    assert!(node.received() < 900_000, "{}: the large file was fetched", node.received());
}

#[test]
fn an_image_without_an_index_is_fetched_and_that_is_said() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let reference = stored(&registry, "v1", &image(&[(&base(), Pack::Gzip)]));
    let outcome = node.run(&["diff", &reference, &reference]);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("full for 1 of 1 layers").count(), 1, "{}", outcome.stderr);
    assert!(node.fails(&["diff", &reference, &format!("{}/app:none", registry.host())]).contains("app:none"));
}

#[test]
fn a_copy_in_other_layers_and_another_packing_is_the_same() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let dir = node.path("rich");
    std::fs::create_dir(&dir).unwrap();
    let rich = support::image::rich(&dir);
    let original = stored(&registry, "rich", &rich);
    let packed = |pack| {
        let layers = rich.layers.iter().map(|layer| Layer::new(layer.tar.clone(), pack)).collect();
        TestImage::new(layers, &json!({}))
    };
    for (tag, pack) in [("plain", Pack::Plain), ("zstd", Pack::Zstd)] {
        let copy = stored(&registry, tag, &packed(pack));
        let text = node.ok(&["check", &original, &copy]);
        assert!(text.starts_with("the same: ") && text.lines().count() == 1, "{text}");
    }

    // All in one layer, in another order: other chunks.
    let some = [
        Entry::dir("d/"),
        Entry::file("d/a", noise(1, 5000)),
        Entry::link("d/b", "d/a"),
        Entry::file("c", noise(2, 700_000)),
    ];
    let first = stored(&registry, "two", &image(&[(&some[..3], Pack::Gzip), (&some[3..], Pack::Gzip)]));
    let [a, b, c, d] = some.clone();
    let second = stored(&registry, "one", &image(&[(&[d, a, b, c], Pack::Zstd)]));
    let report = node.json(&["check", &first, &second]);
    assert_eq!((&report["entries"], &report["bytes"]), (&json!(4), &json!(705_000)));
}

/// Equal hashes are no more than two claims before the layers have been hashed.
#[test]
fn what_an_index_claims_is_not_taken_for_proved() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let base = base();
    let [first, second] = [("v1", Pack::Gzip), ("v2", Pack::Zstd)].map(|(tag, pack)| {
        indexed(&registry, tag, &image(&[(&base, pack), (&[Entry::file(tag, "")], pack)]))
    });
    let args = ["check", &first, &second];
    let text = differ(&node, &args).text();
    // The base is one layer by its index, however it is packed.
    assert!(
        text.ends_with("3 layers are what an index says that was not proved here; `floe pull` proves it\n"),
        "{text}"
    );
    node.ok(&["verify", &first]);
    let text = differ(&node, &args).text();
    assert!(
        text.ends_with("1 layer is what an index says that was not proved here; `floe pull` proves it\n"),
        "{text}"
    );
    node.ok(&["pull", &second]);
    assert!(differ(&node, &args).text().ends_with("2 of 14 entries differ\n"));
}

#[test]
fn a_copy_that_is_none_is_told_by_what_differs() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let base = base();
    let original = stored(&registry, "v1", &image(&[(&base, Pack::Gzip)]));
    let mut large = noise(1, 900_000);
    large[899_999] ^= 1;
    let mut small = noise(12, 2000);
    small[0] ^= 1;
    for (n, (entry, path, what)) in [
        (Entry::file("usr/large", large), "/usr/large", "content"),
        (Entry::file("usr/2", small), "/usr/2", "content"),
        (Entry::file("usr/2", noise(12, 2000)).mode(0o600), "/usr/2", "mode"),
        (Entry::file("usr/2", noise(12, 2000)).mtime(1_700_000_000, 1), "/usr/2", "time"),
        (Entry::file("usr/2", noise(12, 2000)).xattr("trusted.a", "b"), "/usr/2", "xattrs"),
        (Entry::link("usr/2", "usr/1"), "/usr/2", "links"),
    ]
    .into_iter()
    .enumerate()
    {
        let top = [entry];
        let copy = stored(&registry, &format!("c{n}"), &image(&[(&base, Pack::Gzip), (&top, Pack::Gzip)]));
        let found = differences(&node, &["check", &original, &copy]);
        let found = found.as_array().unwrap();
        assert_eq!((found.len(), &found[0]["path"]), (1, &json!(path)), "{found:?}");
        assert!(found[0]["what"].as_array().unwrap().contains(&json!(what)), "{what}: {found:?}");
    }

    // The first fifty, and how many there are.
    let many: Vec<_> = (0..70).map(|n| Entry::file(format!("n{n:02}"), "")).collect();
    let copy = stored(&registry, "many", &image(&[(&base, Pack::Gzip), (&many, Pack::Gzip)]));
    let text = differ(&node, &["check", &original, &copy]).text();
    assert!(text.contains("+ /n49\nand 20 more\n70 of 82 entries differ\n"), "{text}");
    assert_eq!(differences(&node, &["check", &original, &copy]).as_array().unwrap().len(), 70);
}

#[test]
fn what_formats_add_to_the_root_is_no_difference_of_a_copy() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let base = base();
    let mut stargz = vec![Entry::file(".no.prefetch.landmark", [0xf])];
    stargz.extend(base.clone());
    stargz.push(Entry::file("stargz.index.json", "{}"));
    let original = stored(&registry, "v1", &image(&[(&base, Pack::Gzip)]));
    let copy = stored(&registry, "v2", &image(&[(&stargz, Pack::Gzip)]));
    for (a, b) in [(&original, &copy), (&copy, &original)] {
        let text = node.ok(&["check", a, b]);
        assert_eq!(text, "the same: 12 entries, 920000 bytes\nleft out: 2 that formats add to the root\n");
    }
    assert_eq!(differences(&node, &["diff", &original, &copy]).as_array().unwrap().len(), 2);
    // Anywhere else it is a file like any other.
    let elsewhere = [Entry::file("usr/stargz.index.json", "{}")];
    let other = stored(&registry, "v3", &image(&[(&base, Pack::Gzip), (&elsewhere, Pack::Gzip)]));
    assert_eq!(differences(&node, &["check", &original, &other])[0]["path"], "/usr/stargz.index.json");
}

/// Sizes by hand: a base that both have; of the top layers, a file that is in the base too, and one that has moved by a byte.
#[test]
fn what_images_share_is_counted_by_layers_files_and_chunks() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let base = [Entry::dir("d/"), Entry::file("d/x", noise(1, 100_000)), Entry::file("d/s", noise(2, 5000))];
    let large = noise(3, 300_000);
    let moved = [&[7][..], &large].concat();
    let first = [Entry::file("d/a", &large), Entry::file("d/none", "")];
    let second =
        [Entry::file("d/a", &moved), Entry::file("d/y", noise(1, 100_000)), Entry::link("d/z", "d/y")];
    let images = [("v1", &first[..]), ("v2", &second[..])]
        .map(|(tag, top)| stored(&registry, tag, &image(&[(&base[..], Pack::Gzip), (top, Pack::Gzip)])));
    let chart = node.path("chart.svg");
    let args = ["dedup", "--estimate", "--chart", chart.to_str().unwrap(), &images[0], &images[1]];
    let sharing = node.json(&args);
    let all = 2 * 105_000 + 300_000 + 400_001;
    assert_eq!(sharing["logical"], all);
    let row = |n: usize, unit: &str| {
        let scheme = &sharing["schemes"][n];
        assert_eq!(scheme["unit"], unit);
        (scheme["pieces"].as_u64().unwrap(), scheme["unique"].as_u64().unwrap())
    };
    assert_eq!(row(0, "layers"), (3, all - 105_000));
    assert_eq!(row(1, "files"), (4, all - 205_000));
    assert_eq!(row(2, "chunks"), (4, all - 205_000));
    let (pieces, unique) = row(3, "content-defined-chunks");
    let least = 105_000 + 300_000;
    assert!((least + 1..=least + (256 << 10)).contains(&unique), "{unique}: only the first chunk has moved");
    assert!(pieces > 5, "{pieces}");
    assert!(std::fs::read_to_string(&chart).unwrap().contains("whole files"));

    let text = node.ok(&args);
    assert!(text.contains("whole layers") && text.contains("910.0 kB"), "{text}");
    assert_eq!(node.run(&["dedup", &images[0]]).status.code(), Some(2), "there is only an estimate");
}
