//! Where a mirror differs from its source, path by path, in what its kind of leg can hold.

use std::collections::{BTreeMap, BTreeSet};

use shared::path::RelPath;
use syncer::leg::Holds;
use syncer::tree::Kind;

/// What stands at a path, on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: Kind,
    pub size: u64,
    /// Hash of the content, or of a link's target.
    pub content: u128,
    pub mtime_ns: i64,
    pub mode: u32,
    pub owner: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of one file have one number.
    pub inode: u64,
}

pub type Items = BTreeMap<RelPath, Item>;

/// How a path differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: String,
    /// The names of one file, on one side or the other, of which any look would show it.
    pub names: BTreeSet<RelPath>,
}

impl Difference {
    fn new(what: impl Into<String>) -> Difference {
        Difference { what: what.into(), names: BTreeSet::new() }
    }
}

/// Every path at which the two differ.
pub fn differences(source: &Items, mirror: &Items, holds: Holds) -> BTreeMap<RelPath, Difference> {
    let mut found = BTreeMap::new();
    let held = |item: &&Item| holds.holds(item.kind);
    let paths: BTreeSet<&RelPath> = source.keys().chain(mirror.keys()).collect();
    for path in paths {
        let (own, far) = (source.get(path).filter(held), mirror.get(path).filter(held));
        let what = match (own, far) {
            (Some(_), None) => Some("it is not at the destination".to_owned()),
            (None, Some(_)) => Some("it is gone at the source".to_owned()),
            (Some(own), Some(far)) => of_items(own, far, holds),
            (None, None) => None,
        };
        found.extend(what.map(|what| (path.clone(), Difference::new(what))));
    }
    if holds.hard_links {
        add_broken_links(source, mirror, &mut found);
    }
    found
}

fn of_items(own: &Item, far: &Item, holds: Holds) -> Option<String> {
    let mtime = |ns: i64| if holds.nanoseconds { ns } else { ns.div_euclid(1_000_000) };
    let is_content = matches!(own.kind, Kind::File | Kind::Symlink);
    if own.kind != far.kind {
        Some(format!("it is a {}, at the destination a {}", own.kind, far.kind))
    } else if is_content && (own.size, own.content) != (far.size, far.content) {
        Some(format!("its content: {} bytes, at the destination {} bytes", own.size, far.size))
    } else if mtime(own.mtime_ns) != mtime(far.mtime_ns) {
        Some(format!("its time: {}, at the destination {}", own.mtime_ns, far.mtime_ns))
    } else if !holds.attributes {
        None
    } else if own.kind != Kind::Symlink && own.mode != far.mode {
        Some(format!("its mode: {:o}, at the destination {:o}", own.mode, far.mode))
    } else if own.owner != far.owner {
        Some(format!("its owner: {:?}, at the destination {:?}", own.owner, far.owner))
    } else if own.xattrs != far.xattrs {
        Some("its extended attributes".to_owned())
    } else {
        None
    }
}

/// Names of one regular file at the source must be names of one file at the destination, and no others. Other kinds are
/// mirrored name by name.
fn add_broken_links(source: &Items, mirror: &Items, found: &mut BTreeMap<RelPath, Difference>) {
    let groups = |items: &Items| {
        let mut groups: BTreeMap<u64, BTreeSet<RelPath>> = BTreeMap::new();
        for (path, item) in items.iter().filter(|(_, item)| item.kind == Kind::File) {
            groups.entry(item.inode).or_default().insert(path.clone());
        }
        let of_each = groups.into_values().filter(|names| names.len() > 1);
        of_each.flat_map(|names| names.clone().into_iter().map(move |n| (n, names.clone()))).collect()
    };
    let (own, far): (BTreeMap<_, BTreeSet<_>>, BTreeMap<_, BTreeSet<_>>) = (groups(source), groups(mirror));
    for path in source.keys().filter(|path| mirror.contains_key(*path)) {
        if own.get(path) != far.get(path) {
            let list = |names: Option<&BTreeSet<RelPath>>| {
                names.into_iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            let (here, there) = (list(own.get(path)), list(far.get(path)));
            let what = format!("its names: one file as [{here}], at the destination as [{there}]");
            let names = [own.get(path), far.get(path)].into_iter().flatten().flatten().cloned().collect();
            found.entry(path.clone()).or_insert(Difference { what, names });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Holds =
        Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true };
    const B2: Holds =
        Holds { all_kinds: false, attributes: false, hard_links: false, writers: true, nanoseconds: false };

    fn item(content: u128, mtime_ns: i64, inode: u64) -> Item {
        let (kind, mode) = (Kind::File, 0o644);
        Item { kind, size: 3, content, mtime_ns, mode, owner: (0, 0), xattrs: Vec::new(), inode }
    }

    fn items(list: &[(&str, Item)]) -> Items {
        list.iter().map(|(path, item)| (RelPath::parse(path.as_bytes()).unwrap(), item.clone())).collect()
    }

    fn found(source: &[(&str, Item)], mirror: &[(&str, Item)], holds: Holds) -> Vec<String> {
        differences(&items(source), &items(mirror), holds).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_on_one_side_only_and_what_is_not_the_same_is_found() {
        let source = [("a", item(1, 0, 1)), ("b", item(2, 0, 2)), ("same", item(3, 0, 3))];
        let mirror = [("b", item(9, 0, 2)), ("c", item(4, 0, 4)), ("same", item(3, 0, 7))];
        assert_eq!(found(&source, &mirror, DIR), ["a", "b", "c"]);
    }

    #[test]
    fn what_the_leg_cannot_hold_is_no_difference() {
        let link = Item { kind: Kind::Symlink, ..item(1, 0, 1) };
        let mode = Item { mode: 0o600, mtime_ns: 5, ..item(2, 0, 2) };
        let (source, mirror) = ([("l", link), ("m", mode)], [("m", item(2, 0, 2))]);
        assert_eq!(found(&source, &mirror, B2), [""; 0]);
        assert_eq!(found(&source, &mirror, DIR), ["l", "m"]);
    }

    #[test]
    fn names_that_are_one_file_on_one_side_only_are_found() {
        let source = [("a", item(1, 0, 1)), ("b", item(1, 0, 1))];
        let mirror = [("a", item(1, 0, 1)), ("b", item(1, 0, 2))];
        assert_eq!(found(&source, &mirror, DIR), ["a", "b"]);
        assert_eq!(found(&source, &mirror, B2), [""; 0]);
        assert_eq!(found(&source, &source, DIR), [""; 0]);
    }
}
