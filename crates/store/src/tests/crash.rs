//! The store after a crash at any moment: random operations, every prefix of what they did to the disk,
//! reordered and torn; then recovery, held against a plain model.

use std::path::Path;
use std::sync::Arc;

use format::Digest;

use super::fixture::{Fake, image, simulated};
use crate::claim::Claim;
use crate::gc::GcMode;
use crate::refs::RefName;
use crate::room::Room;
use crate::segments::{Content, OpenLayer};
use crate::sim::{Dice, Model, SimDisk};
use crate::standing::{Proof, Stage};
use crate::store::Store;

const NAMES: [&str; 3] = ["a", "b", "c"];
const LAYERS: u64 = 4;
/// Operations of a run. Some thousand crashes in all: `SEEDS` and `STEPS` can be raised to search longer.
const STEPS: usize = 25;
const SEEDS: std::ops::Range<u64> = 0..3;

/// What a reference or profile became, and when it was begun and done.
struct Change {
    begun: usize,
    done: usize,
    name: &'static str,
    version: Option<u64>,
}

struct Run {
    disk: Arc<SimDisk>,
    refs: Vec<Change>,
    profiles: Vec<Change>,
    pins: Vec<Change>,
}

/// Does `steps` random operations on an empty store.
fn run(root: &Path, dice: &mut Dice, steps: usize) -> Run {
    let (disk, mut store) = simulated(root, "boot 0");
    let mut run = Run { disk: disk.clone(), refs: Vec::new(), profiles: Vec::new(), pins: Vec::new() };
    let mut open: Vec<Arc<OpenLayer>> = Vec::new();
    let mut boot = "boot 0".to_owned();
    for version in 0..steps as u64 {
        let content = Fake::new(dice.below(4) as u64 % LAYERS);
        let name = NAMES[dice.below(3)];
        let begun = disk.now();
        match dice.below(17) {
            0 | 1 => {
                let layers = [content.id(), Fake::new(version % LAYERS).id()];
                store.refs().put(&image(name, &layers, version)).unwrap();
                run.refs.push(Change { begun, done: disk.now(), name, version: Some(version) });
            }
            2 => {
                store.refs().remove(&RefName::parse(name).unwrap()).unwrap();
                run.refs.push(Change { begun, done: disk.now(), name, version: None });
            }
            3 => {
                store.put_profile(Digest::of(name.as_bytes()), &version.to_le_bytes()).unwrap();
                run.profiles.push(Change { begun, done: disk.now(), name, version: Some(version) });
            }
            4..8 => {
                let layer = OpenLayer::open(&store, content.clone()).unwrap();
                let segment = u32::try_from(dice.below(content.segments() as usize)).unwrap();
                layer.fill(segment, &content.bytes(segment)).unwrap();
                open.push(layer);
            }
            8 => {
                let layer = OpenLayer::open(&store, content.clone()).unwrap();
                for segment in 0..content.segments() {
                    layer.fill(segment, &content.bytes(segment)).unwrap();
                }
                assert!(layer.seal().unwrap());
            }
            9 => {
                let mut staging = store.stage().unwrap();
                for segment in 0..content.segments() {
                    staging.write(segment, &content.bytes(segment)).unwrap();
                }
                if dice.coin() {
                    staging.commit_as(content).unwrap();
                }
            }
            10 => open.clear(),
            11 => {
                store.gc(GcMode::Remove).unwrap();
            }
            12 => {
                Room::new(store.clone()).evict(1 + dice.below(50_000) as u64).unwrap();
            }
            13 => {
                store.pinned().put(&RefName::parse(name).unwrap()).unwrap();
                run.pins.push(Change { begun, done: disk.now(), name, version: Some(0) });
            }
            14 => {
                store.pinned().remove(&RefName::parse(name).unwrap()).unwrap();
                run.pins.push(Change { begun, done: disk.now(), name, version: None });
            }
            15 => {
                store.put_meta(crate::MetaKey::of(&[content.id()]), &content.bytes(0)).unwrap();
            }
            _ => {
                // A restart: clean, or killed; in the same boot, or after a clean shutdown of the machine.
                open.clear();
                let clean = dice.coin();
                if clean {
                    store.close().unwrap();
                }
                drop(store);
                if clean {
                    boot = format!("boot {version}");
                }
                store = Store::open_on(root, disk.clone(), boot.clone()).unwrap();
            }
        }
    }
    run
}

/// Returns the versions a name may have after a crash: one, or two if a change was under way.
fn allowed(changes: &[Change], prefix: usize, name: &str) -> Vec<Option<u64>> {
    let mut allowed = vec![None];
    for change in changes.iter().filter(|change| change.name == name && change.begun < prefix) {
        if change.done <= prefix {
            allowed.clear();
        }
        allowed.push(change.version);
    }
    allowed
}

/// Recovers a crashed disk and checks all that was promised.
fn check(root: &Path, run: &Run, prefix: usize, boot: &str, dice: &mut Dice) -> Arc<SimDisk> {
    let (disk, store) = simulated(root, boot);
    let (images, damaged) = store.refs().list().unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    let pins = store.pinned().list().unwrap();
    for name in NAMES {
        let found = images.iter().find(|image| image.name.as_str() == name).map(|image| image.layers[0].size);
        let allowed_refs = allowed(&run.refs, prefix, name);
        assert!(allowed_refs.contains(&found), "{name} is {found:?}, not of {allowed_refs:?}");
        let profile = store.profile(Digest::of(name.as_bytes())).unwrap();
        let profile = profile.map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        assert!(allowed(&run.profiles, prefix, name).contains(&profile), "profile of {name}");
        let pin = pins.iter().any(|pin| pin.as_str() == name).then_some(0);
        assert!(allowed(&run.pins, prefix, name).contains(&pin), "pin of {name}");
    }
    for seed in 0..LAYERS {
        let content = Fake::new(seed);
        if let Some(meta) = store.meta(crate::MetaKey::of(&[content.id()])).unwrap() {
            assert_eq!(std::fs::read(&meta.path).unwrap(), content.bytes(0));
        }
        let layer = OpenLayer::open(&store, content.clone()).unwrap();
        assert!(!matches!(layer.standing().proof, Proof::Refused { .. }));
        if layer.standing().stage == Stage::Sealed {
            assert_eq!(layer.missing(), 0, "sealed layers need no check");
        }
        right(&layer, &content);
        if dice.coin() {
            layer.expose().unwrap();
            for segment in 0..content.segments() {
                let len = std::fs::metadata(layer.path(segment)).unwrap().len();
                assert!(len == 0 || layer.claim(segment) == Some(Claim::Whole), "mounted with a bad segment");
            }
        } else {
            for segment in 0..content.segments() {
                layer.settle(segment).unwrap();
            }
        }
        right(&layer, &content);
        for segment in 0..content.segments() {
            layer.fill(segment, &content.bytes(segment)).unwrap();
        }
        assert_eq!(layer.missing(), 0);
        right(&layer, &content);
    }
    // Everything that is there can be used, and nothing is left over.
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    disk
}

/// Whatever is called whole has the right bytes.
fn right(layer: &Arc<OpenLayer>, content: &Fake) {
    for segment in 0..content.segments() {
        if layer.claim(segment) == Some(Claim::Whole) {
            assert!(
                std::fs::read(layer.path(segment)).unwrap() == content.bytes(segment),
                "segment {segment} lies"
            );
            let file = layer.file(segment).unwrap().unwrap();
            assert_eq!(file.len, content.len(segment));
        }
    }
}

fn every_prefix(seed: u64, model: Model) {
    let home = tempfile::tempdir().unwrap();
    let mut dice = Dice(seed);
    let root = home.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let run = run(&root, &mut dice, STEPS);
    let log = run.disk.log();
    for prefix in log.begin()..=log.len() {
        let crashed = home.path().join("crashed");
        std::fs::create_dir(&crashed).unwrap();
        log.crash(prefix, model, &mut dice, &crashed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let disk = check(&crashed, &run, prefix, "after", &mut dice.clone());
            // And, now and then, a crash in the middle of that.
            if !prefix.is_multiple_of(5) {
                return;
            }
            let again = home.path().join("again");
            std::fs::create_dir(&again).unwrap();
            let log = disk.log();
            let at = log.begin() + dice.clone().below(log.len() + 1 - log.begin());
            log.crash(at, model, &mut dice.clone(), &again);
            check(&again, &run, prefix, "long after", &mut dice.clone());
            std::fs::remove_dir_all(&again).unwrap();
        }));
        if let Err(panic) = result {
            eprintln!("seed {seed}, {model:?}, after {prefix} of {} operations", log.len());
            std::panic::resume_unwind(panic);
        }
        dice.roll();
        std::fs::remove_dir_all(&crashed).unwrap();
    }
}

#[test]
fn a_crash_at_any_moment_loses_no_reference_and_makes_no_segment_lie() {
    for seed in SEEDS {
        every_prefix(seed, Model::Journal);
    }
}

#[test]
fn nor_does_a_disk_that_reorders_names_and_loses_blocks() {
    for seed in SEEDS {
        every_prefix(seed, Model::Any);
    }
}

#[test]
fn a_killed_process_leaves_segments_that_need_no_check() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(1);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    layer.fill(0, &content.bytes(0)).unwrap();
    drop((layer, store));
    let again = |boot: &str| {
        let store = Store::open_on(home.path(), disk.clone(), boot.to_owned()).unwrap();
        let claim = OpenLayer::open(&store, content.clone()).unwrap().claim(0);
        (store, claim)
    };
    let (store, claim) = again("boot");
    assert_eq!(claim, Some(Claim::Whole), "the same kernel still has the bytes");
    store.close().unwrap();
    drop(store);
    let (store, claim) = again("next boot");
    assert_eq!(claim, Some(Claim::Whole), "closed cleanly");
    drop(store);
    let (_store, claim) = again("boot after power loss");
    assert_eq!(claim, Some(Claim::Suspect));
}

#[test]
fn a_torn_segment_keeps_its_bytes_and_gets_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let (disk, store) = simulated(home.path(), "boot");
    let content = Fake::new(1);
    let bytes = content.bytes(0);
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    store.disk().create(layer.path(0).strip_prefix(home.path()).unwrap()).unwrap();
    std::fs::write(layer.path(0), &bytes[..1000]).unwrap();
    drop((layer, store));
    let store = Store::open_on(home.path(), disk.clone(), "boot".to_owned()).unwrap();
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    assert_eq!(layer.claim(0), Some(Claim::Missing));
    layer.expose().unwrap();
    layer.fill(0, &bytes).unwrap();
    right(&layer, &content);

    // The same with wrong bytes in it: whoever has it mounted keeps it, and is told.
    drop((layer, store));
    let store = Store::open_on(home.path(), disk, "boot".to_owned()).unwrap();
    let layer = OpenLayer::open(&store, content.clone()).unwrap();
    std::fs::remove_dir_all(home.path().join("tmp")).unwrap();
    std::fs::create_dir(home.path().join("tmp")).unwrap();
    let segments = content.segments();
    assert!(segments > 1);
    let generation = layer.expose().unwrap();
    std::fs::write(layer.path(1), [0; 10]).unwrap();
    let mounted = std::fs::File::open(layer.path(1)).unwrap();
    layer.fill(1, &content.bytes(1)).unwrap();
    assert_eq!((mounted.metadata().unwrap().len(), layer.generation()), (10, generation + 1));
    right(&layer, &content);
}
