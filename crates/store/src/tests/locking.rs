//! One process per store.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::fixture::store;
use crate::error::StoreError;
use crate::open_files::OpenFiles;
use crate::segments::{Content, OpenLayer};
use crate::store::Store;

const HOLD: &str = "FLOE_TEST_HOLD_STORE";

/// Not a test of its own: what the child of the next test does.
#[test]
fn hold_a_store_for_another_test() {
    let Some(root) = std::env::var_os(HOLD) else { return };
    let _store = Store::open(root.as_ref()).unwrap();
    println!("\nholding");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_store_in_use_names_its_process_and_is_free_when_that_dies() {
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::locking::hold_a_store_for_another_test", "--nocapture"])
        .env(HOLD, home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "holding"));
    let error = Store::open(home.path()).unwrap_err();
    assert!(matches!(error, StoreError::Busy { pid: Some(pid), .. } if pid == child.id()), "{error}");
    assert!(error.to_string().ends_with(&format!("in use by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let _store = store(home.path());
    let again = Store::open(home.path());
    assert!(matches!(again, Err(StoreError::Busy { pid: Some(pid), .. }) if pid == std::process::id()));
}

#[test]
fn few_files_stay_open_however_many_there_are() {
    let home = tempfile::tempdir().unwrap();
    let mut store = store(home.path());
    std::sync::Arc::get_mut(&mut store).unwrap().files = OpenFiles::with_capacity(3);
    let layers: Vec<_> = (0..8)
        .map(|seed| {
            let content = super::fixture::Fake::new(seed);
            let layer = OpenLayer::open(&store, content.clone()).unwrap();
            (0..content.segments()).for_each(|n| layer.fill(n, &content.bytes(n)).unwrap());
            layer
        })
        .collect();
    let all = || layers.iter().flat_map(|layer| (0..layer.segments()).map(move |n| (layer, n)));
    for round in 0..3 {
        for (layer, n) in all() {
            assert!(layer.file(n).unwrap().is_some(), "{round}");
            assert!(all().filter(|(layer, n)| layer.is_open(*n)).count() <= 3);
        }
    }
}
