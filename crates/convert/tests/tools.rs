//! Layers as real tools make them: GNU tar of directories of this machine, packed by gzip, pigz and zstd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{Dice, built, decode};
use convert::Threads;

/// Runs a filter; nothing if there is no such program here.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut pipe = child.stdin.take()?;
    std::thread::scope(|scope| {
        scope.spawn(move || pipe.write_all(input).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}");
        Some(output.stdout)
    })
}

/// A tar of some real directory, of a size a test can afford.
fn real_tar() -> Option<Vec<u8>> {
    for dir in
        ["/usr/share/perl5", "/usr/share/perl", "/usr/share/bash-completion", "/usr/share/zoneinfo", "/etc"]
    {
        let arguments = ["--sort=name", "--format=pax", "--ignore-failed-read", "-cC", dir, "."];
        let tar = Command::new("tar").args(arguments).stderr(Stdio::null()).output().ok()?.stdout;
        if (1 << 20..64 << 20).contains(&tar.len()) {
            return Some(tar);
        }
    }
    None
}

#[test]
fn layers_from_real_tools_come_back_segment_by_segment() {
    let Some(tar) = real_tar() else {
        testkit::skip!("no tar, or no directory of a fitting size");
    };
    let ways: [(&str, &[&str]); 8] = [
        ("gzip", &["-1"]),
        ("gzip", &["-6"]),
        ("gzip", &["-9"]),
        ("pigz", &["-6"]),
        ("pigz", &["-i", "-p", "2"]),
        ("zstd", &["-3", "--no-check"]),
        ("zstd", &["-9", "--long=25"]),
        ("pzstd", &["-3", "-p", "2"]),
    ];
    let (mut identity, mut absent) = (None, BTreeSet::new());
    for (program, arguments) in ways {
        let Some(blob) = filter(program, arguments, &tar) else {
            absent.insert(program);
            continue;
        };
        let layer = built(&tar, &blob, 18, Threads::Two);
        let id = layer.layer.id();
        assert_eq!(*identity.get_or_insert(id), id, "{program} {arguments:?}");
        let mut dice = Dice::new(3);
        for _ in 0..12 {
            let n = u32::try_from(dice.below(u64::from(layer.layer.segments()))).unwrap();
            let back = decode(&layer.layer, &blob, n..n + 1, 65_536).unwrap();
            assert!(back[0] == layer.segments[n as usize], "{program} {arguments:?}, segment {n}");
        }
        let all = decode(&layer.layer, &blob, 0..layer.layer.segments(), 65_536).unwrap();
        assert!(all == layer.segments, "{program} {arguments:?}");
    }
    if !absent.is_empty() {
        testkit::skip!("not here: {absent:?}");
    }
}
