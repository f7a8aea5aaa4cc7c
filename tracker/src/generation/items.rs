//! What a search of a btrfs tree returns, as bytes (btrfs on-disk format: all numbers little-endian). Pure, and bounds-
//! checked: nothing that stands there is trusted.

/// Where an item stands in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub objectid: u64,
    pub kind: u8,
    pub offset: u64,
}

pub const INODE_ITEM: u8 = 1;
pub const INODE_REF: u8 = 12;
pub const INODE_EXTREF: u8 = 13;
/// An item with its head: no leaf is bigger.
pub const ITEM_BYTES_MAX: usize = 64 * 1024 + 32;
/// The first and last inode number that a subvolume gives to its files; the first is its top directory.
pub const FIRST_INODE: u64 = 256;
pub const LAST_INODE: u64 = -256i64 as u64;

impl Key {
    /// The next key in order; `None` after the last.
    pub fn next(self) -> Option<Key> {
        if let Some(offset) = self.offset.checked_add(1) {
            return Some(Key { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_add(1) {
            return Some(Key { kind, offset: 0, ..self });
        }
        Some(Key { objectid: self.objectid.checked_add(1)?, kind: 0, offset: 0 })
    }
}

/// One item; its content lies in the buffer of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    pub key: Key,
    pub data: &'a [u8],
}

/// What a search answered does not look as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the filesystem answered with items that cannot be read")]
pub struct Damaged;

/// The items of one search, in order.
pub struct Items<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Items<'a> {
    pub fn new(count: u32, bytes: &'a [u8]) -> Items<'a> {
        Items { rest: bytes, left: count }
    }

    /// Bytes behind what was read.
    pub fn room(&self) -> usize {
        self.rest.len()
    }

    /// `struct btrfs_ioctl_search_header`: transid, objectid, offset, type, length.
    fn read(&mut self) -> Option<Item<'a>> {
        let mut head = Bytes(self.rest);
        let _leaf_written_in = head.u64()?;
        let (objectid, offset) = (head.u64()?, head.u64()?);
        let (kind, len) = (head.u32()?, head.u32()?);
        let data = head.take(len as usize)?;
        self.rest = head.0;
        Some(Item { key: Key { objectid, kind: u8::try_from(kind).ok()?, offset }, data })
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let item = self.read();
        if item.is_none() {
            self.left = 0;
        }
        Some(item.ok_or(Damaged))
    }
}

/// The part of `struct btrfs_inode_item` that tells a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// The transaction that last touched it.
    pub transid: u64,
    pub nlink: u32,
    pub is_dir: bool,
}

pub fn inode(data: &[u8]) -> Result<Inode, Damaged> {
    let mut bytes = Bytes(data);
    let read = |bytes: &mut Bytes<'_>| {
        bytes.take(8)?; // generation: when it was made
        let transid = bytes.u64()?;
        bytes.take(24)?; // size, bytes, block group
        let nlink = bytes.u32()?;
        bytes.take(8)?; // uid, gid
        Some(Inode { transid, nlink, is_dir: bytes.u32()? & 0o170000 == 0o040000 })
    };
    read(&mut bytes).ok_or(Damaged)
}

/// A name of an inode, in its parent directory.
pub type Name = (u64, Vec<u8>);

/// The names that one item gives; none for items of other kinds.
pub fn names(item: &Item<'_>) -> Result<Vec<Name>, Damaged> {
    let mut bytes = Bytes(item.data);
    let mut out = Vec::new();
    while !bytes.0.is_empty() {
        let read = |bytes: &mut Bytes<'_>| {
            let parent = if item.key.kind == INODE_EXTREF { bytes.u64()? } else { item.key.offset };
            let _index = bytes.u64()?;
            let len = bytes.u16()?;
            Some((parent, bytes.take(len.into())?.to_vec()))
        };
        match item.key.kind {
            INODE_REF | INODE_EXTREF => out.push(read(&mut bytes).ok_or(Damaged)?),
            _ => break,
        }
    }
    Ok(out)
}

/// Numbers at the front of a slice.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(objectid: u64, kind: u8, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = 7u64.to_le_bytes().to_vec();
        bytes.extend(objectid.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(u32::from(kind).to_le_bytes());
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn name(parent: Option<u64>, name: &[u8]) -> Vec<u8> {
        let mut bytes = parent.map(|p| p.to_le_bytes().to_vec()).unwrap_or_default();
        bytes.extend(9u64.to_le_bytes());
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes
    }

    fn inode_bytes(transid: u64, nlink: u32, mode: u32) -> Vec<u8> {
        let mut bytes = vec![0; 160];
        bytes[8..16].copy_from_slice(&transid.to_le_bytes());
        bytes[40..44].copy_from_slice(&nlink.to_le_bytes());
        bytes[52..56].copy_from_slice(&mode.to_le_bytes());
        bytes
    }

    #[test]
    fn items_are_read_one_after_the_other_and_no_further_than_they_are_said_to_go() {
        let bytes =
            [item(256, INODE_ITEM, 0, b"xyz"), item(257, INODE_REF, 256, b""), vec![0xff; 40]].concat();
        let items: Vec<_> = Items::new(2, &bytes).map(Result::unwrap).collect();
        assert_eq!(items[0].key, Key { objectid: 256, kind: INODE_ITEM, offset: 0 });
        assert_eq!(items[0].data, b"xyz");
        assert_eq!((items[1].key.objectid, items[1].data.len(), items.len()), (257, 0, 2));
    }

    #[test]
    fn an_item_that_is_cut_short_is_damage_and_ends_the_reading() {
        let bytes = item(256, INODE_ITEM, 0, b"xyz");
        for len in 0..bytes.len() {
            let items: Vec<_> = Items::new(3, &bytes[..len]).collect();
            assert_eq!(items, [Err(Damaged)], "{len}");
        }
        let mut strange = bytes.clone();
        strange[25] = 1; // a type beyond one byte
        assert_eq!(Items::new(1, &strange).next(), Some(Err(Damaged)));
    }

    #[test]
    fn an_inode_tells_its_transaction_its_names_and_whether_it_is_a_directory() {
        let dir = inode(&inode_bytes(77, 1, 0o040755)).unwrap();
        assert_eq!(dir, Inode { transid: 77, nlink: 1, is_dir: true });
        assert!(!inode(&inode_bytes(77, 3, 0o100644)).unwrap().is_dir);
        assert_eq!(inode(&[0; 55]), Err(Damaged));
    }

    #[test]
    fn the_names_of_an_inode_are_in_two_kinds_of_items() {
        let several = [name(None, b"a"), name(None, b"b\xff")].concat();
        let at = |kind, offset| Key { objectid: 300, kind, offset };
        let short = Item { key: at(INODE_REF, 256), data: &several };
        assert_eq!(names(&short).unwrap(), [(256, b"a".to_vec()), (256, b"b\xff".to_vec())]);
        let far = name(Some(270), b"far");
        let long = Item { key: at(INODE_EXTREF, 0xabcdef), data: &far };
        assert_eq!(names(&long).unwrap(), [(270, b"far".to_vec())]);
        let other = Item { key: at(84, 1), data: &several };
        assert_eq!(names(&other).unwrap(), []);
        let cut = Item { key: at(INODE_REF, 256), data: &several[..several.len() - 1] };
        assert_eq!(names(&cut), Err(Damaged));
    }

    #[test]
    fn keys_follow_each_other_to_the_last() {
        let key = |objectid, kind, offset| Key { objectid, kind, offset };
        assert_eq!(key(1, 2, 3).next(), Some(key(1, 2, 4)));
        assert_eq!(key(1, 2, u64::MAX).next(), Some(key(1, 3, 0)));
        assert_eq!(key(1, u8::MAX, u64::MAX).next(), Some(key(2, 0, 0)));
        assert_eq!(key(u64::MAX, u8::MAX, u64::MAX).next(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reading(count in 0u32..50, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for item in Items::new(count, &bytes).map_while(Result::ok) {
                let _ = (inode(item.data), names(&item));
            }
        }
    }
}
