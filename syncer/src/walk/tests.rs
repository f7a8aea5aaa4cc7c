//! Against real directories, with bounds so small that every directory is listed in pieces.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proptest::prelude::*;
use shared::identity::Identity;

use super::*;
use crate::catalog::Change;
use crate::examine::made_row;
use crate::leg::Holds;
use crate::tree::proven::ProvenTree;
use crate::tree::testing::without_rights;

const TERMS: Terms = Terms {
    holds: Holds { all_kinds: true, attributes: true, hard_links: true, writers: false, nanoseconds: true },
    stable_inodes: true,
};

fn p(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

fn tree(top: &Path) -> Arc<dyn Tree> {
    Arc::new(ProvenTree::open(top).unwrap())
}

fn rules(patterns: &[&str]) -> Arc<Rules> {
    Arc::new(Rules::new(&patterns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap())
}

/// Keys and stats, or why not.
fn walked(mut walk: Walk) -> Vec<(Vec<u8>, Result<Stat, Class>)> {
    let mut out = Vec::new();
    while let Some((key, step)) = walk.step() {
        out.push((key.to_vec(), step.copied().map_err(|why| why.0)));
        walk.pass();
    }
    out
}

fn walk(top: &Path, excluded: &[&str], bounds: Bounds) -> Vec<(Vec<u8>, Result<Stat, Class>)> {
    walked(Walk::below(tree(top), rules(excluded), RelPath::root(), bounds))
}

const SMALL: Bounds = Bounds { slice: 3, block: 2, threads: 2 };

/// Names that sort apart from their directories' keys.
const NAMES: [&str; 8] = ["a", "a-", "a.b", "a0", "b", "\u{fc}", "a!", "c"];

#[derive(Debug, Clone)]
enum Node {
    File,
    Dir(BTreeMap<usize, Node>),
}

fn nodes() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![3 => Just(Node::File), 1 => Just(Node::Dir(BTreeMap::new()))];
    leaf.prop_recursive(4, 60, 8, |inner| {
        proptest::collection::btree_map(0..NAMES.len(), inner, 0..8).prop_map(Node::Dir)
    })
}

fn plant(at: &Path, node: &Node) {
    match node {
        Node::File => fs::write(at, "").unwrap(),
        Node::Dir(children) => {
            fs::create_dir_all(at).unwrap();
            children.iter().for_each(|(name, child)| plant(&at.join(NAMES[*name]), child));
        }
    }
}

/// Every key below a directory, found without order.
fn keys(top: &Path, dir: &Path, out: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut key = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
        if path.is_dir() {
            key.push(b'/');
            keys(top, &path, out);
        }
        out.push(key);
    }
}

fn catalog(dir: &Path, tree: &dyn Tree, keys: &[Vec<u8>]) -> (Catalog, CatalogRoot) {
    let mut catalog = Catalog::open(&dir.join("catalog.db")).unwrap();
    let identity = Identity { fs: "x".into(), uuid: None, subvolume: None, inode: 1, btime_ns: None };
    let root = catalog.put_root("r", &RelPath::root(), &identity).unwrap();
    let put = |key: &Vec<u8>| {
        let key = Key(key.clone());
        let crate::tree::Look::Found(stat) = tree.look(&key.path()) else { panic!("{key:?}") };
        Change::Put { root, row: made_row(&stat, Some([1; 20]), "o".into(), None, i64::MAX), key }
    };
    catalog.apply(&keys.iter().map(put).collect::<Vec<_>>(), &[]).unwrap();
    (catalog, root)
}

fn merged(merge: &mut Merge, catalog: &Catalog) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(pair) = merge.next(catalog).unwrap() {
        out.push(match pair {
            Pair::Both(path, ..) => format!("both {path}"),
            Pair::Local(path, _) => format!("local {path}"),
            Pair::Row(key, _) => format!("row {}", key.path()),
            Pair::Unknown(path, ..) => format!("unknown {path}"),
            Pair::Pause => continue,
        });
    }
    out
}

fn merge(top: &Path, excluded: &[&str], root: CatalogRoot, below: &str) -> Merge {
    Merge::below(tree(top), rules(excluded), TERMS, root, &p(below), 2)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_gives_every_path_once_and_in_the_order_of_keys(node in nodes(), slice in 1usize..6, block in 1usize..6, threads in 0usize..3) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        plant(&top, &Node::Dir(BTreeMap::from([(0, node)])));
        let mut expected = Vec::new();
        keys(&top, &top, &mut expected);
        expected.sort();
        let seen: Vec<Vec<u8>> = walk(&top, &[], Bounds { slice, block, threads }).into_iter().map(|(key, _)| key).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn a_merge_gives_exactly_what_differs(node in nodes(), lacking in proptest::collection::vec(any::<bool>(), 200), gone in proptest::collection::vec(any::<bool>(), 200)) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        plant(&top, &Node::Dir(BTreeMap::from([(0, node)])));
        let mut all = Vec::new();
        keys(&top, &top, &mut all);
        all.sort();
        let known: Vec<Vec<u8>> = all.iter().zip(&lacking).filter(|(_, lacking)| !**lacking).map(|(key, _)| key.clone()).collect();
        let (catalog, root) = catalog(dir.path(), &*tree(&top), &known);
        // Files go: what is left of directories shows in their times.
        let mut expected: Vec<String> = Vec::new();
        for (key, gone) in all.iter().zip(&gone) {
            let path = top.join(OsStr::from_bytes(key));
            if *gone && path.is_file() {
                fs::remove_file(path).unwrap();
            }
        }
        for key in &all {
            let (path, is_known) = (Key(key.clone()).path(), known.contains(key));
            match (fs::symlink_metadata(top.join(OsStr::from_bytes(key))), is_known) {
                (Ok(_), false) => expected.push(format!("local {path}")),
                (Err(_), true) => expected.push(format!("row {path}")),
                (Ok(meta), true) if meta.is_dir() => {
                    let row = catalog.get(root, &Key(key.clone())).unwrap().unwrap();
                    let crate::tree::Look::Found(stat) = tree(&top).look(&path) else { panic!() };
                    if row.stat != stat { expected.push(format!("both {path}")); }
                }
                _ => {}
            }
        }
        let mut merge = merge(&top, &[], root, "");
        prop_assert_eq!(merged(&mut merge, &catalog), expected.clone());
        let same = known.len() - expected.iter().filter(|e| !e.starts_with("local")).count();
        prop_assert_eq!(merge.take_same(), same as u64);
    }
}

#[test]
fn a_directory_bigger_than_a_slice_is_read_in_slices() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for n in 0..50 {
        let name = format!("{n:02}");
        if n % 5 == 0 {
            fs::create_dir(dir.path().join(&name)).unwrap();
            fs::write(dir.path().join(&name).join("f"), "").unwrap();
            expected.extend([format!("{name}/").into_bytes(), format!("{name}/f").into_bytes()]);
        } else {
            fs::write(dir.path().join(&name), "").unwrap();
            expected.push(name.into_bytes());
        }
    }
    let seen: Vec<_> = walk(dir.path(), &[], SMALL).into_iter().map(|(key, _)| key).collect();
    assert_eq!(seen, expected);
}

#[test]
fn what_is_excluded_is_neither_entered_nor_given() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("keep/cache/deep")).unwrap();
    fs::write(dir.path().join("keep/x.tmp"), "").unwrap();
    let (catalog, root) = catalog(dir.path(), &*tree(dir.path()), &[b"keep/cache/deep/".to_vec()]);
    let excluded = ["cache/", "*.tmp", "/catalog.db*"];
    let seen: Vec<_> = walk(dir.path(), &excluded, SMALL).into_iter().map(|(key, _)| key).collect();
    assert_eq!(seen, [b"keep/".to_vec()]);
    assert_eq!(merged(&mut merge(dir.path(), &excluded, root, ""), &catalog), ["local keep"]);
}

#[test]
fn nothing_is_said_of_what_lies_below_a_directory_that_cannot_be_listed() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    for name in ["shut", "shut-not"] {
        fs::create_dir_all(top.join(name)).unwrap();
        fs::write(top.join(name).join("f"), "").unwrap();
    }
    let known: Vec<Vec<u8>> = ["shut-not/", "shut-not/f", "shut/", "shut/f"].map(|k| k.into()).to_vec();
    let (catalog, root) = catalog(dir.path(), &*tree(&top), &known);
    fs::set_permissions(top.join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::remove_file(top.join("shut-not/f")).unwrap();
    let mut merge = merge(&top, &[], root, "");
    // The threads that look ahead have the rights of the one that starts them.
    let seen = without_rights(move || merged(&mut merge, &catalog));
    assert_eq!(seen, ["both shut-not", "row shut-not/f", "both shut", "unknown shut"]);
}

#[test]
fn a_merge_below_a_directory_stays_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    for name in ["a/in", "a-b", "ab"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    let (catalog, root) =
        catalog(dir.path(), &*tree(&top), &[b"a-b/".to_vec(), b"a/".to_vec(), b"ab/".to_vec()]);
    assert_eq!(merged(&mut merge(&top, &[], root, "a"), &catalog), ["local a/in"]);
}

#[test]
fn a_walk_that_is_dropped_in_the_midst_leaves_no_directory_open() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..200 {
        fs::create_dir(dir.path().join(format!("{n}"))).unwrap();
    }
    let tree = tree(dir.path());
    let mut walk = Walk::below(tree.clone(), rules(&[]), RelPath::root(), SMALL);
    for _ in 0..20 {
        assert!(walk.step().is_some());
        walk.pass();
    }
    drop(walk);
    assert_eq!(Arc::strong_count(&tree), 1);
}

/// What the list of names in a directory asks to be looked at.
fn asked(top: &Path, root: CatalogRoot, dir: &str, slice: usize, catalog: &Catalog) -> Vec<String> {
    let mut children = Children::of(&*tree(top), rules(&["*.tmp"]), root, &p(dir), slice).unwrap().unwrap();
    let mut out = Vec::new();
    while let Some(path) = children.next(catalog).unwrap() {
        out.push(path.unwrap().to_string());
    }
    out
}

#[test]
fn a_list_of_names_tells_what_is_new_or_gone_or_another_directory_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    for name in ["d/same/deep", "d/other", "d/gone/deep", "d/kind", "d-beside", "d/norow"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    for name in ["d/a", "d/kept", "d/was-file", "d/same/deep/f", "d/gone/deep/f", "d/gone-file", "d/norow/f"]
    {
        fs::write(top.join(name), "").unwrap();
    }
    let mut known = Vec::new();
    keys(&top, &top, &mut known);
    known.retain(|key| key != b"d/norow/");
    let (catalog, root) = catalog(dir.path(), &*tree(&top), &known);
    for slice in [1, 2, 100] {
        assert_eq!(asked(&top, root, "d", slice, &catalog), ["d/norow"]);
    }
    fs::write(top.join("d/kept"), "its own entry speaks of it").unwrap();
    fs::write(top.join("d/same/deep/new"), "").unwrap();
    fs::remove_dir_all(top.join("d/other")).unwrap();
    fs::create_dir(top.join("d/between")).unwrap(); // so that no inode number is used again
    fs::create_dir(top.join("d/other")).unwrap();
    fs::remove_dir_all(top.join("d/gone")).unwrap();
    fs::remove_file(top.join("d/gone-file")).unwrap();
    fs::remove_dir(top.join("d/kind")).unwrap();
    fs::write(top.join("d/kind"), "").unwrap();
    fs::remove_file(top.join("d/was-file")).unwrap();
    fs::create_dir(top.join("d/was-file")).unwrap();
    fs::write(top.join("d/left-out.tmp"), "").unwrap();
    fs::write(top.join("d/zz"), "").unwrap();
    let expected = [
        "d/between",
        "d/gone-file",
        "d/gone",
        "d/kind",
        "d/kind",
        "d/norow",
        "d/other",
        "d/was-file",
        "d/was-file",
        "d/zz",
    ];
    for slice in [1, 2, 3, 100] {
        let asked = asked(&top, root, "d", slice, &catalog);
        assert_eq!(asked, expected, "slices of {slice}");
    }
    assert_eq!(self::asked(&top, root, "", 100, &catalog), [] as [&str; 0]);
}

#[test]
fn a_list_of_names_steps_over_any_number_of_rows_below_its_directories() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    for n in 0..5 {
        fs::create_dir_all(top.join(format!("d{n}"))).unwrap();
        for f in 0..70 {
            fs::write(top.join(format!("d{n}/{f}")), "").unwrap();
        }
    }
    let mut known = Vec::new();
    keys(&top, &top, &mut known);
    let (catalog, root) = catalog(dir.path(), &*tree(&top), &known);
    fs::write(top.join("d2x"), "").unwrap();
    fs::remove_dir_all(top.join("d4")).unwrap();
    assert_eq!(asked(&top, root, "", 2, &catalog), ["d2x", "d4"]);
    assert_eq!(asked(&top, root, "d3", 10, &catalog), [] as [&str; 0]);
}
