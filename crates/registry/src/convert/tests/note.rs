//! Notes that are there when a conversion begins, whoever wrote them.

use std::future::{pending, ready};

use testkit::faulty::Faulty;

use super::*;
use crate::names::LayoutName;

/// Where the note of a conversion to `v1` is.
fn name() -> LayoutName {
    format!("floe-converting-{}", &Digest::of(b"v1").hex()[..16]).parse().unwrap()
}

/// Says of a layer that another was made of it.
fn entry(was: &str, made: &str) -> Value {
    let mut entry = descriptor(GZIP, made.as_bytes());
    entry["annotations"] = json!({
        TOC_DIGEST: "x", CONVERTED_FROM: Digest::of(was.as_bytes()).to_string(),
        "dev.floe.diffid": Digest::of(made.as_bytes()).to_string()
    });
    entry
}

fn notes(entry: &mut Value) -> &mut serde_json::Map<String, Value> {
    entry["annotations"].as_object_mut().unwrap()
}

fn note(entry: &mut Value, name: &str, text: &str) {
    notes(entry).insert(name.into(), text.into());
}

impl Scene {
    /// Returns a place for an image of two layers, where both of those that are made of them are already.
    async fn half_done() -> Self {
        let scene = Self::new().await;
        let image = scene.image("amd64", false, &["base", "one"]).await;
        scene.name(&image).await;
        for was in ["base", "one", "other"] {
            let made = Bytes::from(format!("{MARK}{was}"));
            scene.destination().await.put_blob(&Content::bytes(made)).await.unwrap();
        }
        scene
    }

    async fn destination(&self) -> Layout {
        Layout::create_dir(&self.to()).await.unwrap()
    }

    async fn note(&self, kind: &str, destination: &str, layers: &[Value]) -> Manifest {
        let config = json!({ "destination": destination }).to_string();
        let value = json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": descriptor(kind, config.as_bytes()),
            "layers": layers, "annotations": { "dev.floe.converting": destination }
        });
        let note = manifest(media_type::MANIFEST, &value);
        self.destination().await.put_manifest(&note, note.descriptor(), Some(&name())).await.unwrap();
        note
    }

    /// Returns the digest of what is there, and of which layers it says that others were made of them.
    async fn noted(&self) -> Option<(Digest, Vec<Digest>)> {
        let layout = self.destination().await;
        let digest = layout.find(Some(&name())).await.ok()?.digest;
        let note = layout.manifest(&digest, Some(media_type::MANIFEST)).await.unwrap().image("").unwrap();
        Some((
            digest,
            note.layers.iter().map(|one| one.annotations[CONVERTED_FROM].parse().unwrap()).collect(),
        ))
    }

    async fn has_note(&self) -> bool {
        self.noted().await.is_some()
    }

    /// Returns how often the user was told something.
    fn told(&self, what: &str) -> usize {
        self.heard.noticed.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    async fn work(&self) -> Work {
        Work {
            source: self.there().await,
            target: Target::Layout(self.destination().await, Some("v1".parse().unwrap())),
            conversion: Conversion {
                format: Format::EStargz,
                order: FileOrder::AsBefore,
                originals: Originals::LeftOut,
                verify: false,
            },
            recode: self.marks.clone(),
            watch: self.heard.clone(),
        }
    }
}

/// Returns a layer, or what is made of it.
fn layer(text: &str) -> LayerBlob {
    let digest = Digest::of(text.as_bytes());
    let from =
        text.strip_prefix(MARK).map(|was| (CONVERTED_FROM.into(), Digest::of(was.as_bytes()).to_string()));
    LayerBlob {
        digest,
        size: text.len() as u64,
        media_type: GZIP.into(),
        diff_id: DiffId::new(digest),
        annotations: from.into_iter().collect(),
    }
}

#[tokio::test]
async fn a_note_is_believed_as_far_as_the_name_is() {
    let good = || entry("one", &format!("{MARK}one"));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut entry = good();
        change(&mut entry);
        entry
    };
    let other = Digest::of(b"other").to_string();
    let ours = media_type::FLOE_CONVERSION;
    let mut expected = None;
    for (what, kind, destination, entry, how_made) in [
        ("as it is", ours, "v1", good(), How::Reused),
        ("gone", ours, "v1", entry("one", "gone"), How::Recoded),
        ("longer", ours, "v1", with(&|entry| entry["size"] = 99.into()), How::Recoded),
        ("too long", ours, "v1", with(&|entry| entry["size"] = u64::MAX.into()), How::Recoded),
        ("of another format", ours, "v1", with(&|entry| entry["mediaType"] = "x/y".into()), How::Recoded),
        ("without a table", ours, "v1", with(&|entry| drop(notes(entry).remove(TOC_DIGEST))), How::Recoded),
        ("of another layer", ours, "v1", with(&|entry| note(entry, CONVERTED_FROM, &other)), How::Recoded),
        ("of no layer", ours, "v1", with(&|entry| note(entry, CONVERTED_FROM, "x")), How::Recoded),
        ("of no tar", ours, "v1", with(&|entry| note(entry, "dev.floe.diffid", "x")), How::Recoded),
        ("ordered", ours, "v1", with(&|entry| note(entry, "dev.floe.ordered.by", &other)), How::Recoded),
        ("of another name", ours, "v2", good(), How::Recoded),
        ("no note", media_type::CONFIG, "v1", good(), How::Recoded),
    ] {
        let scene = Scene::half_done().await;
        scene.note(kind, destination, &[entry]).await;
        let converted = scene.convert(Originals::LeftOut, true).await.unwrap();
        assert_eq!(how(&converted), [How::Recoded, how_made], "{what}");
        assert_eq!(*expected.get_or_insert(converted.digest), converted.digest, "{what}");
        let is_ours = (kind, destination) == (ours, "v1");
        assert_eq!(scene.has_note().await, !is_ours, "{what}");
        assert_eq!(scene.told("cannot be noted"), usize::from(!is_ours), "{what}");
        assert_eq!(scene.told("--verify"), 0, "{what}");
    }
}

#[tokio::test]
async fn a_lie_in_a_note_fails_once_where_it_is_looked_for() {
    let scene = Scene::half_done().await;
    scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}other"))]).await;
    let error = scene.convert(Originals::LeftOut, true).await.unwrap_err();
    assert!(error.to_string().contains("they differ"), "{error}");
    assert!(!scene.has_note().await);
    let converted = scene.convert(Originals::LeftOut, true).await.unwrap();
    assert_eq!(how(&converted), [How::Recoded; 2]);
}

#[tokio::test]
async fn what_is_under_the_name_of_a_note_and_is_none_is_not_removed() {
    let scene = Scene::half_done().await;
    let other = scene.note(media_type::CONFIG, "v1", &[]).await;
    for expected in [How::Recoded, How::Reused] {
        let converted = scene.convert(Originals::LeftOut, false).await.unwrap();
        assert_eq!(how(&converted), [expected; 2]);
        assert!(scene.destination().await.blob_exists(&other.digest).await.unwrap());
        assert_eq!(scene.noted().await, Some((other.digest, vec![])), "it keeps its name");
    }
}

#[tokio::test]
async fn a_note_that_cannot_be_read_is_not_replaced() {
    let scene = Scene::half_done().await;
    let note = scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}one"))]).await;
    let file = scene.to().join("blobs/sha256").join(note.digest.hex());
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let converted = scene.convert(Originals::LeftOut, false).await.unwrap();
    assert_eq!(how(&converted), [How::Recoded; 2]);
    assert_eq!(scene.told("cannot be noted"), 1, "{:?}", scene.heard);
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, &note.bytes).unwrap();
    assert_eq!(scene.noted().await, Some((note.digest, vec![Digest::of(b"one")])));
}

#[tokio::test]
async fn what_was_noted_is_noted_before_it_is_looked_at() {
    let scene = Scene::half_done().await;
    scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}one"))]).await;
    let work = scene.work().await;
    let mut prior = Prior::none(Format::EStargz);
    let note = Note::of(&work.target, &*work.watch, &mut prior).await;
    let images = Images::wanting(vec![layer("base"), layer("one")]);
    let _layers = Layers::new(&work, prior, &note, &images);
    let [base, one] = ["base", "one"].map(|was| Digest::of(was.as_bytes()));
    note.add(base, &layer(&format!("{MARK}base")), How::Recoded);
    note.during(ready(())).await;
    let mut noted = scene.noted().await.unwrap().1;
    noted.sort();
    assert_eq!(noted, std::collections::BTreeSet::from([base, one]).into_iter().collect::<Vec<_>>());
    // What is gone is named no more.
    note.lacks(&one);
    note.add(base, &layer(&format!("{MARK}base")), How::Recoded);
    note.during(ready(())).await;
    assert_eq!(scene.noted().await.unwrap().1, [base]);
}

/// A write that is cut off may arrive all the same.
#[tokio::test]
async fn a_note_that_arrives_late_is_removed() {
    let scene = Scene::half_done().await;
    let work = scene.work().await;
    let note = Note::of(&work.target, &*work.watch, &mut Prior::none(Format::EStargz)).await;
    note.add(Digest::of(b"one"), &layer(&format!("{MARK}one")), How::Recoded);
    tokio::select! {
        biased;
        () = note.during(pending()) => unreachable!(),
        () = ready(()) => {}
    }
    assert!(!scene.has_note().await);
    scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}one"))]).await;
    note.forget().await;
    assert!(!scene.has_note().await);
}

#[tokio::test]
async fn who_takes_over_what_only_a_note_names_is_told() {
    let scene = Scene::half_done().await;
    scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}one"))]).await;
    for (expected, told) in [([How::Recoded, How::Reused], 1), ([How::Reused; 2], 0)] {
        scene.heard.noticed.lock().unwrap().clear();
        let converted = scene.convert(Originals::LeftOut, false).await.unwrap();
        assert_eq!((how(&converted), scene.told("taken over: 1; --verify")), (expected.to_vec(), told));
    }
}

#[tokio::test]
async fn a_layer_in_a_registry_is_there_with_its_length_only() {
    let (server, made) = (Faulty::start(), layer("made"));
    server.put(&format!("/v2/made/blobs/{}", made.digest), "application/octet-stream", b"made");
    let to = format!("docker://{}/made:v1", server.host()).parse().unwrap();
    let target = Target::open(&Client::new(Config::isolated()), &to).await.unwrap();
    for (size, is_there) in [(3, false), (4, true), (5, false)] {
        assert_eq!(target.has(&LayerBlob { size, ..made.clone() }).await.unwrap(), is_there, "{size}");
    }
    assert!(!target.has(&layer("gone")).await.unwrap());
}

#[tokio::test]
async fn what_was_noted_is_noted_on_when_a_conversion_fails() {
    let scene = Scene::half_done().await;
    scene.note(media_type::FLOE_CONVERSION, "v1", &[entry("one", &format!("{MARK}one"))]).await;
    let base = scene.dir.path().join("from/blobs/sha256").join(Digest::of(b"base").hex());
    std::fs::write(&base, "BASE").unwrap();
    scene.convert(Originals::LeftOut, true).await.unwrap_err();
    std::fs::write(&base, "base").unwrap();
    let converted = scene.convert(Originals::LeftOut, true).await.unwrap();
    assert_eq!(how(&converted), [How::Recoded, How::Reused]);
}
