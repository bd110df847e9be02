//! A FlatBuffer, read by hand: tables, strings and vectors, every place compared with the end of the bytes.
//!
//! ```text
//! buffer   u32: distance to the root table
//! table    i32: distance back to its vtable · fields
//! vtable   u16: its length · u16: length of the table · u16 per field: where in the table, 0 if it is not there
//! string   u32: length · bytes · 0
//! vector   u32: number of elements · elements; of strings and tables u32: distance to each
//! ```
//!
//! Distances but that to a vtable go forwards, so nothing can contain itself. One string can be named many times, and so a
//! small buffer be very long to read; who writes these tables writes each string once. So all that is read
//! together is no longer than the buffer.

use std::cell::Cell;

use super::SociError;

/// A whole buffer.
pub(super) struct Flat<'a> {
    raw: &'a [u8],
    /// How many bytes of strings, vectors and tables may still be read.
    left: Cell<usize>,
}

/// A table in it.
#[derive(Clone, Copy)]
pub(super) struct Table<'a, 'f> {
    flat: &'f Flat<'a>,
    at: usize,
    /// The places of its fields.
    places: &'a [[u8; 2]],
}

/// A vector of strings or tables.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a, 'f> {
    flat: &'f Flat<'a>,
    at: usize,
    distances: &'a [[u8; 4]],
}

impl<'a> Flat<'a> {
    pub(super) fn new(raw: &'a [u8]) -> Self {
        Self { raw, left: Cell::new(raw.len()) }
    }

    pub(super) fn root(&self) -> Result<Table<'a, '_>, SociError> {
        self.table(self.follow(0)?)
    }

    fn table(&self, at: usize) -> Result<Table<'a, '_>, SociError> {
        let wrong = || SociError::Damaged("a table in it is out of place");
        let back = i64::from(i32::from_le_bytes(self.fixed(at)?));
        let start =
            i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok()).ok_or_else(wrong)?;
        let len = usize::from(u16::from_le_bytes(self.fixed(start)?));
        let raw = start.checked_add(len).and_then(|end| self.raw.get(start..end)).ok_or_else(wrong)?;
        self.spend(4)?;
        Ok(Table { flat: self, at, places: raw.get(4..).ok_or_else(wrong)?.as_chunks().0 })
    }

    /// Returns the bytes of a string, or of a vector of bytes.
    fn bytes(&self, at: usize) -> Result<&'a [u8], SociError> {
        self.elements(at, 1)
    }

    fn vector(&self, at: usize) -> Result<Vector<'a, '_>, SociError> {
        Ok(Vector { flat: self, at: at + 4, distances: self.elements(at, 4)?.as_chunks().0 })
    }

    /// Returns what follows a number of elements.
    fn elements(&self, at: usize, size: usize) -> Result<&'a [u8], SociError> {
        let len = u32::from_le_bytes(self.fixed(at)?) as usize;
        let found = len.checked_mul(size).and_then(|len| self.raw[at + 4..].get(..len));
        let found = found.ok_or(SociError::Damaged("something in it is longer than the whole"))?;
        self.spend(found.len())?;
        Ok(found)
    }

    /// Returns where the distance at a place leads.
    fn follow(&self, at: usize) -> Result<usize, SociError> {
        let distance = u32::from_le_bytes(self.fixed(at)?) as usize;
        at.checked_add(distance).ok_or(SociError::Damaged("a distance in it is out of range"))
    }

    fn fixed<const N: usize>(&self, at: usize) -> Result<[u8; N], SociError> {
        let found = self.raw.get(at..).and_then(|rest| rest.first_chunk());
        found.copied().ok_or(SociError::Damaged("something in it is behind its end"))
    }

    fn spend(&self, bytes: usize) -> Result<(), SociError> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or(SociError::Damaged("it names the same bytes again and again"))?);
        Ok(())
    }
}

impl<'a, 'f> Table<'a, 'f> {
    /// Returns where a field is, if it is there.
    fn place(&self, field: usize) -> Option<usize> {
        let place = u16::from_le_bytes(*self.places.get(field)?);
        (place != 0).then(|| self.at + usize::from(place))
    }

    /// Returns a number as its bytes, if it is there.
    pub(super) fn number<const N: usize>(&self, field: usize) -> Result<Option<[u8; N]>, SociError> {
        self.place(field).map(|at| self.flat.fixed(at)).transpose()
    }

    /// Returns a number of 64 bits that is not below zero; 0 if it is not there.
    pub(super) fn long(&self, field: usize) -> Result<u64, SociError> {
        let number = i64::from_le_bytes(self.number(field)?.unwrap_or_default());
        u64::try_from(number).map_err(|_| SociError::Damaged("a number in it is below zero"))
    }

    /// Returns the bytes of a string, or of a vector of bytes; none if it is not there.
    pub(super) fn bytes(&self, field: usize) -> Result<&'a [u8], SociError> {
        match self.place(field) {
            Some(at) => self.flat.bytes(self.flat.follow(at)?),
            None => Ok(&[]),
        }
    }

    /// Returns a table that must be there.
    pub(super) fn table(&self, field: usize) -> Result<Table<'a, 'f>, SociError> {
        let at = self.place(field).ok_or(SociError::Damaged("a table in it is missing"))?;
        self.flat.table(self.flat.follow(at)?)
    }

    /// Returns a vector; one without elements if it is not there.
    pub(super) fn vector(&self, field: usize) -> Result<Vector<'a, 'f>, SociError> {
        match self.place(field) {
            Some(at) => self.flat.vector(self.flat.follow(at)?),
            None => Ok(Vector { flat: self.flat, at: 0, distances: &[] }),
        }
    }
}

impl<'a, 'f> Vector<'a, 'f> {
    pub(super) fn len(&self) -> usize {
        self.distances.len()
    }

    /// Returns its tables.
    pub(super) fn tables(self) -> impl Iterator<Item = Result<Table<'a, 'f>, SociError>> {
        self.places().map(move |at| self.flat.table(at?))
    }

    /// Returns its strings.
    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a [u8], SociError>> {
        self.places().map(move |at| self.flat.bytes(at?))
    }

    fn places(self) -> impl Iterator<Item = Result<usize, SociError>> {
        (self.at..).step_by(4).take(self.len()).map(move |at| self.flat.follow(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with a vector of strings, all of them the same one.
    fn repeated(count: u32, len: u32) -> Vec<u8> {
        let mut raw = vec![10, 0, 0, 0]; // to the table
        raw.extend([6, 0, 8, 0, 4, 0]); // its vtable
        raw.extend(6_i32.to_le_bytes()); // back to that
        raw.extend(4_u32.to_le_bytes()); // to the vector
        raw.extend(count.to_le_bytes());
        (0..count).for_each(|n| raw.extend((4 * (count - n)).to_le_bytes()));
        raw.extend(len.to_le_bytes());
        raw.resize(raw.len() + len as usize, b'x');
        raw
    }

    fn read(raw: &[u8]) -> Result<usize, SociError> {
        Flat::new(raw).root()?.vector(0)?.strings().map(|string| string.map(<[u8]>::len)).sum()
    }

    #[test]
    fn what_is_named_again_and_again_ends() {
        assert_eq!(read(&repeated(1, 1000)).unwrap(), 1000);
        let error = read(&repeated(100, 1000)).unwrap_err().to_string();
        assert!(error.contains("again and again"), "{error}");
    }

    #[test]
    fn every_place_is_compared_with_the_end() {
        let raw = repeated(3, 5);
        for len in 0..raw.len() {
            assert!(read(&raw[..len]).is_err(), "{len}");
        }
        for at in 0..raw.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut raw = raw.clone();
                raw[at] = byte;
                let _ = read(&raw); // an error, or another string
            }
        }
    }
}
