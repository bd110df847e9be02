//! Bytes from the thread that receives to the one that decodes: in order, readable.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Pieces on their way. Some tens of KiB each; enough that neither side waits for a hiccup of the other's.
const PIECES: usize = 64;

/// The end that is read.
pub(super) struct Pipe {
    pieces: Receiver<Box<[u8]>>,
    piece: Box<[u8]>,
    at: usize,
}

/// The end that is written; dropping it is the end of the stream.
pub(super) enum PipeEnd {
    Narrow(SyncSender<Box<[u8]>>),
    Wide(Sender<Box<[u8]>>),
}

impl Pipe {
    /// Returns both ends of one that holds some pieces: who sends more waits.
    pub(super) fn narrow() -> (PipeEnd, Self) {
        let (send, pieces) = sync_channel(PIECES);
        (PipeEnd::Narrow(send), Self::from(pieces))
    }

    /// Returns both ends of one that holds all that is sent, which its users have bounded: nobody waits.
    pub(super) fn wide() -> (PipeEnd, Self) {
        let (send, pieces) = channel();
        (PipeEnd::Wide(send), Self::from(pieces))
    }

    fn from(pieces: Receiver<Box<[u8]>>) -> Self {
        Self { pieces, piece: Box::default(), at: 0 }
    }
}

impl PipeEnd {
    /// Sends a piece, waiting for room where there may be none; false once nobody reads any more.
    pub(super) fn send(&self, piece: &[u8]) -> bool {
        match self {
            Self::Narrow(pieces) => pieces.send(piece.into()).is_ok(),
            Self::Wide(pieces) => pieces.send(piece.into()).is_ok(),
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_and_end_with_the_writer() {
        for make in [Pipe::narrow, Pipe::wide] {
            let (end, mut pipe) = make();
            assert!(end.send(b"ab") && end.send(b"") && end.send(b"cde"));
            drop(end);
            let mut all = Vec::new();
            pipe.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"abcde");
            let (end, pipe) = make();
            drop(pipe);
            assert!(!end.send(b"x"));
        }
    }

    #[test]
    fn a_wide_pipe_holds_what_nobody_reads_yet() {
        let (end, mut pipe) = Pipe::wide();
        assert!((0..4 * PIECES).all(|_| end.send(b"piece")));
        drop(end);
        assert_eq!(io::copy(&mut pipe, &mut io::sink()).unwrap(), 20 * PIECES as u64);
    }
}
