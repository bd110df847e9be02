//! Layers with the shape of real ones, a few MiB each: what an image's files are like, made without an image.
//!
//! The same bytes on every run and every machine: digests of what is made of them are written down in tests. Whoever
//! changes a byte here renews those.

use crate::dice::Dice;
use crate::tar::{self, Archive, Entry, Kind, Variant};

/// Returns all shapes: name and tar.
pub fn all() -> [(&'static str, Vec<u8>); 4] {
    [("modules", modules()), ("base", base()), ("update", update()), ("large", tar::large(3000).tar)]
}

/// Returns a layer like that of `npm install`: some 1,600 small files in deep directories with long names, pax.
pub fn modules() -> Vec<u8> {
    let (mut dice, mut entries) = (Dice(1), Vec::new());
    let mut add = |entry: Entry, dice: &mut Dice| {
        let nanos = u32::try_from(dice.below(1_000_000_000)).unwrap_or(0);
        entries.push(entry.mtime(1_710_000_000 + dice.small(5000), nanos));
    };
    add(Entry::dir("app/"), &mut dice);
    for package in 0..80 {
        let scope = if package % 5 == 0 { "@a-scope-of-many-packages/" } else { "" };
        let top = format!("app/node_modules/{scope}package-{package}");
        add(Entry::dir(format!("{top}/")), &mut dice);
        let manifest = format!("{{\"name\":\"package-{package}\",\"version\":\"1.{package}.0\"}}\n");
        add(Entry::file(format!("{top}/package.json"), manifest), &mut dice);
        let deep = format!("{top}/node_modules/nested-dependency/dist/esm/internal/operators");
        for dir in [format!("{top}/lib"), deep] {
            add(Entry::dir(format!("{dir}/")), &mut dice);
            for n in 0..9 {
                let len = match dice.below(40) {
                    0 => dice.len(60_000),
                    1 => 0,
                    _ => dice.len(4000),
                };
                let name = match n {
                    8 => format!("{dir}/{}-{n}.d.ts", "declaration-of-everything-".repeat(5)),
                    _ => format!("{dir}/module-{n}.js"),
                };
                let content = dice.text(len);
                add(Entry::file(name, content), &mut dice);
            }
        }
        let bin = format!("app/node_modules/.bin/tool-{package}");
        add(Entry::symlink(bin, format!("../{scope}package-{package}/lib/module-0.js")), &mut dice);
    }
    Archive::of(&entries, Variant::Pax10).tar
}

/// Returns a layer like that of a distribution: a few large programs, documents, links hard and soft, devices,
/// odd modes, owners and capabilities.
pub fn base() -> Vec<u8> {
    let mut dice = Dice(2);
    let mut entries: Vec<_> = ["bin/", "dev/", "etc/", "usr/", "usr/bin/", "usr/lib/", "usr/share/", "var/"]
        .map(Entry::dir)
        .into_iter()
        .collect();
    entries.push(Entry::dir("tmp/").mode(0o1777));
    for (n, len) in (0..).zip([2_700_000, 1 << 20, (512 << 10) + 1, 300_000, 65_536]) {
        entries.push(Entry::file(format!("usr/lib/library-{n}.so.1"), dice.program(len)).mode(0o755));
        entries.push(Entry::symlink(format!("usr/lib/library-{n}.so"), format!("library-{n}.so.1")));
    }
    for n in 0..60 {
        let len = dice.len(40_000);
        entries.push(Entry::file(format!("usr/bin/tool-{n}"), dice.program(len)).mode(0o755));
        if n % 6 == 0 {
            // Later members of one inode, as perl, gzip and git have them.
            entries
                .push(Entry::link(format!("usr/bin/tool-{n}.real"), format!("usr/bin/tool-{n}")).mode(0o755));
            entries.push(Entry::link(format!("bin/tool-{n}"), format!("usr/bin/tool-{n}")).mode(0o755));
        }
        let len = dice.len(6000);
        entries.push(Entry::file(format!("usr/share/copyright-{n}"), dice.text(len)));
        let len = dice.len(200);
        entries.push(Entry::file(format!("etc/setting-{n}.conf"), dice.text(len)));
    }
    entries.push(Entry::file("usr/bin/su", dice.program(70_000)).mode(0o4755));
    entries.push(Entry::file("usr/bin/wall", dice.program(30_000)).mode(0o2755).owner(0, 5));
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    entries.push(Entry::file("usr/bin/ping", dice.program(60_000)).xattr("security.capability", capability));
    entries.push(Entry::file("etc/shadow", b"root:*:19000:0:99999:7:::\n").mode(0o640).owner(0, 42));
    entries.push(Entry::new("dev/null", Kind::Char(1, 3)).mode(0o666));
    entries.push(Entry::new("dev/loop0", Kind::Block(7, 0)));
    entries.push(Entry::new("dev/initctl", Kind::Fifo));
    let pieces = vec![(0, dice.text(292)), (292_000, dice.text(5000))];
    entries.push(Entry::new("var/lastlog", Kind::Sparse(1 << 20, pieces)));
    Archive::of(&entries, Variant::Pax10).tar
}

/// Returns a layer like that of `apt-get upgrade` and `rm`, in GNU's format: whiteouts, opaque directories, files
/// that replace others, a log, a package database.
pub fn update() -> Vec<u8> {
    let (mut dice, mut entries) = (Dice(3), Vec::new());
    entries.extend(["etc/", "usr/", "usr/bin/", "usr/share/", "var/", "var/lib/"].map(Entry::dir));
    for n in 0..25 {
        entries.push(Entry::file(format!("usr/share/.wh.copyright-{n}"), b""));
        let len = dice.len(30_000);
        entries.push(Entry::file(format!("usr/bin/tool-{n}"), dice.program(len)).mode(0o755));
        let (name, len) = ("of-a-package-whose-name-is-long-".repeat(4), dice.len(3000));
        entries.push(Entry::file(format!("var/lib/{name}{n}.md5sums"), dice.text(len)));
    }
    entries.push(Entry::dir("var/cache/"));
    entries.push(Entry::file("var/cache/.wh..wh..opq", b""));
    entries.push(Entry::file("usr/lib/.wh.library-3.so", b""));
    entries.push(Entry::file("var/lib/status", dice.text(700_000)));
    entries.push(Entry::file("var/log/dpkg.log", dice.text(90_000)));
    entries.push(Entry::link("var/log/dpkg.log.0", "var/log/dpkg.log"));
    Archive::of(&entries, Variant::Gnu).tar
}

impl Dice {
    fn len(&mut self, n: u32) -> usize {
        usize::try_from(self.below(n.into())).unwrap_or(0)
    }

    fn small(&mut self, n: u32) -> i64 {
        i64::try_from(self.below(n.into())).unwrap_or(0)
    }

    /// Lines of words, the early ones of the list more often: it packs to a third, as sources do.
    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "return ",
            "const ",
            "this.",
            "function ",
            "{\n  ",
            "}\n",
            "export ",
            "(value) => ",
            "undefined",
            ";\n",
            "import ",
            "prototype",
            "/* as the specification has it */ ",
            "=== ",
            "null",
            "await ",
        ];
        let mut out = Vec::with_capacity(len + 40);
        while out.len() < len {
            let most = 1 + self.below(16);
            match self.below(5) {
                0 => out.extend_from_slice(format!("n{:x} ", self.below(1 << 20)).as_bytes()),
                _ => out.extend_from_slice(WORDS[usize::try_from(self.below(most)).unwrap_or(0)].as_bytes()),
            }
        }
        out.truncate(len);
        out
    }

    /// Machine words with a few patterns, a table of zeros, strings: it packs to a half, as programs do.
    fn program(&mut self, len: usize) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0".to_vec();
        while out.len() < len {
            match self.below(64) {
                0 => out.resize(out.len() + 300, 0),
                1 => out.extend_from_slice(&self.text(200)),
                _ => {
                    let (operation, operand) = (self.below(24), self.below(1 << 20));
                    out.extend_from_slice(&(operation * 0x0101_0041).to_le_bytes()[..4]);
                    out.extend_from_slice(&operand.to_le_bytes()[..3]);
                }
            }
        }
        out.truncate(len);
        out
    }
}
