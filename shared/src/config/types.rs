//! Values of the configuration that check themselves, so that the parser can point at them.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

/// The name of a root or a leg: `[a-z0-9][a-z0-9_-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(String);

impl Name {
    pub fn parse(text: &str) -> Result<Name, String> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ok = matches!(text.as_bytes(), [first, rest @ ..]
            if plain(*first) && rest.len() < 32 && rest.iter().all(|&b| plain(b) || b == b'_' || b == b'-'));
        if ok {
            Ok(Name(text.to_owned()))
        } else {
            Err(format!(
                "`{text}` is not a name: 1 to 32 of a-z, 0-9, `_` and `-`, beginning with a letter or digit"
            ))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Name::parse(&String::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// An absolute path without `..`.
#[derive(Debug, Clone)]
pub(super) struct AbsolutePath(pub PathBuf);

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let path = Path::new(&text);
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(D::Error::custom(format!("`{text}` must be an absolute path without `..`")));
        }
        Ok(AbsolutePath(path.components().collect()))
    }
}

/// A number of bytes: an integer, or text such as `10GiB`, `500 MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl ByteSize {
    pub fn parse(text: &str) -> Result<ByteSize, String> {
        let trimmed = text.trim();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
            .unwrap_or((trimmed, 1));
        number.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(ByteSize).ok_or_else(|| {
            format!("`{text}` is not a size: write a whole number of bytes, or one with KiB, MiB, GiB, TiB, KB, MB, GB, TB")
        })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or text such as \"10GiB\"")
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<ByteSize, E> {
                u64::try_from(n).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text).map_err(E::custom)
            }
        }
        d.deserialize_any(Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        assert_eq!(ByteSize::parse("10GiB"), Ok(ByteSize(10 << 30)));
        assert_eq!(ByteSize::parse("5 MB"), Ok(ByteSize(5_000_000)));
        assert_eq!(ByteSize::parse("17"), Ok(ByteSize(17)));
        assert!(ByteSize::parse("99999999999TiB").is_err());
        assert!(ByteSize::parse("").is_err());
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "0", "space", "b2-leg_1", &"x".repeat(32)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a b", "ä", &"x".repeat(33)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
