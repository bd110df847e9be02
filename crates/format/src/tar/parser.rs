//! The push parser.

use std::sync::Arc;

use super::header::{BLOCK, Block, Dialect, Header, number, text};
use super::pax::{self, Records};
use super::sparse::{self, TextMap};
use super::{Member, MemberKind, TarError, TarProblem};
use crate::erofs::disk::{MAGIC, SUPER_OFFSET};
use crate::limits;
use crate::name::printable;
use crate::payload::Piece;
use crate::tree::Time;

/// Where the magic of a file system ends.
const SUPER_END: u64 = (SUPER_OFFSET + size_of_val(&MAGIC)) as u64;

/// What [`Parser::step`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The input is used up.
    NeedMore,
    /// A member. In a tar the next [`Member::payload`] bytes are its payload: the caller takes them aside and goes
    /// on with the byte after them. In a skeleton the next byte already is that one.
    Member(Member),
}

/// Tells the bytes of a tar apart; see the [module](super).
///
/// A parser that returned an error goes on returning it.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The beginning of a block, as far as it has come.
    block: Block,
    filled: usize,
    /// Offset in the tar of the next byte of input.
    plain: u64,
    /// Bytes of input taken.
    skeleton: u64,
    /// Offset in the tar of the latest header: errors name it.
    header: u64,
    members: u64,
    pieces: u64,
    global: Records,
    /// The global records and those of the next member.
    local: Option<Box<Records>>,
    long_path: Option<Box<[u8]>>,
    long_link: Option<Box<[u8]>>,
    extension: Vec<u8>,
    failed: Option<TarError>,
}

#[derive(Debug)]
enum State {
    /// Before a header.
    Header,
    /// Inside the data of an extension; `left` bytes are missing.
    Extension { kind: u8, left: usize, padding: usize },
    /// Before a block of an old GNU sparse map.
    OldMap(Box<Draft>),
    /// Before a block of a sparse map of version 1.0.
    TextMap(Box<Draft>, TextMap),
    /// Inside the padding after an extension: a member must follow.
    ExtensionPadding(usize),
    /// Inside the padding after a payload: the tar may end.
    Padding(usize),
    /// After one zero block.
    Marker,
    /// After two.
    Trailer,
}

/// A sparse member whose map is not complete.
#[derive(Debug)]
struct Draft {
    member: Member,
    size: u64,
    /// Bytes of its data area that are left.
    stored: u64,
    pieces: Vec<Piece>,
}

impl Parser {
    /// Returns a parser at the beginning of a tar.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            plain: 0,
            skeleton: 0,
            header: 0,
            members: 0,
            pieces: 0,
            global: Records::default(),
            local: None,
            long_path: None,
            long_link: None,
            extension: Vec::new(),
            failed: None,
        }
    }

    /// Returns the offset in the tar of the next byte of input. Payload counts from the moment it is announced.
    pub fn plain(&self) -> u64 {
        self.plain
    }

    /// Returns how many bytes of input have been taken: all of them are skeleton.
    pub fn skeleton(&self) -> u64 {
        self.skeleton
    }

    /// Returns how many members have been found.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// Says whether a zero block has come where a header could be: there are no members after it.
    pub fn is_past_members(&self) -> bool {
        matches!(self.state, State::Marker | State::Trailer)
    }

    /// Takes bytes that are not payload, up to the next member; says how many.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, Step), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut rest = input;
        let found = loop {
            if rest.is_empty() {
                break Ok(Step::NeedMore);
            }
            match self.advance(&mut rest) {
                Ok(Some(member)) => break Ok(Step::Member(member)),
                Ok(None) => {}
                Err(problem) => break Err(problem),
            }
        };
        found.map(|step| (input.len() - rest.len(), step)).map_err(|problem| self.fail(problem))
    }

    /// Says that there are no more bytes. A tar may end before a header, with or without zero blocks before.
    ///
    /// That all payload came is for the caller to know: to the parser it comes when it is announced, so that
    /// [`Parser::plain`] is past the end of a tar that ends inside its last payload.
    pub fn finish(&mut self) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.state {
            State::Header | State::Marker if self.filled == 0 && !self.is_extended() => Ok(()),
            State::Padding(_) | State::Trailer => Ok(()),
            _ => Err(self.fail(TarProblem::Truncated)),
        }
    }

    /// Says whether an extension waits for its member.
    fn is_extended(&self) -> bool {
        self.local.is_some() || self.long_path.is_some() || self.long_link.is_some()
    }

    fn fail(&mut self, problem: TarProblem) -> TarError {
        let error = TarError { offset: self.header, problem };
        self.failed = Some(error.clone());
        error
    }

    /// Makes one step of state; `rest` is not empty.
    fn advance(&mut self, rest: &mut &[u8]) -> Result<Option<Member>, TarProblem> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => {
                if self.filled == 0 {
                    self.header = self.plain;
                }
                match self.take_block(rest)? {
                    Some(block) => self.header(&block),
                    None => Ok(None),
                }
            }
            State::Extension { kind, left, padding } => {
                let data = self.take(rest, left)?;
                self.extension.extend_from_slice(data);
                self.state = State::Extension { kind, left: left - data.len(), padding };
                if data.len() == left {
                    self.extension(kind, padding)?;
                }
                Ok(None)
            }
            State::OldMap(draft) => match self.take_block(rest)? {
                Some(block) => self.old_map(draft, &block, 0, 21),
                None => {
                    self.state = State::OldMap(draft);
                    Ok(None)
                }
            },
            State::TextMap(draft, map) => match self.take_block(rest)? {
                Some(block) => self.text_map(draft, map, &block),
                None => {
                    self.state = State::TextMap(draft, map);
                    Ok(None)
                }
            },
            State::ExtensionPadding(left) => {
                let left = left - self.take(rest, left)?.len();
                if left > 0 {
                    self.state = State::ExtensionPadding(left);
                }
                Ok(None)
            }
            State::Padding(left) => {
                let left = left - self.take(rest, left)?.len();
                if left > 0 {
                    self.state = State::Padding(left);
                }
                Ok(None)
            }
            State::Marker => {
                self.state = State::Marker;
                match self.take_block(rest)? {
                    Some(block) if block.iter().all(|b| *b == 0) => self.state = State::Trailer,
                    Some(_) => return Err(TarProblem::LoneZeroBlock),
                    None => {}
                }
                Ok(None)
            }
            State::Trailer => {
                self.state = State::Trailer;
                let magic = SUPER_END.saturating_sub(self.plain);
                if magic == 0 {
                    return self.take(rest, usize::MAX).map(|_| None);
                }
                // Nothing but two blocks of zeros was before: a tar of nothing, or what a file system begins with.
                let taken = self.take(rest, usize::try_from(magic).unwrap_or(0))?; // 4 at most
                self.block[self.filled..self.filled + taken.len()].copy_from_slice(taken);
                self.filled += taken.len();
                if self.block[..self.filled] == MAGIC.to_le_bytes() {
                    return Err(TarProblem::FileSystem);
                }
                Ok(None)
            }
        }
    }

    /// Takes at most `n` bytes.
    fn take<'a>(&mut self, rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], TarProblem> {
        let (taken, left) = rest.split_at(n.min(rest.len()));
        *rest = left;
        self.skeleton += taken.len() as u64;
        if self.skeleton > limits::SKELETON {
            return Err(TarProblem::TooLarge { what: "what is not payload", limit: limits::SKELETON });
        }
        self.pass(taken.len() as u64)?;
        Ok(taken)
    }

    /// Goes `n` bytes on in the tar.
    fn pass(&mut self, n: u64) -> Result<(), TarProblem> {
        self.plain = self.plain.saturating_add(n);
        if self.plain > limits::LAYER {
            return Err(TarProblem::TooLarge { what: "the layer", limit: limits::LAYER });
        }
        Ok(())
    }

    /// Takes a whole block, or remembers what there is of it.
    fn take_block(&mut self, rest: &mut &[u8]) -> Result<Option<Block>, TarProblem> {
        let part = self.take(rest, BLOCK - self.filled)?;
        self.block[self.filled..self.filled + part.len()].copy_from_slice(part);
        self.filled += part.len();
        if self.filled < BLOCK {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(self.block))
    }

    fn header(&mut self, block: &Block) -> Result<Option<Member>, TarProblem> {
        if block[0] == 0 && block.iter().all(|b| *b == 0) {
            if self.is_extended() {
                return Err(TarProblem::Truncated);
            }
            self.state = State::Marker;
            return Ok(None);
        }
        let header = Header::parse(block)?;
        match header.kind() {
            kind @ (b'x' | b'g' | b'L' | b'K') => self.begin_extension(kind, header.size()?).map(|()| None),
            _ => self.member(block, &header),
        }
    }

    fn begin_extension(&mut self, kind: u8, size: i64) -> Result<(), TarProblem> {
        let size = u64::try_from(size).map_err(|_| TarProblem::Number("size"))?;
        if size > limits::TAR_EXTENSION {
            return Err(TarProblem::TooLarge { what: "an extended header", limit: limits::TAR_EXTENSION });
        }
        self.extension.clear();
        // At most TAR_EXTENSION, so it fits.
        let left = usize::try_from(size).unwrap_or(0);
        let padding = padding(size);
        self.state = State::Extension { kind, left, padding };
        if left == 0 {
            self.extension(kind, padding)?;
        }
        Ok(())
    }

    /// Applies an extension whose data are complete.
    fn extension(&mut self, kind: u8, padding: usize) -> Result<(), TarProblem> {
        match kind {
            b'g' => self.global.apply_global(&self.extension)?,
            b'x' => {
                let mut records = Box::new(self.global.clone());
                records.apply(&self.extension)?;
                self.local = Some(records);
            }
            b'L' => self.long_path = Some(long_name(&self.extension)?),
            _ => self.long_link = Some(long_name(&self.extension)?),
        }
        self.state = if padding == 0 { State::Header } else { State::ExtensionPadding(padding) };
        Ok(())
    }

    fn member(&mut self, block: &Block, header: &Header<'_>) -> Result<Option<Member>, TarProblem> {
        self.members += 1;
        if self.members > limits::ENTRIES {
            return Err(TarProblem::TooLarge { what: "the number of members", limit: limits::ENTRIES });
        }
        let local = self.local.take();
        let records = local.as_deref().unwrap_or(&self.global);
        // An empty long name is none.
        let [long_path, long_link] =
            [self.long_path.take(), self.long_link.take()].map(|name| name.filter(|name| !name.is_empty()));
        let mut path =
            long_path.or_else(|| records.path.clone()).unwrap_or_else(|| header.path().into_boxed_slice());
        let link = || long_link.or_else(|| records.link.clone()).unwrap_or_else(|| header.link().into());
        let kind = kind(header, &path, link)?;
        let stored = match kind {
            MemberKind::File => length(records.size.map_or_else(|| header.size(), Ok)?, "size")?,
            _ => 0,
        };
        let version = Sparse::of(header, records)?;
        if version.is_some() && kind != MemberKind::File {
            return Err(TarProblem::Sparse("only regular files can have one"));
        }
        if let (Some(Sparse::Listed | Sparse::Text), Some(name)) = (version, &records.sparse.name) {
            path = name.clone();
        }
        let member = Member {
            path,
            kind,
            mode: header.mode()?,
            uid: id(records.uid.map_or_else(|| header.uid(), Ok)?, "uid")?,
            gid: id(records.gid.map_or_else(|| header.gid(), Ok)?, "gid")?,
            mtime: match records.mtime {
                Some(time) => time,
                None => Time { secs: header.mtime()?, nanos: 0 },
            },
            xattrs: Arc::clone(&records.xattrs),
            plain: self.plain,
            payload: stored,
        };
        match version {
            None => self.done(member).map(Some),
            Some(version) => self.sparse(version, block, member, &local),
        }
    }

    /// Announces a member and its payload.
    fn done(&mut self, member: Member) -> Result<Member, TarProblem> {
        self.pass(member.payload)?;
        let padding = padding(member.payload);
        self.state = if padding == 0 { State::Header } else { State::Padding(padding) };
        Ok(member)
    }

    fn sparse(
        &mut self,
        version: Sparse,
        block: &Block,
        member: Member,
        records: &Option<Box<Records>>,
    ) -> Result<Option<Member>, TarProblem> {
        let stored = member.payload;
        let said = records.as_deref().map(|records| &records.sparse);
        let size = match version {
            Sparse::Old => number(&block[483..495]).ok_or(TarProblem::Number("real size"))?,
            Sparse::Listed | Sparse::Text => said
                .and_then(|said| said.size.or(said.real_size))
                .map_or_else(|| i64::try_from(stored).map_err(|_| TarProblem::Number("size")), Ok)?,
        };
        let size = length(size, "the length of a sparse file")?;
        let mut draft = Box::new(Draft { member, size, stored, pieces: Vec::new() });
        match version {
            Sparse::Old => self.old_map(draft, block, 386, 4),
            Sparse::Text => {
                self.state = State::TextMap(draft, TextMap::default());
                Ok(None)
            }
            Sparse::Listed => {
                let numbers = said.and_then(|said| said.map.as_deref()).unwrap_or(&[]);
                let blocks = said.and_then(|said| said.blocks);
                if blocks != i64::try_from(numbers.len() / 2).ok() {
                    return Err(TarProblem::Sparse("GNU.sparse.numblocks is not the number of pieces"));
                }
                draft.pieces = pax::pieces(numbers)?;
                self.sparse_done(*draft)
            }
        }
    }

    fn old_map(
        &mut self,
        mut draft: Box<Draft>,
        block: &Block,
        start: usize,
        room: usize,
    ) -> Result<Option<Member>, TarProblem> {
        sparse::old_pieces(block, start, room, &mut draft.pieces)?;
        let goes_on = block[if room == 4 { 482 } else { 504 }] != 0;
        if goes_on {
            self.state = State::OldMap(draft);
            return Ok(None);
        }
        self.sparse_done(*draft)
    }

    fn text_map(
        &mut self,
        mut draft: Box<Draft>,
        mut map: TextMap,
        block: &Block,
    ) -> Result<Option<Member>, TarProblem> {
        draft.stored = draft
            .stored
            .checked_sub(BLOCK as u64)
            .ok_or(TarProblem::Sparse("it is longer than the member"))?;
        match map.block(block)? {
            None => {
                self.state = State::TextMap(draft, map);
                Ok(None)
            }
            Some(pieces) => {
                draft.pieces = pieces;
                self.sparse_done(*draft)
            }
        }
    }

    fn sparse_done(&mut self, draft: Draft) -> Result<Option<Member>, TarProblem> {
        let Draft { mut member, size, stored, pieces } = draft;
        sparse::check(&pieces, size, stored)?;
        self.pieces += pieces.len() as u64;
        if self.pieces > limits::ENTRIES {
            return Err(TarProblem::TooLarge { what: "the number of sparse pieces", limit: limits::ENTRIES });
        }
        member.kind = MemberKind::Sparse { size, pieces: pieces.into() };
        member.payload = stored;
        member.plain = self.plain;
        self.done(member).map(Some)
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

/// How a member says that it is sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sparse {
    /// In the header block.
    Old,
    /// In the extended header: versions 0.0 and 0.1.
    Listed,
    /// In the data: version 1.0.
    Text,
}

impl Sparse {
    fn of(header: &Header<'_>, records: &Records) -> Result<Option<Self>, TarProblem> {
        if header.kind() == b'S' {
            // Star has a map of another form under the same type.
            return match header.dialect() {
                Dialect::Gnu => Ok(Some(Self::Old)),
                _ => Err(TarProblem::Sparse("it is not in the GNU format")),
            };
        }
        let said = &records.sparse;
        match (said.major.as_deref(), said.minor.as_deref()) {
            (Some(b"1"), Some(b"0")) => Ok(Some(Self::Text)),
            (Some(b"0"), Some(b"0" | b"1")) => Ok(Some(Self::Listed)),
            // Versions 0.0 and 0.1 did not number themselves.
            (None, None) => Ok(said.map.is_some().then_some(Self::Listed)),
            _ => Err(TarProblem::Sparse("its version is unknown")),
        }
    }
}

/// Returns the text of a GNU long name.
fn long_name(data: &[u8]) -> Result<Box<[u8]>, TarProblem> {
    let name = text(data);
    if name.len() > limits::PATH {
        return Err(TarProblem::TooLarge { what: "the length of a path", limit: limits::PATH as u64 });
    }
    Ok(name.into())
}

/// Returns what a header says the member is.
fn kind(
    header: &Header<'_>,
    path: &[u8],
    link: impl FnOnce() -> Box<[u8]>,
) -> Result<MemberKind, TarProblem> {
    Ok(match header.kind() {
        0 if path.ends_with(b"/") => MemberKind::Dir,
        0 | b'0' | b'7' | b'S' => MemberKind::File,
        b'1' => MemberKind::Link(link()),
        b'2' => MemberKind::Symlink(link()),
        b'3' => MemberKind::Char(header.device()?),
        b'4' => MemberKind::Block(header.device()?),
        b'5' => MemberKind::Dir,
        b'6' => MemberKind::Fifo,
        kind => return Err(TarProblem::Type { kind, path: printable(path) }),
    })
}

/// Returns what is missing to a whole block.
fn padding(len: u64) -> usize {
    usize::try_from(len.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

/// Returns a length that no layer exceeds.
fn length(n: i64, what: &'static str) -> Result<u64, TarProblem> {
    match u64::try_from(n) {
        Ok(n) if n <= limits::LAYER => Ok(n),
        Ok(_) => Err(TarProblem::TooLarge { what, limit: limits::LAYER }),
        Err(_) => Err(TarProblem::Number(what)),
    }
}

/// Returns an id as `chown(2)` takes it: negative ones count down from the largest, and -1, which asks for
/// no change, leaves what a created file has.
fn id(n: i64, what: &'static str) -> Result<u32, TarProblem> {
    match i32::try_from(n) {
        Ok(-1) => Ok(0),
        Ok(n) => Ok(n.cast_unsigned()),
        Err(_) if n == i64::from(u32::MAX) => Ok(0),
        Err(_) => u32::try_from(n).map_err(|_| TarProblem::Number(what)),
    }
}
