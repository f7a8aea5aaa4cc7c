//! Object names: paths as rclone's backend for B2 encodes them from a Linux disk, and back.
//!
//! B2 takes UTF-8 without control characters. rclone maps what does not fit (its encoding
//! `Slash,Ctl,Del,Dot,BackSlash,InvalidUtf8`) to pictures and quotes pictures that were there before with `‛`:
//!
//! | on disk | at B2 |
//! | --- | --- |
//! | `\xff`, a byte that is not UTF-8 | `‛FF` |
//! | `\x01` to `\x1f`, DEL, `\` | `␁` to `␟`, `␡`, `＼` |
//! | `␁` to `␟`, `␡`, `＼` | the same after a `‛` |
//! | `␀`, `／`, alone `．` and `．．` | as they are, with or without a `‛` before them |
//! | `‛‛` | as it is |
//! | any other `‛` | `‛E2‛80‛9B` |
//!
//! The fourth and fifth line follow from rclone's local backend, which takes a quoting apart when it reads a name and
//! puts it back when it writes one. For the last line there is no name that rclone would write back to disk as it was
//! (it doubles the quote), and its own choice would give two paths one name.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use shared::path::RelPath;

/// By Backblaze's page on file names.
pub const NAME_BYTES_MAX: usize = 1024;
/// Below the leg's top, for what is not the mirror itself.
pub(super) const RESERVED: &str = ".longshore";

const QUOTE: char = '‛';
const ENCODED_QUOTE: &str = "‛E2‛80‛9B";
const PICTURES: char = '\u{2400}';
const PICTURE_DEL: char = '␡';
const WIDE_BACKSLASH: char = '＼';
/// What the local backend of rclone takes for a quoted or pictured component.
const DOTS: [&str; 4] = ["．", "．．", "‛．", "‛．‛．"];

/// The names of one leg's objects.
#[derive(Debug)]
pub struct Names {
    /// Where the leg's top lies in the bucket: empty, or encoded with a `/` at its end.
    top: String,
}

/// An object's name in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    pub text: String,
    /// Not under its own path: B2 cannot hold that name, or it is reserved.
    pub apart: bool,
}

/// What an object's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Path(RelPath),
    /// One of ours, but not the mirror itself.
    Reserved,
    /// Stands apart, or no path of ours is stored under it.
    Unknown,
}

impl Names {
    pub fn new(prefix: &RelPath) -> Self {
        let mut top = encode(prefix);
        if !top.is_empty() {
            top.push('/');
        }
        Names { top }
    }

    pub fn top(&self) -> &str {
        &self.top
    }

    pub fn object(&self, dest: &RelPath) -> ObjectName {
        let text = format!("{}{}", self.top, encode(dest));
        let reserved = dest.components().next() == Some(RESERVED.as_bytes());
        if !reserved && text.len() <= NAME_BYTES_MAX {
            return ObjectName { text, apart: false };
        }
        let digest = hex(&Sha256::digest(dest.as_bytes()));
        ObjectName { text: format!("{}{RESERVED}/names/{digest}", self.top), apart: true }
    }

    pub fn meaning(&self, name: &str) -> Meaning {
        let Some(below) = name.strip_prefix(&self.top) else { return Meaning::Unknown };
        match below.strip_prefix(RESERVED) {
            Some("") => Meaning::Unknown,
            Some(rest) if rest.starts_with("/names/") => Meaning::Unknown,
            Some(rest) if rest.starts_with('/') => Meaning::Reserved,
            _ => decode(below).map_or(Meaning::Unknown, Meaning::Path),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// "/" stays, by Backblaze's page on string encoding; "+" does not, because B2 reads it as a space.
pub(super) fn percent_encode(text: &str) -> String {
    const KEPT: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-').remove(b'~');
    utf8_percent_encode(text, KEPT).to_string()
}

fn encode(path: &RelPath) -> String {
    let mut out = String::with_capacity(path.as_bytes().len() + 8);
    for component in path.components() {
        if !out.is_empty() {
            out.push('/');
        }
        encode_component(component, &mut out);
    }
    out
}

fn encode_component(component: &[u8], out: &mut String) {
    if let Some(dots) = DOTS.iter().find(|dots| dots.as_bytes() == component) {
        return out.push_str(dots);
    }
    for chunk in component.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                QUOTE => match chars.next_if(|&next| is_quotable_on_disk(next)) {
                    Some(next) => out.extend([QUOTE, next]),
                    None => out.push_str(ENCODED_QUOTE),
                },
                '\u{1}'..='\u{1f}' => out.push(picture(c)),
                '\u{7f}' => out.push(PICTURE_DEL),
                '\\' => out.push(WIDE_BACKSLASH),
                c if pictured(c).is_some() => out.extend([QUOTE, c]),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("{QUOTE}{byte:02X}"));
        }
    }
}

/// The path that is stored under this name; `None` if that is another name or none.
fn decode(name: &str) -> Option<RelPath> {
    let components: Vec<Cow<'_, [u8]>> = name.split('/').map(decode_component).collect();
    let path = RelPath::parse(&components.join(&b'/')).ok()?;
    (!path.is_root() && encode(&path) == name).then_some(path)
}

fn decode_component(component: &str) -> Cow<'_, [u8]> {
    let plain = |c: char| c != QUOTE && pictured(c).is_none();
    if DOTS.contains(&component) || component.chars().all(plain) {
        return component.as_bytes().into();
    }
    let mut out = Vec::with_capacity(component.len());
    let mut rest = component;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != QUOTE {
            push(&mut out, pictured(c).unwrap_or(c));
        } else if let Some(byte) = rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            out.push(byte);
            rest = &rest[2..];
        } else if let Some(next) = rest.chars().next() {
            if pictured(next).is_none() {
                push(&mut out, QUOTE);
            }
            push(&mut out, next);
            rest = &rest[next.len_utf8()..];
        }
    }
    out.into()
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_quotable_on_disk(c: char) -> bool {
    matches!(c, QUOTE | '␀' | '／')
}

fn picture(control: char) -> char {
    char::from_u32(PICTURES as u32 + control as u32)
        .expect("the block of pictures has one for each control character")
}

/// What the picture stands for.
fn pictured(c: char) -> Option<char> {
    match c {
        '␁'..='␟' => char::from_u32(c as u32 - PICTURES as u32),
        PICTURE_DEL => Some('\u{7f}'),
        WIDE_BACKSLASH => Some('\\'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::parse(bytes).unwrap()
    }

    #[test]
    fn what_b2_cannot_hold_becomes_a_picture_and_pictures_are_quoted() {
        let table: [(&[u8], &str); 14] = [
            (b"plain/with space/#%+?*.txt", "plain/with space/#%+?*.txt"),
            (b"bad\xff\xfe", "bad‛FF‛FE"),
            (b"cut\xe2\x80", "cut‛E2‛80"),
            (b"surrogate\xed\xa0\x80", "surrogate‛ED‛A0‛80"),
            (b"back\\slash", "back＼slash"),
            (b"new\nline\ttab\x7f", "new␊line␉tab␡"),
            ("␊＼␡".as_bytes(), "‛␊‛＼‛␡"),
            ("␀／".as_bytes(), "␀／"),
            ("．/．．/‛．/‛．‛．/．x".as_bytes(), "．/．．/‛．/‛．‛．/．x"),
            ("‛‛x".as_bytes(), "‛‛x"),
            ("‛x‛".as_bytes(), "‛E2‛80‛9Bx‛E2‛80‛9B"),
            ("‛FF".as_bytes(), "‛E2‛80‛9BFF"),
            ("\u{fffd}".as_bytes(), "\u{fffd}"),
            (b" lead and trail . ", " lead and trail . "),
        ];
        for (bytes, name) in table {
            assert_eq!(encode(&path(bytes)), name);
            assert_eq!(decode(name), Some(path(bytes)), "{name}");
        }
    }

    #[test]
    fn a_name_that_no_path_is_stored_under_means_no_path() {
        for name in ["", "a//b", "/a", "a/", "a/../b", "back\\slash", "‛x", "‛41", "‛ff", "a‛", "‛E2‛80‛9B．"]
        {
            assert_eq!(decode(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_b2_cannot_hold_stand_apart() {
        let names = Names::new(&path(b"mirror/a\\b"));
        assert_eq!(names.top(), "mirror/a＼b/");
        let fits = path("x".repeat(NAME_BYTES_MAX - names.top().len()).as_bytes());
        assert!(!names.object(&fits).apart);
        let long = path(&[fits.as_bytes(), b"x"].concat());
        let name = names.object(&long);
        assert!(name.apart);
        let digest = hex(&Sha256::digest(long.as_bytes()));
        assert_eq!(name.text, format!("mirror/a＼b/.longshore/names/{digest}"));
        assert_eq!(names.meaning(&name.text), Meaning::Unknown);
        assert!(names.object(&path(&[0xff; 255])).apart, "1,275 bytes when encoded");
    }

    #[test]
    fn the_reserved_directory_of_the_tree_stands_apart_and_ours_is_no_path() {
        let names = Names::new(&RelPath::root());
        for reserved in [".longshore", ".longshore/head"] {
            assert!(names.object(&path(reserved.as_bytes())).apart, "{reserved}");
        }
        for free in [".longshore2", "a/.longshore/head"] {
            assert_eq!(names.object(&path(free.as_bytes())), ObjectName { text: free.into(), apart: false });
            assert_eq!(names.meaning(free), Meaning::Path(path(free.as_bytes())));
        }
        assert_eq!(names.meaning(".longshore/head"), Meaning::Reserved);
        for apart in [".longshore", ".longshore/names/00"] {
            assert_eq!(names.meaning(apart), Meaning::Unknown);
        }
        assert_eq!(Names::new(&path(b"m")).meaning("other/a"), Meaning::Unknown);
    }

    #[test]
    fn percent_encoding_leaves_nothing_that_a_header_or_b2_could_misread() {
        assert_eq!(percent_encode("a/b c+d%e\\f#ü\""), "a/b%20c%2Bd%25e%5Cf%23%C3%BC%22");
    }

    /// Names of all that has a meaning in the encoding.
    fn odd_name() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            Just("‛".as_bytes().to_vec()),
            Just("␀".as_bytes().to_vec()),
            Just("／".as_bytes().to_vec()),
            Just("．".as_bytes().to_vec()),
            Just("␊".as_bytes().to_vec()),
            Just("＼".as_bytes().to_vec()),
            Just(b"FF".to_vec()),
            Just(vec![0xe2, 0x80]),
            Just(vec![0x9b]),
            (1u8..=255).prop_map(|byte| vec![byte]),
        ];
        proptest::collection::vec(pieces, 1..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_path_survives_the_round_trip_in_a_name_that_b2_accepts(bytes in odd_name()) {
            if let Ok(path) = RelPath::parse(&bytes) {
                let name = encode(&path);
                prop_assert!(name.chars().all(|c| c >= ' ' && c != '\u{7f}' && c != '\\'), "{}", name);
                prop_assert_eq!(decode(&name), Some(path));
            }
        }

        #[test]
        fn no_name_has_two_paths(name in "[‛␀／．␊＼FFE290Ba/]{1,12}") {
            if let Some(path) = decode(&name) {
                prop_assert_eq!(encode(&path), name);
            }
        }
    }
}
