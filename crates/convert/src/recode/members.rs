//! The tar that is read: told apart, hashed, and without what another eStargz writer has put into it.
//!
//! # What is taken out
//!
//! In the root of a layer the file `stargz.index.json` is a table, and `.prefetch.landmark` and
//! `.no.prefetch.landmark` are marks if their content is the one byte 0xf. They were put there by whoever made an eStargz
//! of a layer (`importTar` and `appendTar` of stargz-snapshotter skip them likewise). Such a member goes with its
//! extensions, payload and padding, so what is left is the tar that writer was given, if it did not change it. Some put
//! the table behind the end of the tar: see [`super::tail`].
//!
//! # Where padding is missing
//!
//! A tar may end inside the padding of its last payload. Our table then comes after whole padding, and it is the
//! table's own padding that lacks those bytes: see [`super::estargz`]. So when a table that lies at the end lacks
//! some, the padding before it is cut by as many. It is held back until it is known what follows.

use format::tar::{Member, MemberKind, Parser, Step};
use format::{DiffId, DigestHasher, stargz};

use super::RecodeError;
use super::names::clean;
use super::tail::{self, Tail};

/// Most bytes of headers before one payload, in memory at once: a map of a million pieces as text takes 40 MB, and
/// each of the three extensions at most 1 MiB.
const HEAD: usize = 64 << 20;

/// Block of a tar.
pub(super) const BLOCK: usize = 512;

/// What comes next in the tar.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// All blocks of a member's headers.
    Head(&'a [u8], &'a Member),
    /// Some of its payload.
    Payload(&'a [u8]),
    /// All of its padding that there is.
    Padding(&'a [u8]),
    /// Some of what follows the members.
    Tail(&'a [u8]),
    /// Nothing so far, and the members up to [`Event::Rest`] come first because they are read first.
    Ahead,
    /// All other members follow.
    Rest,
}

impl<'a> Event<'a> {
    /// Returns the bytes of the tar that it is about.
    pub(super) fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Head(bytes, _) | Self::Payload(bytes) | Self::Padding(bytes) | Self::Tail(bytes) => bytes,
            Self::Ahead | Self::Rest => &[],
        }
    }
}

/// Who wants the tar.
pub(super) trait Receiver {
    /// Takes what comes next.
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError>;
}

/// What a tar turned out to be.
pub(super) struct Ended {
    /// The tar that was read.
    pub(super) read: DiffId,
    /// The tar without what was taken out.
    pub(super) left: DiffId,
    /// How many bytes the latter's last padding lacks.
    pub(super) missing: usize,
}

/// Tells a tar apart.
pub(super) struct Members {
    parser: Parser,
    sums: Sums,
    /// Blocks of headers of which the member is not known yet, or waits for its first byte.
    head: Vec<u8>,
    /// Payload that is to come, and padding after it.
    payload: u64,
    padding: usize,
    /// Padding that waits for what follows, and how many bytes it lacks.
    held: Vec<u8>,
    missing: usize,
    fate: Fate,
    tail: Tail,
}

/// What becomes of the current member.
#[derive(Debug)]
enum Fate {
    Kept,
    TakenOut,
    /// Its first byte decides.
    Open(Box<Member>),
}

/// The digests of what is read and of what is kept: one and the same until something is taken out.
struct Sums {
    kept: DigestHasher,
    read: Option<DigestHasher>,
}

impl Members {
    pub(super) fn new() -> Self {
        Self {
            parser: Parser::new(),
            sums: Sums { kept: DigestHasher::new(), read: None },
            head: Vec::new(),
            payload: 0,
            padding: 0,
            held: Vec::new(),
            missing: 0,
            fate: Fate::Kept,
            tail: Tail::new(),
        }
    }

    /// Takes the next bytes of the tar.
    pub(super) fn push(&mut self, mut bytes: &[u8], to: &mut impl Receiver) -> Result<(), RecodeError> {
        while !bytes.is_empty() {
            let taken = if self.payload > 0 {
                let n = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload(&bytes[..n], to)?;
                n
            } else if self.padding > 0 {
                let n = self.padding.min(bytes.len());
                self.padding(&bytes[..n])?;
                n
            } else if self.parser.is_past_members() {
                self.parser.step(bytes)?;
                self.tail(to, |tail, each| tail.push(bytes, each))?;
                bytes.len()
            } else {
                let n = (BLOCK - self.head.len() % BLOCK).min(bytes.len());
                self.block(&bytes[..n], to)?;
                n
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Says that the tar ends here; returns what it was.
    pub(super) fn finish(mut self, to: &mut impl Receiver) -> Result<Ended, RecodeError> {
        self.parser.finish()?;
        if self.payload > 0 {
            return Err(RecodeError::TarEnds);
        }
        if matches!(self.fate, Fate::TakenOut) && self.padding > 0 {
            let cut = self.padding.min(self.held.len());
            self.held.truncate(self.held.len() - cut);
            self.missing += cut;
        } else {
            self.missing = self.padding;
        }
        self.release(to)?;
        self.tail(to, |tail, each| tail.finish(each))?;
        let (read, left) = self.sums.finish();
        Ok(Ended { read, left, missing: self.missing })
    }

    /// Does something with the tail, and with what it says of bytes.
    fn tail(
        &mut self,
        to: &mut impl Receiver,
        work: impl FnOnce(&mut Tail, tail::Each<'_>) -> Result<(), RecodeError>,
    ) -> Result<(), RecodeError> {
        let mut tail = std::mem::replace(&mut self.tail, Tail::new());
        let result = work(&mut tail, &mut |bytes, fate| match fate {
            // An event would say that there is a tail.
            _ if bytes.is_empty() => Ok(()),
            tail::Fate::Kept => {
                self.sums.read(bytes);
                self.emit(Event::Tail(bytes), to)
            }
            tail::Fate::TakenOut => {
                self.sums.part(&[]);
                self.sums.read(bytes);
                Ok(())
            }
        });
        self.tail = tail;
        result
    }

    fn payload(&mut self, bytes: &[u8], to: &mut impl Receiver) -> Result<(), RecodeError> {
        self.payload -= bytes.len() as u64;
        match std::mem::replace(&mut self.fate, Fate::Kept) {
            Fate::Open(member) if bytes != stargz::LANDMARK => self.keep(&member, to)?,
            Fate::Open(_) => self.take_out(),
            fate => self.fate = fate,
        }
        self.sums.read(bytes);
        match self.fate {
            Fate::TakenOut => Ok(()),
            _ => self.emit(Event::Payload(bytes), to),
        }
    }

    fn padding(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.parser.step(bytes)?;
        self.sums.read(bytes);
        self.padding -= bytes.len();
        if matches!(self.fate, Fate::Kept) {
            self.held.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Takes at most the rest of a block of headers.
    fn block(&mut self, bytes: &[u8], to: &mut impl Receiver) -> Result<(), RecodeError> {
        let (_, step) = self.parser.step(bytes)?;
        if self.head.len() >= HEAD {
            return Err(RecodeError::Limit { what: "the headers of a member", limit: HEAD as u64 });
        }
        self.sums.read(bytes);
        self.head.extend_from_slice(bytes);
        if let Step::Member(member) = step {
            self.payload = member.payload;
            self.padding = usize::try_from(member.payload.wrapping_neg() % BLOCK as u64).unwrap_or(0);
            return match suspect(&member, &self.head) {
                Suspect::Nothing => self.keep(&member, to),
                Suspect::Table => {
                    self.take_out();
                    Ok(())
                }
                Suspect::Landmark => {
                    self.fate = Fate::Open(Box::new(member));
                    Ok(())
                }
            };
        }
        if self.parser.is_past_members() {
            let head = std::mem::take(&mut self.head);
            self.release(to)?;
            self.emit(Event::Tail(&head), to)?;
        }
        Ok(())
    }

    fn keep(&mut self, member: &Member, to: &mut impl Receiver) -> Result<(), RecodeError> {
        self.release(to)?;
        self.fate = Fate::Kept;
        let mut head = std::mem::take(&mut self.head);
        self.emit(Event::Head(&head, member), to)?;
        head.clear();
        self.head = head;
        Ok(())
    }

    fn take_out(&mut self) {
        self.sums.part(&[&self.held, &self.head]);
        self.fate = Fate::TakenOut;
        self.head.clear();
    }

    /// Hands on the padding that was held back.
    fn release(&mut self, to: &mut impl Receiver) -> Result<(), RecodeError> {
        let mut held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.emit(Event::Padding(&held), to)?;
            held.clear();
            self.held = held;
        }
        Ok(())
    }

    fn emit(&mut self, event: Event<'_>, to: &mut impl Receiver) -> Result<(), RecodeError> {
        self.sums.kept.update(event.bytes());
        to.event(event)
    }
}

impl Sums {
    /// Takes bytes that were read.
    fn read(&mut self, bytes: &[u8]) {
        if let Some(read) = &mut self.read {
            read.update(bytes);
        }
    }

    /// Says that from here on not all is kept; `pending` was read, and not kept so far.
    fn part(&mut self, pending: &[&[u8]]) {
        if self.read.is_none() {
            let mut read = self.kept.clone();
            pending.iter().for_each(|bytes| read.update(bytes));
            self.read = Some(read);
        }
    }

    fn finish(self) -> (DiffId, DiffId) {
        let left = DiffId::new(self.kept.finish());
        (self.read.map_or(left, |read| DiffId::new(read.finish())), left)
    }
}

/// What a member may be by its headers.
enum Suspect {
    Nothing,
    Table,
    Landmark,
}

fn suspect(member: &Member, head: &[u8]) -> Suspect {
    if member.kind != MemberKind::File || holds_global(head) {
        return Suspect::Nothing;
    }
    match clean(&member.path).as_slice() {
        name if name == stargz::TOC_NAME.as_bytes() => Suspect::Table,
        name if member.payload == stargz::LANDMARK.len() as u64
            && (name == stargz::PREFETCH.as_bytes() || name == stargz::NO_PREFETCH.as_bytes()) =>
        {
            Suspect::Landmark
        }
        _ => Suspect::Nothing,
    }
}

/// Says whether a global extended header may be among these blocks: it speaks of more than this member.
pub(super) fn holds_global(head: &[u8]) -> bool {
    head.as_chunks::<BLOCK>().0.iter().any(|block| block[156] == b'g')
}
