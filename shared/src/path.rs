//! Paths as the kernel has them: bytes, relative to a root or to a leg's top, never assumed to be UTF-8.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A relative path: components joined by `/`; empty for the root itself. Holds no NUL, no empty component,
/// no `.` and no `..`, so joining it below a directory stays below that directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RelPath(Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    #[error("The path {0:?} is absolute where a relative one is needed")]
    Absolute(RelPath),
    #[error("The path {} has an empty component, `.` or `..`", escape(.0))]
    BadComponent(Vec<u8>),
    #[error("The path {} contains a NUL byte", escape(.0))]
    Nul(Vec<u8>),
}

impl RelPath {
    /// The root itself.
    pub const fn root() -> Self {
        RelPath(Vec::new())
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul(bytes.to_vec()));
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute(RelPath(bytes.to_vec())));
        }
        if bytes.split(|&b| b == b'/').any(|c| c.is_empty() || c == b"." || c == b"..") {
            return Err(PathError::BadComponent(bytes.to_vec()));
        }
        Ok(RelPath(bytes.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// `None` for the root.
    pub fn parent(&self) -> Option<RelPath> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        Some(RelPath(self.0[..cut].to_vec()))
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// This path with one more component, which must be one (a name read from a directory or an event).
    pub fn child(&self, name: &[u8]) -> Result<RelPath, PathError> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(PathError::BadComponent(name.to_vec()));
        }
        if name.contains(&0) {
            return Err(PathError::Nul(name.to_vec()));
        }
        Ok(self.join(&RelPath(name.to_vec())))
    }

    pub fn join(&self, below: &RelPath) -> RelPath {
        if self.is_root() {
            return below.clone();
        }
        if below.is_root() {
            return self.clone();
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + below.0.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(&below.0);
        RelPath(bytes)
    }

    /// True for the path itself and everything below it.
    pub fn is_within(&self, ancestor: &RelPath) -> bool {
        self.strip(ancestor).is_some()
    }

    /// The rest of this path below `ancestor` (the root when they are equal); `None` when it lies elsewhere.
    pub fn strip(&self, ancestor: &RelPath) -> Option<RelPath> {
        if ancestor.is_root() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(ancestor.0.as_slice())?;
        match rest.first() {
            None => Some(Self::root()),
            Some(b'/') => Some(RelPath(rest[1..].to_vec())),
            Some(_) => None,
        }
    }

    /// The key of a directory in sorted tables: with a trailing `/`, so that byte order is walk order
    /// (`a-b` before `a/` before `a/x`). The root's key is empty and sorts first.
    pub fn dir_key(&self) -> Vec<u8> {
        let mut key = self.0.clone();
        if !key.is_empty() {
            key.push(b'/');
        }
        key
    }

    /// The first key after everything within this directory.
    pub fn dir_key_end(&self) -> Option<Vec<u8>> {
        let mut key = self.dir_key();
        let last = key.last_mut()?;
        *last += 1; // '/' + 1 = '0'
        Some(key)
    }
}

/// Bytes for people: printable UTF-8 as it is, everything else as `\xNN`, `\n`, `\t`; a backslash is doubled,
/// so that two different names never look the same.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => {
                    c.to_string().bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}")))
                }
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { f.write_str(&escape(&self.0)) }
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Bytes in JSON: `path` if they are valid UTF-8, else `path_b64`, never both.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonPath {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
}

/// Meant for `#[serde(flatten)]`: adds the field `path` or `path_b64` to its object.
impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let json = match std::str::from_utf8(&self.0) {
            Ok(text) => JsonPath { path: Some(text.to_owned()), path_b64: None },
            Err(_) => JsonPath {
                path: None,
                path_b64: Some(base64::engine::general_purpose::STANDARD.encode(&self.0)),
            },
        };
        json.serialize(s)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let bytes = match JsonPath::deserialize(d)? {
            JsonPath { path: Some(text), path_b64: None } => text.into_bytes(),
            JsonPath { path: None, path_b64: Some(b64) } => {
                base64::engine::general_purpose::STANDARD.decode(b64).map_err(D::Error::custom)?
            }
            _ => return Err(D::Error::custom("need exactly one of `path` and `path_b64`")),
        };
        RelPath::parse(&bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn p(s: &str) -> RelPath {
        RelPath::parse(s.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_that_could_leave_its_root_is_refused() {
        for bad in ["/etc", "..", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            assert!(RelPath::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a\0"] {
            assert!(RelPath::root().child(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_only_shares_a_prefix_is_not_below() {
        assert!(p("a/b").is_within(&p("a")));
        assert!(!p("ab").is_within(&p("a")));
        assert_eq!(p("a/b/c").strip(&p("a")), Some(p("b/c")));
        assert_eq!(p("a").strip(&p("a")), Some(RelPath::root()));
    }

    #[test]
    fn parents_end_at_the_root() {
        assert_eq!(p("a/b").parent(), Some(p("a")));
        assert_eq!(p("a").parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
    }

    #[test]
    fn byte_order_of_keys_is_walk_order() {
        let mut keys = vec![p("a").dir_key(), b"a/x".to_vec(), b"a-b".to_vec(), b"a0".to_vec()];
        keys.sort();
        assert_eq!(keys, [b"a-b".to_vec(), b"a/".to_vec(), b"a/x".to_vec(), b"a0".to_vec()]);
        assert_eq!(p("a").dir_key_end().unwrap(), b"a0");
    }

    #[test]
    fn names_that_differ_never_look_the_same() {
        assert_eq!(escape(b"a\nb"), "a\\nb");
        assert_eq!(escape(b"a\\nb"), "a\\\\nb");
        assert_eq!(escape(b"a\xff"), "a\\xff");
    }

    proptest! {
        #[test]
        fn any_path_survives_json(bytes in proptest::collection::vec(1u8..=255, 0..40)) {
            if let Ok(path) = RelPath::parse(&bytes) {
                let json = serde_json::to_string(&path).unwrap();
                prop_assert_eq!(serde_json::from_str::<RelPath>(&json).unwrap(), path);
            }
        }
    }
}
