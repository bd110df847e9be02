//! The few messages of the FUSE protocol that we read and write beside fuser (Linux, `uapi/linux/fuse.h`).
//!
//! All numbers are in the machine's order. A request of the kernel begins with a header of 40 bytes:
//! `len u32, opcode u32, unique u64, node u64, uid u32, gid u32, pid u32, padding u32`. What is written to the
//! kernel begins with one of 16: `len u32, error i32, unique u64`; where `unique` is 0 it is a notification, and
//! `error` is its code.

/// Header of a request.
const HEADER: usize = 40;

const FORGET: u32 = 2;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

const NOTIFY_RESEND: i32 = 7;

/// The flag by which a kernel says that it knows `NOTIFY_RESEND` (Linux 6.9).
pub(super) const HAS_RESEND: u64 = 1 << 39;

/// The flag that says that there is a second word of flags.
const INIT_EXT: u64 = 1 << 30;

/// The node of a [`forget`] that is ours: the kernel's numbers begin with 1.
pub(super) const NO_NODE: u64 = 0;

/// What the kernel offers when a mount begins: `major u32, minor u32, max_readahead u32, flags u32, flags2 u32`, and
/// 44 bytes of zeros after the header of `FUSE_INIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u64,
}

/// Returns the offer in a request for `FUSE_INIT` and the request's number, or nothing if it is none.
pub(super) fn read_init(request: &[u8]) -> Option<(Offer, u64)> {
    let word = |at: usize| Some(u32::from_ne_bytes(request.get(at..at + 4)?.try_into().ok()?));
    if word(4)? != INIT {
        return None;
    }
    let unique = u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?);
    let first = u64::from(word(HEADER + 12)?);
    // Kernels before 5.17 send no second word.
    let second = if first & INIT_EXT == 0 { 0 } else { u64::from(word(HEADER + 16)?) };
    let (major, minor, max_readahead) = (word(HEADER)?, word(HEADER + 4)?, word(HEADER + 8)?);
    Some((Offer { major, minor, max_readahead, flags: first | second << 32 }, unique))
}

/// Returns the request by which the kernel makes an offer.
pub(super) fn init(offer: &Offer, unique: u64) -> Vec<u8> {
    let [low, high] = [offer.flags & u64::from(u32::MAX), offer.flags >> 32];
    let words = [offer.major.into(), offer.minor.into(), offer.max_readahead.into(), low, high];
    // Each fits: three were words, two are halves.
    let mut body: Vec<u8> =
        words.iter().flat_map(|word: &u64| u32::try_from(*word).unwrap_or_default().to_ne_bytes()).collect();
    body.extend([0; 44]);
    request(INIT, unique, 1, &body)
}

/// Returns a request that has no answer and, with [`NO_NODE`], no meaning to the kernel.
pub(super) fn forget() -> Vec<u8> {
    request(FORGET, 2, NO_NODE, &0_u64.to_ne_bytes())
}

/// Returns the request that ends a thread of fuser's.
pub(super) fn destroy() -> Vec<u8> {
    request(DESTROY, 2, 0, &[])
}

/// Returns the notification upon which the kernel queues again what was read and not answered.
pub(super) fn resend() -> Vec<u8> {
    [&16_u32.to_ne_bytes()[..], &NOTIFY_RESEND.to_ne_bytes(), &[0; 8]].concat()
}

/// Returns the answer that ends a request with `EIO`, or nothing if it takes no answer.
pub(super) fn refusal(request: &[u8]) -> Option<Vec<u8>> {
    let opcode = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    let unique = request.get(8..16)?;
    if [FORGET, INTERRUPT, BATCH_FORGET].contains(&opcode) {
        return None;
    }
    let error = -rustix::io::Errno::IO.raw_os_error();
    Some([&16_u32.to_ne_bytes()[..], &error.to_ne_bytes(), unique].concat())
}

fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap_or_default(); // a hundred bytes or so
    let mut bytes = [len.to_ne_bytes(), opcode.to_ne_bytes()].concat();
    bytes.extend([unique, node, 0, 0].map(u64::to_ne_bytes).concat());
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_read_as_it_was_written() {
        let flags = INIT_EXT | HAS_RESEND | 0x8000_0001;
        let offer = Offer { major: 7, minor: 45, max_readahead: 131_072, flags };
        let bytes = init(&offer, 0xdead_beef_0bad_f00d);
        assert_eq!(bytes.len(), 104);
        assert_eq!(read_init(&bytes), Some((offer, 0xdead_beef_0bad_f00d)));
        // A second word counts only where it is announced.
        let short = Offer { flags: 1 | HAS_RESEND, ..offer };
        assert_eq!(read_init(&init(&short, 2)), Some((Offer { flags: 1, ..offer }, 2)));
        assert_eq!(read_init(&bytes[..59]), None);
        assert_eq!(read_init(&forget()), None);
    }

    #[test]
    fn what_is_refused_gets_eio_by_its_number_and_what_takes_no_answer_none() {
        let read = request(15, 7, 1, &[0; 40]);
        let answer = refusal(&read).unwrap();
        assert_eq!(
            answer,
            [16_u32.to_ne_bytes(), (-5_i32).to_ne_bytes(), 7_u32.to_ne_bytes(), [0; 4]].concat()
        );
        assert_eq!((refusal(&forget()), refusal(&read[..15])), (None, None));
    }

    #[test]
    fn lengths_are_those_of_the_kernels_structures() {
        for (message, len) in [(forget(), 48), (destroy(), 40), (resend(), 16)] {
            assert_eq!(message.len(), len);
            assert_eq!(message[..4], u32::try_from(len).unwrap().to_ne_bytes());
        }
    }
}
