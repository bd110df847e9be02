//! Holds the edges between crates: a boundary nobody checks is a wish.
#![allow(missing_docs, reason = "a test crate has no public surface")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each crate may use of the workspace, and what must not reach it by any path.
const RULES: &[(&str, &[&str], &[&str])] = &[
    ("sys", &[], &["tokio", "reqwest", "hyper", "serde"]),
    ("format", &["sys"], &["tokio", "reqwest", "hyper", "fuser"]),
    ("store", &["format", "sys"], &["tokio", "reqwest", "hyper", "fuser"]),
    ("registry", &["format"], &["fuser", "store", "mount", "convert"]),
    ("convert", &["format", "sys"], &["tokio", "reqwest", "hyper", "fuser", "store"]),
    ("mount", &["format", "store", "sys"], &["tokio", "reqwest", "hyper"]),
    (
        "floe",
        &["containerd", "convert", "format", "mount", "registry", "store", "sys"],
        &["openssl-sys", "native-tls", "aws-lc-sys"],
    ),
    ("containerd", &[], &["reqwest", "serde_json"]),
    ("testkit", &[], &["tokio", "reqwest", "hyper"]),
];

/// What the crates of other systems need is not downloaded here.
const HOST: &str = "x86_64-unknown-linux-gnu";

#[test]
fn crates_know_only_what_they_may() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            HOST,
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();

    let mut names = BTreeMap::new();
    let mut local = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        names.insert(text(&package["id"]), text(&package["name"]));
        if package["source"].is_null() {
            local.insert(text(&package["name"]));
        }
    }
    // Normal and build dependencies only: what a test uses is not shipped.
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let shipped = |dep: &&Value| dep["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"] != "dev");
        let deps =
            node["deps"].as_array().unwrap().iter().filter(shipped).map(|d| names[&text(&d["pkg"])].clone());
        uses.entry(names[&text(&node["id"])].clone()).or_default().extend(deps);
    }

    assert_eq!(local, RULES.iter().map(|(name, ..)| (*name).to_owned()).collect(), "a crate without a rule");
    for (name, may, never) in RULES {
        let direct: Vec<_> =
            uses[*name].intersection(&local).filter(|dep| !may.contains(&dep.as_str())).collect();
        assert!(direct.is_empty(), "{name} uses {direct:?}");
        let (mut reached, mut queue) = (BTreeSet::new(), vec![(*name).to_owned()]);
        while let Some(next) = queue.pop() {
            for dep in uses.get(&next).into_iter().flatten() {
                if reached.insert(dep.clone()) {
                    queue.push(dep.clone());
                }
            }
        }
        let reached: Vec<_> = never.iter().filter(|dep| reached.contains(**dep)).collect();
        assert!(reached.is_empty(), "{name} reaches {reached:?}");
    }
}
