//! The FUSE server, mounted for real.

#[cfg(test)]
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use format::erofs::read::Image;
use mount::fuse::{Options, Server, UnmountError};
use rustix::io::Errno;
use support::{Is, Packed, bytes, pack};
use testkit::dump::{self, difference};

macro_rules! needs_fuse {
    () => {
        if let Some(why) = support::missing() {
            testkit::skip!("{why}");
        }
    };
}

#[cfg(test)]
mod resume;

#[cfg(test)]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Files of sizes around every boundary, and one over many segments.
#[cfg(test)]
fn files(dir: &Path) {
    for n in 0..200_u64 {
        let len = [0, 1, 4095, 4096, 4097, 30_000, 65_535, 65_536, 65_537, 200_000];
        let len = len[usize::try_from(n).unwrap() % len.len()];
        fs::create_dir_all(dir.join(format!("d{}", n % 7))).unwrap();
        fs::write(dir.join(format!("d{}/f{n}", n % 7)), bytes(n, len)).unwrap();
    }
    fs::write(dir.join("long"), bytes(1000, 3_000_000)).unwrap();
}

#[cfg(test)]
fn all_files(packed: &Packed) -> Vec<String> {
    let mut names: Vec<_> = (0..200).map(|n| format!("d{}/f{n}", n % 7)).collect();
    names.push("long".to_owned());
    assert!(names.iter().all(|name| packed.source().join(name).exists()));
    names
}

#[test]
fn a_mount_shows_what_was_packed() {
    needs_fuse!();
    if !rustix::process::geteuid().is_root() {
        testkit::skip!("devices and trusted attributes need root");
    }
    let packed = pack(|dir| testkit::fixture::populate(dir, true).unwrap());
    let wanted = dump::disk(&packed.source()).unwrap();
    let (mut mounted, counters) = packed.mount(Options::default());
    let at = packed.mount_point();
    // The second time from the kernel's memory.
    for _ in 0..2 {
        let shown = dump::disk(&at).unwrap();
        let difference = difference(&wanted, &shown);
        assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
    assert!(counters.hits() > 0 && counters.bytes() > 1_000_000);
    assert_eq!((counters.misses(), counters.failures()), (0, 0));

    let (root, source) = (fs::metadata(&at).unwrap(), fs::metadata(packed.source()).unwrap());
    assert_eq!(root.ino(), 1);
    assert_eq!((root.mode(), root.nlink()), (source.mode(), source.nlink()));
    let stat = rustix::fs::statfs(&at).unwrap();
    assert_eq!((stat.f_bavail, stat.f_ffree, stat.f_namelen), (0, 0, 255));
    assert_eq!(stat.f_files, packed.image().inodes());
    assert!(stat.f_blocks * 4096 > 1_200_000);
    // A device node works as such.
    File::options().write(true).open(at.join("null")).unwrap().write_all(b"gone").unwrap();
    mounted.unmount().unwrap();
    assert!(!at.join("d").exists());
    assert!(!mounted.is_served());
    mounted.unmount().unwrap();
}

#[test]
fn calls_fail_as_on_any_read_only_disk() {
    needs_fuse!();
    let packed = pack(|dir| {
        fs::write(dir.join("file"), b"0123456789").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        rustix::fs::lsetxattr(dir.join("file"), "user.a", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    });
    let (_mounted, _) = packed.mount(Options::default());
    let at = packed.mount_point();
    let file = at.join("file");
    let code = |errno: Errno| errno.raw_os_error();
    for _ in 0..2 {
        assert_eq!(errno(fs::metadata(at.join("absent"))), code(Errno::NOENT));
    }
    assert_eq!(errno(fs::metadata(file.join("below"))), code(Errno::NOTDIR));
    assert_eq!(errno(fs::metadata(at.join("x".repeat(256)))), code(Errno::NAMETOOLONG));
    assert_eq!(errno(File::create(at.join("new"))), code(Errno::ROFS));
    assert_eq!(errno(File::options().write(true).open(&file)), code(Errno::ROFS));
    assert_eq!(errno(fs::remove_file(&file)), code(Errno::ROFS));
    assert_eq!(errno(fs::read(at.join("dir"))), code(Errno::ISDIR));
    assert_eq!(errno(fs::read_link(&file)), code(Errno::INVAL));
    let mut buf = [0; 64];
    let get = |name: &str, buf: &mut [u8]| rustix::fs::getxattr(&file, name, buf);
    assert_eq!(get("user.a", &mut buf), Ok(5));
    assert_eq!(&buf[..5], b"value");
    assert_eq!(rustix::fs::getxattr_query(&file, "user.a"), Ok(5));
    assert_eq!(get("user.a", &mut buf[..4]), Err(Errno::RANGE));
    assert_eq!(get("user.b", &mut buf), Err(Errno::NODATA));
    assert_eq!(get("trusted.a", &mut buf), Err(Errno::NODATA));
    assert_eq!(rustix::fs::listxattr_query(&file), Ok(7));
    assert_eq!(rustix::fs::listxattr(&file, &mut buf[..6]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::listxattr(at.join("dir"), &mut buf), Ok(0));
    let open = File::open(&file).unwrap();
    assert_eq!(open.read_at(&mut buf, 3).unwrap(), 7);
    assert_eq!(open.read_at(&mut buf, 10).unwrap(), 0);
    assert_eq!(open.read_at(&mut buf, 1 << 40).unwrap(), 0);
    assert_eq!(rustix::fs::ioctl_getflags(&open), Err(Errno::NOTTY));
}

#[test]
fn an_overlay_on_top_reads_copies_up_and_whites_out() {
    needs_fuse!();
    if !rustix::process::geteuid().is_root() {
        testkit::skip!("overlays need root");
    }
    let packed = pack(files);
    let (mut mounted, _) = packed.mount(Options::default());
    let at = |name: &str| packed.dir.path().join(name);
    for name in ["upper", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        packed.mount_point().display(),
        at("upper").display(),
        at("work").display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", at("merged"), "overlay", flags, options.as_c_str()).unwrap();
    let difference = difference(&dump::disk(&packed.source()).unwrap(), &dump::disk(&at("merged")).unwrap());
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    let mut long = File::options().append(true).open(at("merged/long")).unwrap();
    long.write_all(b"more").unwrap();
    fs::remove_file(at("merged/d1/f1")).unwrap();
    fs::remove_dir_all(at("merged/d2")).unwrap();
    assert!(fs::read(at("merged/long")).unwrap() == [&bytes(1000, 3_000_000)[..], b"more"].concat());
    assert!(!at("merged/d1/f1").exists() && !at("merged/d2").exists());
    assert!(fs::read(packed.mount_point().join("long")).unwrap() == bytes(1000, 3_000_000));
    drop(long);
    // An overlay holds the file system, not its name: it is served until the overlay goes.
    mounted.unmount().unwrap();
    assert!(mounted.is_served());
    assert!(fs::read(at("merged/d1/f2")).is_ok() || at("merged/d1").exists());
    rustix::mount::unmount(at("merged"), rustix::mount::UnmountFlags::empty()).unwrap();
    mounted.wait().unwrap();
}

#[test]
fn lists_of_access_count() {
    needs_fuse!();
    if !rustix::process::geteuid().is_root() {
        testkit::skip!("becoming another user needs root");
    }
    // Owner rw, user 1234 r, mask rw, others nothing (linux/posix_acl_xattr.h).
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1234), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let packed = pack(|dir| {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(dir.join("file"), b"listed").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(dir.join("file"), "system.posix_acl_access", &acl, flags).unwrap();
    });
    fs::set_permissions(packed.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (mut mounted, _) = packed.mount(Options::default());
    let file = packed.mount_point().join("file");
    let reads = |user: u32| {
        use std::os::unix::process::CommandExt;
        std::process::Command::new("cat").arg(&file).uid(user).gid(user).output().unwrap().stdout
    };
    assert_eq!(reads(1234), b"listed");
    assert_eq!(reads(1235), b"");
    let mut shown = [0; 100];
    let len = rustix::fs::lgetxattr(&file, "system.posix_acl_access", &mut shown[..]).unwrap();
    assert_eq!(&shown[..len], acl);
    mounted.unmount().unwrap();
}

#[test]
fn readers_get_right_bytes_while_segments_arrive_in_any_order() {
    needs_fuse!();
    let packed = pack(files);
    packed.segments.set_all(Is::Away);
    let (mut mounted, counters) = packed.mount(Options::default());
    let names = all_files(&packed);
    thread::scope(|scope| {
        for reader in 0..16_usize {
            let (packed, names) = (&packed, &names);
            scope.spawn(move || {
                for n in 0..names.len() {
                    let name = &names[(n * 37 + reader * 11) % names.len()];
                    let wanted = fs::read(packed.source().join(name)).unwrap();
                    let file = File::open(packed.mount_point().join(name)).unwrap();
                    if reader % 2 == 0 && !wanted.is_empty() {
                        let map = sys::map::Map::of(&file).unwrap();
                        assert!(map.as_ref() == wanted, "{name} mapped");
                    } else {
                        let mut shown = Vec::new();
                        (&file).read_to_end(&mut shown).unwrap();
                        assert!(shown == wanted, "{name}");
                    }
                }
            });
        }
        let count = packed.segments.count();
        assert!(count > 50);
        for n in 0..count {
            // Each arrival waits until somebody wants one, so that there is something to race with.
            packed.segments.until_fetching(usize::from(n < count / 2));
            packed.segments.set([n * 29 % count, n], Is::Here);
        }
        packed.segments.set_all(Is::Here);
    });
    assert!(counters.misses() > 0);
    assert_eq!((counters.failures(), counters.waiting()), (0, 0));
    assert_eq!(counters.waits().total.count, counters.misses());
    mounted.unmount().unwrap();
}

#[test]
fn what_is_here_does_not_queue_behind_what_is_not() {
    needs_fuse!();
    let packed = pack(files);
    let here = packed.segments_of("d1/f1");
    // All segments but those of one file: more than there are threads of any kind.
    let away: Vec<_> = (0..packed.segments.count()).filter(|n| !here.contains(n)).collect();
    packed.segments.set(away.iter().copied(), Is::Away);
    let (mut mounted, counters) = packed.mount(Options::default());
    thread::scope(|scope| {
        for name in all_files(&packed) {
            let (packed, here) = (&packed, &here);
            scope.spawn(move || {
                let read = fs::read(packed.mount_point().join(&name)).unwrap();
                assert!(read == fs::read(packed.source().join(&name)).unwrap(), "{name} {here:?}");
            });
        }
        packed.segments.until_fetching(40);
        for _ in 0..100 {
            let file = File::open(packed.mount_point().join("d1/f1")).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert_eq!(fs::read(packed.mount_point().join("d1/f1")).unwrap(), bytes(1, 1));
        }
        assert!(counters.waiting() > 0);
        packed.segments.set_all(Is::Here);
    });
    mounted.unmount().unwrap();
}

#[test]
fn a_segment_that_fails_is_an_error_and_then_forgotten() {
    needs_fuse!();
    let packed = pack(files);
    let (mut mounted, counters) = packed.mount(Options::default());
    let path = packed.mount_point().join("long");
    let wanted = bytes(1000, 3_000_000);
    let [first, .., last] = *packed.segments_of("long") else { panic!() };
    for (broken, is) in
        [(first, Is::Failing), (last, Is::Failing), (last, Is::Panicking), (first, Is::Untouchable)]
    {
        packed.segments.set([broken], is);
        // A mount that has the segment open goes on with it; so does the page cache.
        drop(mounted);
        let (again, counters) = packed.mount(Options::default());
        mounted = again;
        let file = File::open(&path).unwrap();
        let at = if broken == first { 0 } else { wanted.len() as u64 - 10_000 };
        let mut buf = vec![0; 10_000];
        for _ in 0..3 {
            assert_eq!(errno(file.read_exact_at(&mut buf, at)), Errno::IO.raw_os_error());
        }
        assert!(counters.failures() >= 3 || is == Is::Untouchable);
        packed.segments.set([broken], Is::Here);
        file.read_exact_at(&mut buf, at).unwrap();
        assert!(buf == wanted[usize::try_from(at).unwrap()..][..10_000]);
        assert!(fs::read(&path).unwrap() == wanted);
        drop(file);
    }
    drop(counters);
    mounted.unmount().unwrap();
}

#[test]
fn a_read_that_waits_too_long_is_an_error_and_then_forgotten() {
    needs_fuse!();
    let packed = pack(files);
    packed.segments.set_all(Is::Away);
    let options = Options { deadline: Duration::from_millis(20), ..Options::default() };
    let (mut mounted, counters) = packed.mount(options);
    let path = packed.mount_point().join("d2/f2");
    for _ in 0..3 {
        assert_eq!(errno(fs::read(&path)), Errno::IO.raw_os_error());
    }
    assert!(counters.waits().total.longest >= Duration::from_millis(20));
    assert_eq!(counters.waits().files.len(), 1);
    let nid = *counters.waits().files.keys().next().unwrap();
    assert_eq!(packed.image().path_of(nid).unwrap(), b"/d2/f2");
    packed.segments.set_all(Is::Here);
    assert!(fs::read(&path).unwrap() == bytes(2, 4095));
    mounted.unmount().unwrap();
}

#[test]
fn who_waits_when_the_server_goes_gets_an_errno() {
    needs_fuse!();
    let packed = pack(files);
    for round in 0..10 {
        packed.segments.set_all(Is::Away);
        let (mounted, counters) = packed.mount(Options::default());
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let names = all_files(&packed);
            let readers: Vec<_> = names[..64]
                .iter()
                .filter(|name| fs::metadata(packed.source().join(name)).unwrap().len() > 0)
                .map(|name| {
                    let file = File::open(packed.mount_point().join(name)).unwrap();
                    let ended = &ended;
                    scope.spawn(move || {
                        let read = file.read_at(&mut [0; 4096], 0);
                        assert!(ended.load(Ordering::SeqCst), "{read:?} before the end");
                        let code = errno(read);
                        let wanted = [Errno::IO, Errno::CONNABORTED, Errno::NOTCONN];
                        assert!(wanted.iter().any(|errno| errno.raw_os_error() == code), "{code}");
                        // And so do later ones.
                        assert!(file.read_at(&mut [0; 4096], 0).is_err());
                    })
                })
                .collect();
            packed.segments.until_fetching(10 + round);
            ended.store(true, Ordering::SeqCst);
            drop(mounted);
            for reader in readers {
                reader.join().unwrap();
            }
        });
        assert_eq!(counters.bytes(), 0);
        // Lets go of fetches that nobody waits for any more.
        packed.segments.set_all(Is::Here);
    }
    let (mut mounted, _) = packed.mount(Options::default());
    assert!(fs::read(packed.mount_point().join("long")).unwrap() == bytes(1000, 3_000_000));
    mounted.unmount().unwrap();
}

#[test]
fn a_mount_in_use_stays_and_tells_by_whom() {
    needs_fuse!();
    let packed = pack(files);
    let (mut mounted, _) = packed.mount(Options::default());
    let file = File::open(packed.mount_point().join("d1/f1")).unwrap();
    let error = mounted.unmount().unwrap_err();
    let UnmountError::Busy { by, .. } = &error else { panic!("{error}") };
    assert!(by.iter().any(|user| user.pid == std::process::id()), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    assert!(mounted.is_served());
    assert_eq!(fs::read(packed.mount_point().join("d1/f1")).unwrap(), bytes(1, 1));
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn a_detached_mount_serves_its_users_to_the_last() {
    needs_fuse!();
    let packed = pack(files);
    let (mut mounted, _) = packed.mount(Options::default());
    let file = File::open(packed.mount_point().join("long")).unwrap();
    mounted.detach().unwrap();
    assert_eq!(fs::read_dir(packed.mount_point()).unwrap().count(), 0);
    let mut buf = vec![0; 3_000_000];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf == bytes(1000, 3_000_000));
    assert!(mounted.is_served());
    drop(file);
    mounted.wait().unwrap();
    assert!(!mounted.is_served());
}

#[test]
fn unmounting_by_hand_is_noticed() {
    needs_fuse!();
    let packed = pack(files);
    let (mut mounted, _) = packed.mount(Options::default());
    rustix::mount::unmount(packed.mount_point(), rustix::mount::UnmountFlags::empty()).unwrap();
    mounted.wait().unwrap();
    // Not ours: somebody's new mount at the same place must survive us.
    let (mut second, _) = packed.mount(Options::default());
    mounted.unmount().unwrap();
    drop(mounted);
    assert!(second.is_served());
    assert!(packed.mount_point().join("long").exists());
    second.unmount().unwrap();
}

#[test]
fn a_segment_cut_short_under_the_mount_is_an_error_never_zeros() {
    needs_fuse!();
    let packed = pack(files);
    let (mut mounted, _) = packed.mount(Options::default());
    let segments = packed.segments_of("long");
    let file = File::open(packed.mount_point().join("long")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut buf = [0; 4096];
    // Opens and maps it.
    file.read_exact_at(&mut buf, 0).unwrap();
    let cut = File::options().write(true).open(packed.segments.path(segments[0])).unwrap();
    cut.set_len(4096).unwrap();
    assert_eq!(errno(file.read_exact_at(&mut buf, 16_384)), Errno::IO.raw_os_error());
    file.read_exact_at(&mut buf, support::SEGMENT).unwrap();
    assert!(buf == bytes(1000, 3_000_000)[65_536..][..4096]);
    // One that is short before it is mapped.
    let cut = File::options().write(true).open(packed.segments.path(segments[3])).unwrap();
    cut.set_len(4096).unwrap();
    assert_eq!(errno(file.read_exact_at(&mut buf, 3 * support::SEGMENT + 8192)), Errno::IO.raw_os_error());
    file.read_exact_at(&mut buf, 3 * support::SEGMENT).unwrap();
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn a_sequential_reader_is_announced_and_a_random_one_is_not() {
    needs_fuse!();
    let packed = pack(files);
    let segments = packed.segments_of("long");
    let (mut mounted, _) = packed.mount(Options::default());
    let file = File::open(packed.mount_point().join("long")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    for n in 0..20_u64 {
        file.read_at(&mut [0; 4096], (n * 17 % 20) * 140_000).unwrap();
    }
    assert!(packed.segments.hinted().is_empty());
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Normal).unwrap();
    let mut buf = vec![0; 1_500_000];
    file.read_exact_at(&mut buf, 0).unwrap();
    let hinted = packed.segments.hinted();
    assert!(!hinted.is_empty());
    assert!(hinted.iter().all(|segment| segments.contains(segment)), "{hinted:?} of {segments:?}");
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn damaged_images_are_served_as_far_as_they_go() {
    needs_fuse!();
    let packed = pack(files);
    for round in 0..12 {
        let mut metadata = packed.metadata.clone();
        let noise = bytes(round, 400);
        for pair in noise.chunks_exact(4) {
            // Past the superblock, whose checksum keeps an image from being mounted at all.
            let at = 4096 + (usize::from(pair[0]) << 16 | usize::from(pair[1]) << 8 | usize::from(pair[2]));
            let at = at % (metadata.len() - 4096) + 4096;
            metadata[at] = pair[3];
        }
        let image = Arc::new(Image::open(metadata).unwrap());
        let server = Server::new(image, packed.segments.clone());
        let mut mounted = server.mount(&packed.mount_point()).unwrap();
        let mut budget = 5000;
        visit(&packed.mount_point(), &mut budget);
        mounted.unmount().unwrap();
    }
}

/// Looks at everything, whatever fails.
fn visit(path: &Path, budget: &mut u32) {
    if *budget == 0 {
        return;
    }
    *budget -= 1;
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let _ = rustix::fs::llistxattr(path, &mut [0; 4096]);
    if meta.is_symlink() {
        let _ = fs::read_link(path);
    } else if meta.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| visit(&entry.path(), budget));
    } else if meta.is_file() {
        let mut file = File::open(path).into_iter();
        let _ = file.next().map(|file| file.take(1 << 20).read_to_end(&mut Vec::new()));
    }
}

#[test]
fn a_target_that_is_no_directory_is_refused() {
    needs_fuse!();
    let packed = pack(files);
    for target in ["tar", "absent"] {
        let server = Server::new(packed.image(), packed.segments.clone());
        let error = server.mount(&packed.dir.path().join(target)).unwrap_err();
        assert!(error.to_string().contains(target), "{error}");
    }
}
