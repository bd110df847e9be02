//! Sizes as people write and read them.

use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// Units, as IEC and SI write them.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// No size here is larger, 1 EiB: sums of several cannot overflow.
const MOST: u64 = 1 << 60;

/// Bytes, at most 2^60: a number, or a text of a whole number and a unit, as `"50 GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// Returns the bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    fn new(bytes: u64) -> Result<Self, String> {
        if bytes <= MOST { Ok(Self(bytes)) } else { Err("a size is at most 1 EiB".to_owned()) }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; one is written as 5000000 or \"50 GiB\"");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let (digits, unit) = match &text[digits.len()..] {
            "" => (digits, 1),
            unit => {
                let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
                (digits.strip_suffix(' ').unwrap_or(digits), *unit)
            }
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        Self::new(number.saturating_mul(unit))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes or a text as \"50 GiB\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                let bytes = u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))?;
                Size::new(bytes).map_err(E::custom)
            }
        }
        from.deserialize_any(Either)
    }
}

/// Returns a number of bytes for people: decimal and short.
pub fn shown(n: u64) -> String {
    let mut value = (n, 0);
    let mut rest = 0;
    while value.0 >= 1000 {
        rest = value.0 % 1000;
        value = (value.0 / 1000, value.1 + 1);
    }
    let unit = ["B", "kB", "MB", "GB", "TB", "PB", "EB"][value.1];
    if value.1 == 0 { format!("{n} B") } else { format!("{}.{} {unit}", value.0, rest / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_units() {
        for (text, bytes) in [
            ("0", 0),
            ("7", 7),
            ("7 B", 7),
            ("3kB", 3000),
            ("50 GiB", 50 << 30),
            ("50GB", 50_000_000_000),
            ("2 TiB", 2 << 40),
            ("1048576 TiB", 1 << 60),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in [
            "",
            "GiB",
            "1.5 GiB",
            "-1",
            "+1",
            "5  GiB",
            " 5",
            "5 ",
            "5 gib",
            "5 K",
            "1048577 TiB",
            "99999999 TB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_shown_decimal_and_short() {
        let table =
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_999_999, "1.9 MB"), (u64::MAX, "18.4 EB")];
        for (n, text) in table {
            assert_eq!(shown(n), text);
        }
    }
}
