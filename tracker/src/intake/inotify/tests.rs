//! The source on directories of this machine; no right is needed for it.

use super::*;
use crate::resolve::doubts::Turn;
use crate::roots::tests::root;

fn placed(roots: &[TrackedRoot]) -> Inotify {
    Inotify::place(roots, &[]).unwrap().0
}

/// (root, path) of all that was seen until now.
fn seen(source: &mut Inotify) -> Vec<(i64, String)> {
    while source.read().unwrap().is_some() {}
    let mut batch = Batch::default();
    source.translate(&mut batch, 0, 0);
    let changes = batch.into_commit("fs", Turn::default()).changes;
    changes.into_iter().map(|c| (c.root.0, c.path.to_string())).collect()
}

#[test]
fn what_an_outer_root_leaves_out_is_watched_for_the_inner_one_whichever_is_named_first() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir_all(inner.join("node_modules/x")).unwrap();
    let mut roots = [root(1, dir.path(), &["node_modules/"]), root(2, &inner, &[])];
    for _ in 0..2 {
        let mut source = placed(&roots);
        std::fs::write(inner.join("node_modules/x/f"), "x").unwrap();
        assert_eq!(seen(&mut source), [(2, "node_modules/x/f".to_owned())], "first: {}", roots[0].name);
        roots.reverse();
    }
}

#[test]
fn a_root_left_out_of_the_outer_one_is_watched_with_all_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir_all(inner.join("sub")).unwrap();
    let mut source = placed(&[root(1, dir.path(), &["inner/"]), root(2, &inner, &[])]);
    std::fs::write(inner.join("sub/f"), "x").unwrap();
    assert_eq!(seen(&mut source), [(2, "sub/f".to_owned())]);
}

#[test]
fn after_a_directory_came_while_its_root_could_not_be_looked_at_the_watches_are_placed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("root"), dir.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    let mut tracked = root(1, &path, &[]);
    tracked.check_at_start(&Linux::default()).unwrap();
    let mut source = placed(&[tracked]);
    assert!(source.check().intact);
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(away.join("new")).unwrap();
    assert_eq!(seen(&mut source), [(1, "new".to_owned())]);
    std::fs::rename(&away, &path).unwrap();
    assert!(!source.check().intact, "nothing watches `new`");
}
