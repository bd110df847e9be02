//! Bytes from the thread that receives to the one that decodes: bounded, in order, readable.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Pieces on their way. Some tens of KiB each; enough that neither side waits for a hiccup of the other's.
const PIECES: usize = 64;

/// The end that is read.
pub(super) struct Pipe {
    pieces: Receiver<Box<[u8]>>,
    piece: Box<[u8]>,
    at: usize,
}

/// The end that is written; dropping it is the end of the stream.
pub(super) struct PipeEnd(SyncSender<Box<[u8]>>);

impl Pipe {
    /// Returns both ends.
    pub(super) fn new() -> (PipeEnd, Self) {
        let (send, pieces) = sync_channel(PIECES);
        (PipeEnd(send), Self { pieces, piece: Box::default(), at: 0 })
    }
}

impl PipeEnd {
    /// Sends a piece, waiting for room; false once nobody reads any more.
    pub(super) fn send(&self, piece: &[u8]) -> bool {
        self.0.send(piece.into()).is_ok()
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
        let (end, mut pipe) = Pipe::new();
        assert!(end.send(b"ab") && end.send(b"") && end.send(b"cde"));
        drop(end);
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abcde");
        let (end, pipe) = Pipe::new();
        drop(pipe);
        assert!(!end.send(b"x"));
    }
}
