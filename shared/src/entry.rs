//! The words of a journal row: scope, cause, mask, and the file handle that may stand for a name.

use bitflags::bitflags;

bitflags! {
    /// What is known of how a path changed; the union of all events that were merged, without order.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Mask: u32 {
        const CREATE      = 1 << 0;
        const DELETE      = 1 << 1;
        const MODIFY      = 1 << 2;
        const CLOSE_WRITE = 1 << 3;
        const ATTRIB      = 1 << 4;
        const RENAME      = 1 << 5;
        const ONDIR       = 1 << 6;
        /// Nobody saw the events: a gap, a subtree, a request or an old deferral. Anything may have changed.
        const UNKNOWN     = 1 << 7;
    }
}

impl Mask {
    /// True if the content may have changed in a way that an equal stat does not exclude.
    pub fn may_have_new_content(self) -> bool {
        self.intersects(Mask::MODIFY | Mask::CLOSE_WRITE | Mask::UNKNOWN)
    }
}

/// A fieldless enum that is stored as an integer in SQLite and printed in lower case with hyphens.
#[macro_export]
macro_rules! stored_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $num:literal => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant = $num,)* }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
            pub fn from_i64(n: i64) -> Option<Self> {
                match n { $($num => Some($name::$variant),)* _ => None }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.as_str()) }
        }
        impl rusqlite::types::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> { Ok((*self as i64).into()) }
        }
        impl rusqlite::types::FromSql for $name {
            fn column_result(v: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                let n = v.as_i64()?;
                $name::from_i64(n).ok_or(rusqlite::types::FromSqlError::OutOfRange(n))
            }
        }
    };
}
pub use stored_enum;

stored_enum! {
    /// How much an entry or a deferred row speaks of.
    Scope {
        /// This path.
        SelfOnly = 0 => "self",
        /// This path and all below it.
        Subtree = 1 => "subtree",
        /// A file handle without a usable name.
        Handle = 2 => "handle",
        /// Of a deferred row only: catalog, tree and the destination's listing are compared.
        Full = 3 => "full",
        /// This path, and the list of names in it: some may be new or gone. What stands at the others is not meant.
        Names = 4 => "names",
    }
}

stored_enum! {
    /// Why an entry exists. All but `Event`, `External` and `Generation` are gaps: the events were not seen or not kept.
    Cause {
        Event = 0 => "event",
        /// `tracker add`.
        External = 1 => "external",
        Start = 2 => "start",
        Boot = 3 => "boot",
        Overflow = 4 => "overflow",
        Remount = 5 => "remount",
        Rules = 6 => "rules",
        Collapse = 7 => "collapse",
        Unresolved = 8 => "unresolved",
        Damaged = 9 => "damaged",
        Poison = 10 => "poison",
        DiskFull = 11 => "disk-full",
        Adoption = 12 => "adoption",
        Identity = 13 => "identity",
        Request = 14 => "request",
        /// Found in the filesystem's own record of what changed, in the place of a gap.
        Generation = 15 => "generation",
    }
}

impl Cause {
    pub fn is_gap(self) -> bool {
        !matches!(self, Cause::Event | Cause::External | Cause::Generation)
    }
}

/// A kernel file handle (name_to_handle_at(2)): type and bytes. With the filesystem it names one inode in one
/// generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    pub kind: i32,
    pub bytes: Vec<u8>,
}

impl Handle {
    /// As stored: the type in little-endian order, then the bytes.
    pub fn to_blob(&self) -> Vec<u8> {
        let mut blob = self.kind.to_le_bytes().to_vec();
        blob.extend_from_slice(&self.bytes);
        blob
    }

    /// `None` for a blob that cannot be a handle (too short).
    pub fn from_blob(blob: &[u8]) -> Option<Handle> {
        let (kind, bytes) = blob.split_first_chunk::<4>()?;
        Some(Handle { kind: i32::from_le_bytes(*kind), bytes: bytes.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_survives_its_blob() {
        let handle = Handle { kind: 0x81, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        assert_eq!(Handle::from_blob(&handle.to_blob()), Some(handle));
        assert_eq!(Handle::from_blob(&[1, 2]), None);
    }

    #[test]
    fn only_events_additions_and_what_stands_for_a_gap_are_no_gaps() {
        let gaps = (0..).map_while(Cause::from_i64).filter(|c| c.is_gap()).count();
        assert_eq!(gaps, 13);
    }
}
