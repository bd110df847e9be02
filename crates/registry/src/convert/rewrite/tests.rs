//! Whole configs, manifests and indexes, before and after.

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn of(value: &Value) -> Manifest {
    made("", value, "x").unwrap()
}

fn value(manifest: &Manifest) -> Value {
    serde_json::from_slice(&manifest.bytes).unwrap()
}

fn id(text: &str) -> DiffId {
    DiffId::new(text.parse().unwrap())
}

#[test]
fn a_config_keeps_all_but_its_diff_ids() {
    let before = format!(
        r#"{{"os":"linux","history":[{{"b":1,"a":"rootfs"}}],"moby.buildkit.cache.v0":"W10=","rootfs":{{"type":"layers", "diff_ids" : ["{A}"] }},"architecture":"é"}}"#
    );
    let after = config(&before.clone().into(), &[id(B)], "x").unwrap();
    assert_eq!(after, before.replace(A, B), "byte for byte");
    for bad in ["", "[]", "{}", r#"{"rootfs":{}}"#, r#"{"rootfs":{"diff_ids":[]},"rootfs":{}}"#, "\u{ff}"] {
        assert!(config(&Bytes::from(bad), &[], "x").is_err(), "{bad}");
    }
}

#[test]
fn a_history_gets_one_more_step() {
    const STEP: &str = r#"{"created_by":"floe convert --format nydus","comment":"the tree of all layers"}"#;
    for (before, after) in [
        (r#"{"history":[ {"a":1} ],"x":[]}"#, format!(r#"{{"history":[ {{"a":1}} ,{STEP}],"x":[]}}"#)),
        (r#"{"history":[]}"#, format!(r#"{{"history":[{STEP}]}}"#)),
        (r#"{"rootfs":{}}"#, r#"{"rootfs":{}}"#.to_owned()),
        (r#"{"history":null}"#, r#"{"history":null}"#.to_owned()),
    ] {
        assert_eq!(history(&before.into(), "x").unwrap(), after);
    }
    for bad in ["", r#"{"history":{}}"#, r#"{"history":7}"#] {
        assert!(history(&bad.into(), "x").is_err(), "{bad}");
    }
}

#[test]
fn a_history_loses_the_step_of_its_last_layer() {
    for (before, layers, after) in [
        (r#"{"history":[{"a":1}, {"b":2} ],"x":[]}"#, 2, r#"{"history":[{"a":1} ],"x":[]}"#),
        (
            r#"{"history":[{"a":1},{"b":2}, {"empty_layer":true}]}"#,
            2,
            r#"{"history":[{"a":1},{"empty_layer":true}]}"#,
        ),
        (r#"{"history":[{"a":1}]}"#, 1, r#"{"history":[]}"#),
        (r#"{"history":[{"a":1}]}"#, 2, r#"{"history":[{"a":1}]}"#),
        (r#"{"rootfs":{}}"#, 1, r#"{"rootfs":{}}"#),
    ] {
        assert_eq!(history_below(&before.into(), layers, "x").unwrap(), after);
    }
    assert!(history_below(&Bytes::from(r#"{"history":7}"#), 1, "x").is_err());
}

#[test]
fn of_a_history_of_one_layer_all_other_steps_have_none() {
    const ONE: &str =
        r#"{"created_by":"floe convert --format oci","comment":"one layer of the tree of all layers"}"#;
    for (before, layers, after) in [
        (
            r#"{"history":[ {"a":1}, {"b":2,"empty_layer":true},{"c":3, "empty_layer": false}, {"d":4}],"x":[]}"#,
            3,
            format!(
                r#"{{"history":[ {{"empty_layer":true,"a":1}}, {{"b":2,"empty_layer":true}},{{"c":3, "empty_layer": true}},{ONE}],"x":[]}}"#
            ),
        ),
        // Where the steps are not those of the layers, none is taken for that of the tree.
        (
            r#"{"history":[{},{ }]}"#,
            3,
            format!(r#"{{"history":[{{"empty_layer":true}},{{"empty_layer":true }},{ONE}]}}"#),
        ),
        (
            r#"{"history":[{"empty_layer":null,"a":1}]}"#,
            2,
            format!(r#"{{"history":[{{"empty_layer":true,"a":1}},{ONE}]}}"#),
        ),
        (r#"{"history":[]}"#, 2, format!(r#"{{"history":[{ONE}]}}"#)),
        (r#"{"rootfs":{}}"#, 2, r#"{"rootfs":{}}"#.to_owned()),
    ] {
        let made = history_of_one(&before.into(), layers, "x").unwrap();
        assert_eq!(made, after);
        let value: Value = serde_json::from_slice(&made).unwrap();
        let steps = value["history"].as_array().into_iter().flatten();
        assert_eq!(
            steps.filter(|step| step["empty_layer"] != true).count(),
            usize::from(after.contains(ONE))
        );
    }
    for bad in [r#"{"history":7}"#, r#"{"history":[7]}"#] {
        assert!(history_of_one(&bad.into(), 1, "x").is_err(), "{bad}");
    }
}

#[test]
fn an_entry_of_nydus_becomes_an_ordinary_one() {
    let mut entry = json!({
        "artifactType": media_type::NYDUS_IMAGE,
        "platform": { "os": "linux", "os.features": ["x", media_type::NYDUS_FEATURE] }
    });
    unmark(&mut entry, false);
    assert_eq!(entry, json!({ "platform": { "os": "linux", "os.features": ["x"] } }));
    let mut other = json!({ "artifactType": "x", "platform": null });
    unmark(&mut other, false);
    assert_eq!(other, json!({ "artifactType": "x", "platform": null }));
}

#[test]
fn a_manifest_becomes_one_of_oci_and_keeps_what_it_says() {
    let before = of(&json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "annotations": { "a": "b" }, "x": [1],
        "config": { "mediaType": media_type::DOCKER_CONFIG, "digest": A, "size": 1, "data": "e30=" },
        "layers": [
            { "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": A, "size": 1 },
            { "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": B, "size": 2, "urls": [] }
        ]
    }));
    let mut layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar+zstd", b"layer");
    layer.annotations.insert("k".into(), "v".into());
    let config = Descriptor::of(media_type::CONFIG, b"config");
    let after = manifest(&before, &config, &[None, Some(layer.clone())], Top::Absent, "x").unwrap();
    assert_eq!(after.media_type, media_type::MANIFEST);
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let expected = json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "annotations": { "a": "b" }, "x": [1],
        "config": config, "layers": [{ "mediaType": gzip, "digest": A, "size": 1 }, layer]
    });
    assert_eq!(value(&after), expected);
    assert!(manifest(&before, &config, &[None], Top::Absent, "x").is_err(), "a layer is missing");
}

#[test]
fn a_config_asks_for_a_feature_and_says_all_else_as_before() {
    for (before, after) in [
        (r#"  {"os" : "linux","x":1}"#, r#"  {"os.features":["erofs"],"os" : "linux","x":1}"#),
        (
            r#"{"a":1, "os.features" : ["z", "a"] ,"b":2}"#,
            r#"{"a":1, "os.features" : ["a","erofs","z"] ,"b":2}"#,
        ),
        (r#"{"os.features":["erofs"]}"#, r#"{"os.features":["erofs"]}"#),
    ] {
        assert_eq!(feature(&Bytes::from(before), "erofs", true, "x").unwrap(), after);
        assert!(
            !feature(&after.into(), "erofs", false, "x").unwrap().windows(5).any(|word| word == b"erofs")
        );
    }
    assert!(feature(&Bytes::from(r#"{"os.features":[1]}"#), "erofs", true, "x").is_err());
    assert!(feature(&Bytes::from("[]"), "erofs", true, "x").is_err());
    let mut entry = json!({ "platform": { "os": "linux", "os.features": ["x"] } });
    mark(&mut entry, &Digest::of(b""), Format::Erofs);
    assert_eq!(entry["platform"]["os.features"], json!(["erofs", "x"]));
}

fn entry(manifest: &Manifest, annotations: &Value) -> Value {
    json!({
        "mediaType": media_type::MANIFEST, "digest": manifest.digest.to_string(), "size": manifest.bytes.len(),
        "platform": { "os": "linux", "architecture": "amd64" }, "annotations": annotations
    })
}

#[test]
fn what_names_a_soci_index_goes_with_what_it_is_about() {
    let before = of(&json!({
        "schemaVersion": 2, "annotations": { INDEX_DIGEST: B, "a": "b" }, "layers": [],
        "config": { "mediaType": media_type::CONFIG, "digest": A, "size": 1 }
    }));
    let config = Descriptor::of(media_type::CONFIG, b"config");
    let after = manifest(&before, &config, &[], Top::Absent, "x").unwrap();
    assert_eq!(value(&after)["annotations"], json!({ "a": "b" }));

    let [image, other, about, about_other] =
        ["image", "other", "about image", "about other"].map(|text| of(&json!(text)));
    let entries = [
        entry(&image, &json!({ INDEX_DIGEST: about.digest.to_string(), "c": "d" })),
        entry(&other, &json!({})),
        entry(&about, &json!({ ABOUT_SOCI: image.digest.to_string() })),
        entry(&about_other, &json!({ ABOUT_SOCI: other.digest.to_string() })),
    ];
    let list = of(&json!({ "schemaVersion": 2, "manifests": entries }));
    let new = Manifest { media_type: media_type::MANIFEST.into(), ..of(&json!("new")) };
    let child = |digest: &Digest| match *digest == image.digest {
        true => Child::Made(&new),
        false => Child::Same,
    };
    let mut gone = Vec::new();
    let made = index(&list, Format::EStargz, false, child, |digest, of| gone.push((*digest, *of)), "x");
    let made = made.unwrap().unwrap();
    let text = |manifest: &Manifest| manifest.digest.to_string();
    assert_eq!(digests(&made), [text(&new), text(&other), text(&about_other)]);
    assert_eq!(gone, [(about.digest, image.digest)]);
    assert_eq!(value(&made)["manifests"][0]["annotations"], json!({ "c": "d" }));
    // Where the original stays, so does what is about it.
    let none = |_: &Digest, _: &Digest| panic!("nothing goes");
    let both = index(&list, Format::EStargz, true, child, none, "x").unwrap().unwrap();
    assert_eq!(digests(&both)[..4], digests(&list)[..]);
    assert_eq!(value(&both)["manifests"][0], value(&list)["manifests"][0]);
    assert_eq!(value(&both)["manifests"][4]["annotations"].get(INDEX_DIGEST), None);
}

/// An index of an image, what was made of it before, another image, and attestations about both.
fn listed() -> ([Manifest; 5], Manifest) {
    let all = ["image", "spare", "other", "about image", "about other"].map(|text| of(&json!(text)));
    let entries = [
        entry(&all[0], &json!({ "kept": "yes" })),
        entry(&all[1], &json!({ CONVERTED_FROM: all[0].digest.to_string() })),
        entry(&all[2], &json!({})),
        entry(&all[3], &json!({ ABOUT: all[0].digest.to_string() })),
        entry(&all[4], &json!({ ABOUT: all[2].digest.to_string() })),
        json!({ "digest": "sha512:00", "size": 1, "mediaType": "m" }),
    ];
    let list = of(&json!({ "schemaVersion": 2, "manifests": entries, "annotations": { "a": "b" } }));
    (all, Manifest { media_type: media_type::DOCKER_LIST.into(), ..list })
}

fn digests(index: &Manifest) -> Vec<String> {
    let value = value(index);
    let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
    value["manifests"].as_array().unwrap().iter().map(digest).collect()
}

#[test]
fn an_index_lists_what_was_made_instead_or_behind() {
    let ([image, spare, other, about, about_other], list) = listed();
    assert_eq!(spares(&list), [spare.digest]);
    let new = Manifest { media_type: media_type::MANIFEST.into(), ..of(&json!("new")) };
    let child = |digest: &Digest| match *digest {
        digest if digest == image.digest => Child::Made(&new),
        digest if digest == spare.digest => Child::Spare,
        _ => Child::Same,
    };
    let mut gone = Vec::new();
    let replaced = index(&list, Format::EStargz, false, child, |digest, of| gone.push((*digest, *of)), "x");
    let replaced = replaced.unwrap().unwrap();
    let text = |manifest: &Manifest| manifest.digest.to_string();
    let unread = || "sha512:00".to_owned();
    assert_eq!(digests(&replaced), [text(&new), text(&other), text(&about_other), unread()]);
    assert_eq!(gone, [(about.digest, image.digest)]);
    assert_eq!(replaced.media_type, media_type::INDEX);
    let all = value(&replaced);
    assert_eq!(all["annotations"], json!({ "a": "b" }));
    assert_eq!(all["manifests"][0]["platform"]["architecture"], "amd64");
    assert_eq!(all["manifests"][0]["annotations"], json!({ "kept": "yes" }));

    let none = |_: &Digest, _: &Digest| panic!("nothing goes");
    let both = index(&list, Format::ZstdChunked, true, child, none, "x").unwrap().unwrap();
    let expected = [text(&image), text(&other), text(&about), text(&about_other), unread(), text(&new)];
    assert_eq!(digests(&both), expected);
    let last = &value(&both)["manifests"][5]["annotations"];
    assert_eq!(*last, json!({ "kept": "yes", CONVERTED_FROM: text(&image), PREFERRED_ZSTD: "true" }));
    assert_eq!(spares(&both), [new.digest]);

    let same = index(&list, Format::EStargz, true, |_| Child::Same, none, "x").unwrap();
    assert!(same.is_none(), "nothing has changed");
}

#[test]
fn a_single_image_and_its_conversion_are_a_pair_for_one_platform() {
    let (original, new) = (of(&json!("old")), of(&json!("new")));
    let config = br#"{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{},"config":{}}"#;
    let index = pair(&original, &new, config, Format::EStargz, "x").unwrap();
    assert_eq!(digests(&index), [original.digest.to_string(), new.digest.to_string()]);
    let entries = &value(&index)["manifests"];
    assert_eq!(entries[0]["platform"], entries[1]["platform"]);
    assert_eq!(entries[0]["platform"], json!({ "os": "linux", "architecture": "arm64", "variant": "v8" }));
    assert_eq!(entries[1]["annotations"], json!({ CONVERTED_FROM: original.digest.to_string() }));
    assert_eq!(entries[0].get("annotations"), None);
}
