//! A zTOC, written by hand: the generator behind the tests of the reader, for good ones and others.
//!
//! Knows nothing of the workspace's own reader. Tables come before what they lead to and are not aligned, which the
//! reference's writer has otherwise, and its reader does not mind.

/// Bytes of a window.
pub const WINDOW: usize = 32 << 10;

/// What is written.
#[derive(Debug, Clone)]
pub struct Ztoc {
    /// The version.
    pub version: String,
    /// Length of the blob.
    pub packed: i64,
    /// Length of the tar.
    pub plain: i64,
    /// The files.
    pub files: Vec<File>,
    /// The kind of compression, where it is said.
    pub kind: Option<u8>,
    /// Number of the last span.
    pub last_span: i32,
    /// Digests of the spans.
    pub digests: Vec<String>,
    /// The checkpoints, as [`checkpoints`] has them.
    pub checkpoints: Vec<u8>,
}

/// A file in it.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// Its name.
    pub name: Vec<u8>,
    /// `reg`, `dir`, …
    pub kind: &'static str,
    /// Where its bytes are in the tar.
    pub offset: i64,
    /// How many.
    pub size: i64,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// RFC 3339.
    pub time: String,
    /// Number of a device.
    pub device: (i64, i64),
    /// Records of the pax header.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A place at which a decoder can begin.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Offset in the blob of the first whole byte.
    pub place: u64,
    /// Offset in the tar.
    pub plain: u64,
    /// Bits that are needed of the byte before.
    pub bits: u8,
    /// The output before it, at most [`WINDOW`] bytes.
    pub window: Vec<u8>,
}

impl Checkpoint {
    /// Returns where its span begins in the blob.
    pub fn begin(&self) -> u64 {
        self.place - u64::from(self.bits > 0)
    }
}

/// Writes checkpoints, all or as old writers do without the first.
pub fn checkpoints(all: &[Checkpoint], span: u64, without_first: bool) -> Vec<u8> {
    let mut out = u32::try_from(all.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    out.extend(span.to_le_bytes());
    for point in &all[usize::from(without_first)..] {
        out.extend(point.place.to_le_bytes());
        out.extend(point.plain.to_le_bytes());
        out.push(point.bits);
        out.resize(out.len() + WINDOW - point.window.len(), 0);
        out.extend(&point.window);
    }
    out
}

/// A field of a table.
enum Field {
    None,
    Number(Vec<u8>),
    /// Leads to something that follows.
    Link,
}

impl Ztoc {
    /// Returns one with a file of each kind, of a blob of this length that is none.
    ///
    /// It has one checkpoint, which old writers leave out: so it is short.
    pub fn sample(packed: i64) -> Self {
        let kinds = ["dir", "reg", "symlink", "hardlink", "char", "block", "fifo"];
        let file = |(n, kind): (i64, &'static str)| File {
            name: format!("d/{kind}").into(),
            kind,
            offset: 512 + 1024 * n,
            size: if kind == "reg" { 500 } else { 0 },
            link: b"d/reg".to_vec(),
            mode: 0o755,
            uid: 1,
            gid: 2,
            time: "2026-01-31T12:00:00.5+01:00".into(),
            device: (8, 17),
            records: vec![(b"SCHILY.xattr.user.a".to_vec(), b"1".to_vec())],
        };
        Self {
            version: "0.9".into(),
            packed,
            plain: 1 << 16,
            files: (0..).zip(kinds).map(file).collect(),
            kind: None,
            last_span: 0,
            digests: vec![format!("sha256:{}", "5".repeat(64))],
            checkpoints: [&1_u32.to_le_bytes()[..], &(4_u64 << 20).to_le_bytes()].concat(),
        }
    }

    /// Returns its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Out(vec![0; 4]);
        let [version, tool, toc, compression] = out.table(
            vec![Field::Link, Field::Link, long(self.packed), long(self.plain), Field::Link, Field::Link],
            0,
        );
        out.bytes(version, self.version.as_bytes());
        out.bytes(tool, b"testkit");
        let [files] = out.table(vec![Field::Link], toc);
        let places = out.vector(files, self.files.len());
        for (file, place) in self.files.iter().zip(places) {
            out.file(place, file);
        }
        let kind = self.kind.map_or(Field::None, |kind| Field::Number(vec![kind]));
        let last = Field::Number(self.last_span.to_le_bytes().to_vec());
        let [digests, checkpoints] = out.table(vec![kind, last, Field::Link, Field::Link], compression);
        let places = out.vector(digests, self.digests.len());
        for (digest, place) in self.digests.iter().zip(places) {
            out.bytes(place, digest.as_bytes());
        }
        out.bytes(checkpoints, &self.checkpoints);
        out.0
    }
}

fn long(n: i64) -> Field {
    Field::Number(n.to_le_bytes().to_vec())
}

struct Out(Vec<u8>);

impl Out {
    /// Adds a table that something leads to; returns where the distances of its links go.
    fn table<const N: usize>(&mut self, fields: Vec<Field>, from: usize) -> [usize; N] {
        let vtable = 4 + 2 * fields.len();
        let (mut places, mut body, mut links) = (Vec::new(), vec![], Vec::new());
        for field in fields {
            let place = 4 + body.len();
            match field {
                Field::None => {
                    places.push(0);
                    continue;
                }
                Field::Number(bytes) => body.extend(bytes),
                Field::Link => {
                    links.push(place);
                    body.extend([0; 4]);
                }
            }
            places.push(place);
        }
        let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
        self.0.extend(short(vtable));
        self.0.extend(short(4 + body.len()));
        places.into_iter().for_each(|place| self.0.extend(short(place)));
        let at = self.0.len();
        self.lead(from);
        self.0.extend(i32::try_from(vtable).unwrap_or(i32::MAX).to_le_bytes());
        self.0.extend(body);
        let mut places = [0; N];
        places.iter_mut().zip(links).for_each(|(place, link)| *place = at + link);
        places
    }

    /// Makes a distance lead to what comes next.
    fn lead(&mut self, from: usize) {
        let distance = u32::try_from(self.0.len() - from).unwrap_or(u32::MAX);
        self.0[from..from + 4].copy_from_slice(&distance.to_le_bytes());
    }

    fn bytes(&mut self, from: usize, bytes: &[u8]) {
        self.lead(from);
        self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend(bytes);
        self.0.push(0);
    }

    /// Adds a vector; returns where the distances to its elements go.
    fn vector(&mut self, from: usize, len: usize) -> Vec<usize> {
        self.lead(from);
        self.0.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        let at = self.0.len();
        self.0.resize(at + 4 * len, 0);
        (0..len).map(|n| at + 4 * n).collect()
    }

    fn file(&mut self, from: usize, file: &File) {
        let id = |n: u32| Field::Number(n.to_le_bytes().to_vec());
        let fields = vec![
            Field::Link,
            Field::Link,
            long(file.offset),
            long(file.size),
            Field::Link,
            long(file.mode),
            id(file.uid),
            id(file.gid),
            Field::None,
            Field::None,
            Field::Link,
            long(file.device.0),
            long(file.device.1),
            Field::Link,
        ];
        let [name, kind, link, time, records] = self.table(fields, from);
        self.bytes(name, &file.name);
        self.bytes(kind, file.kind.as_bytes());
        self.bytes(link, &file.link);
        self.bytes(time, file.time.as_bytes());
        let places = self.vector(records, file.records.len());
        for ((key, value), place) in file.records.iter().zip(places) {
            let [key_at, value_at] = self.table(vec![Field::Link, Field::Link], place);
            self.bytes(key_at, key);
            self.bytes(value_at, value);
        }
    }
}
