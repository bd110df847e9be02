//! Real tars by GNU tar, held against what GNU tar itself extracts from them.

#[cfg(test)]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use testkit::dump::{self, Dump, difference};
use testkit::{fixture, skip};

/// Returns what a directory holds after GNU tar extracted an archive there.
#[cfg(test)]
fn extracted(archive: &Path, dir: &Path) -> Dump {
    fs::create_dir(dir).unwrap();
    let archive = archive.to_str().unwrap();
    fixture::gnu_tar(&["-xpf", archive, "--numeric-owner", "--xattrs", "--xattrs-include=*"], dir).unwrap();
    dump::disk(dir).unwrap()
}

#[cfg(test)]
fn tree(archive: &Path) -> Dump {
    let bytes = fs::read(archive).unwrap();
    let layer = support::read(&bytes, 10_007).map_err(|error| error.to_string()).unwrap();
    let layers = [layer];
    support::dump(&support::tree(&layers).map_err(|error| error.to_string()).unwrap(), &layers)
}

#[test]
fn trees_are_what_gnu_tar_extracts() {
    let temp = tempfile::tempdir().unwrap();
    if fs::metadata(temp.path()).unwrap().uid() != 0 {
        skip!("devices, owners and trusted attributes need root");
    }
    if Command::new("tar").arg("--version").output().is_err() {
        skip!("there is no tar");
    }
    for rich in [false, true] {
        fixture::populate(&temp.path().join(rich.to_string()), rich).unwrap();
    }
    for (number, (rich, options)) in [
        (false, &["--format=v7"][..]),
        (false, &["--format=ustar"]),
        (true, &["--format=oldgnu"]),
        (true, &["--format=gnu"]),
        (true, &["--format=gnu", "--sparse"]),
        (true, &["--format=posix", "--xattrs", "--xattrs-include=*"]),
        (true, &["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"]),
        (true, &["--format=posix", "--sparse", "--sparse-version=0.0"]),
        (true, &["--format=posix", "--sparse", "--sparse-version=0.1", "--numeric-owner"]),
        (true, &["--format=posix", "--pax-option=globexthdr.name=g,mtime=12345.5", "--hard-dereference"]),
    ]
    .into_iter()
    .enumerate()
    {
        let archive = temp.path().join(format!("{number}.tar"));
        let from = temp.path().join(rich.to_string());
        // What a format cannot hold tar leaves out, and says so by its exit code: devices in v7.
        let arguments = [&["-cf", archive.to_str().unwrap()], options, &["."]].concat();
        Command::new("tar").args(&arguments).current_dir(&from).output().unwrap();
        let wanted = extracted(&archive, &temp.path().join(number.to_string()));
        assert!(wanted.len() > 15, "{options:?} holds only {}", wanted.len());
        let difference = difference(&tree(&archive), &wanted);
        assert!(difference.is_none(), "{options:?}\n{}", difference.unwrap_or_default());
    }
}

#[test]
fn appended_members_replace_as_gnu_tar_replaces() {
    let temp = tempfile::tempdir().unwrap();
    let [from, archive] = ["from", "a.tar"].map(|name| temp.path().join(name));
    let path = archive.to_str().unwrap();
    fs::create_dir_all(from.join("d/e")).unwrap();
    fs::write(from.join("d/f"), b"first").unwrap();
    fs::hard_link(from.join("d/f"), from.join("d/g")).unwrap();
    if fs::metadata(&from).unwrap().uid() != 0 {
        skip!("owners need root");
    }
    fixture::gnu_tar(&["--format=posix", "-cf", path, "d"], &from).unwrap();
    fs::remove_file(from.join("d/f")).unwrap();
    fs::write(from.join("d/f"), b"second, and longer").unwrap();
    fs::remove_dir(from.join("d/e")).unwrap();
    fs::write(from.join("d/e"), b"a file where a directory was").unwrap();
    fs::write(from.join("d/new"), b"").unwrap();
    fixture::gnu_tar(&["--format=posix", "-rf", path, "d"], &from).unwrap();
    let difference = difference(&tree(&archive), &extracted(&archive, &temp.path().join("out")));
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
}
