//! Notes that are there when a conversion begins, whoever wrote them.

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

    async fn has_note(&self) -> bool {
        self.destination().await.find(Some(&name())).await.is_ok()
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
        assert!(!scene.has_note().await, "{what}");
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
    scene.convert(Originals::LeftOut, false).await.unwrap();
    assert!(scene.destination().await.blob_exists(&other.digest).await.unwrap());
    // Where nothing is to be noted it keeps its name.
    let other = scene.note(media_type::CONFIG, "v1", &[]).await;
    let again = scene.convert(Originals::LeftOut, false).await.unwrap();
    assert_eq!(how(&again), [How::Reused; 2]);
    assert_eq!(scene.destination().await.find(Some(&name())).await.unwrap().digest, other.digest);
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
