//! The cache of directories: what it knows, what moves, and what it forgets when it is full.

use super::*;

fn h(n: u8) -> Handle {
    Handle { kind: 1, bytes: vec![n] }
}

fn spot(root: usize, path: &str) -> Spot {
    Spot { root, path: RelPath::parse(path.as_bytes()).unwrap() }
}

fn within(spots: &[Spot]) -> Option<Arc<Place>> {
    Some(Arc::new(Place::In(spots.to_vec())))
}

/// top(0) / space(1, root 0) / a(2) / b(3)
fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1))], own: vec![h(9)] });
    assert!(tree.put(&h(1), &h(0), b"space"));
    assert!(tree.put(&h(2), &h(1), b"a"));
    assert!(tree.put(&h(3), &h(2), b"b"));
    tree
}

#[test]
fn a_directory_is_named_from_its_root() {
    assert_eq!(tree().locate((&h(3)).into()), within(&[spot(0, "a/b")]));
    assert_eq!(tree().locate((&h(1)).into()), within(&[spot(0, "")]));
    assert_eq!(tree().locate((&h(0)).into()), within(&[]), "above the root");
    assert_eq!(tree().locate((&h(7)).into()), None);
}

#[test]
fn renaming_a_directory_renames_all_below_it() {
    let mut tree = tree();
    tree.put(&h(2), &h(1), b"z");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
    tree.put(&h(2), &h(0), b"outside");
    assert_eq!(tree.locate((&h(3)).into()), within(&[]));
}

#[test]
fn nested_roots_both_see_a_directory() {
    let mut tree = Tree::default();
    tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1)), Some(h(2)), Some(h(2))], own: vec![] });
    tree.put(&h(1), &h(0), b"space");
    tree.put(&h(2), &h(1), b"a");
    tree.put(&h(3), &h(2), b"b");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(1, "b"), spot(2, "b"), spot(0, "a/b")]));
}

#[test]
fn our_own_directories_are_never_reported() {
    let mut tree = tree();
    tree.put(&h(9), &h(2), b"state");
    tree.put(&h(10), &h(9), b"deep");
    assert_eq!(tree.locate((&h(10)).into()), Some(Arc::new(Place::Own)));
}

#[test]
fn a_move_to_an_unknown_place_makes_all_below_unknown_until_it_is_learned() {
    let mut tree = tree();
    assert!(!tree.put(&h(2), &h(77), b"x"));
    assert_eq!(tree.locate((&h(3)).into()), None);
    tree.put(&h(2), &h(1), b"back");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "back/b")]));
}

#[test]
fn a_directory_that_moved_is_unknown_with_all_below_it_and_one_answer_brings_all_back() {
    let mut tree = tree();
    tree.detach((&h(2)).into());
    assert_eq!((tree.locate((&h(2)).into()), tree.locate((&h(3)).into())), (None, None));
    assert!(!tree.knows((&h(3)).into()));
    assert!(tree.put(&h(2), &h(1), b"z"));
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
    tree.detach((&h(0)).into());
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]), "the top does not move");
}

#[test]
fn a_directory_that_is_gone_gives_its_room_to_another() {
    let mut tree = tree();
    for n in 100..200 {
        assert!(tree.put(&h(n), &h(2), b"d"));
        tree.remove((&h(n)).into());
        assert_eq!(tree.locate((&h(n)).into()), None);
    }
    assert_eq!(tree.nodes.len(), 5);
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
}

#[test]
fn what_was_in_a_directory_that_is_gone_is_never_in_the_one_that_takes_its_room() {
    let mut tree = tree();
    tree.remove((&h(2)).into());
    assert!(tree.put(&h(4), &h(1), b"other"));
    assert_eq!(tree.locate((&h(3)).into()), None);
    tree.detach((&h(3)).into());
    let nodes = tree.nodes.len();
    assert!(tree.put(&h(5), &h(1), b"third"));
    assert_eq!(tree.nodes.len(), nodes, "now its room is free");
    assert_eq!(tree.locate((&h(5)).into()), within(&[spot(0, "third")]));
    tree.remove((&h(0)).into());
    assert_eq!(tree.locate((&h(0)).into()), within(&[]), "the top stays");
}

#[test]
fn a_root_that_is_gone_is_none_in_the_directory_that_takes_its_room() {
    let mut tree = tree();
    tree.remove((&h(1)).into());
    tree.detach((&h(2)).into());
    assert!(tree.put(&h(6), &h(0), b"elsewhere"));
    assert_eq!(tree.locate((&h(6)).into()), within(&[]));
}

/// A root, and directories put into it one after the other until `count` were.
fn crowd(tree: &mut Tree, count: u32, mut after: impl FnMut(&mut Tree, u32)) {
    let dir = |n: u32| Handle { kind: 1, bytes: [&n.to_le_bytes()[..], b"generation"].concat() };
    tree.reset(Anchors { top: Some(h(0)), roots: vec![Some(h(1))], own: vec![] });
    for n in 0..count {
        // As one learns a place: once more from the top if the tree was emptied meanwhile.
        while !tree.put(&dir(n), &h(1), format!("name-{n}").as_bytes()) {
            assert!(tree.put(&h(1), &h(0), b"space"));
        }
        assert!(tree.bytes() <= tree.max_bytes, "{} bytes", tree.bytes());
        after(tree, n);
    }
}

#[test]
fn a_full_tree_forgets_only_what_nobody_asked_for() {
    let mut tree = Tree::with_limit(16_384);
    let first = Handle { kind: 1, bytes: [&0u32.to_le_bytes()[..], b"generation"].concat() };
    let mut most = 0;
    crowd(&mut tree, 5_000, |tree, _| {
        most = most.max(tree.index.len());
        assert_eq!(tree.locate((&first).into()), within(&[spot(0, "name-0")]));
    });
    assert!(tree.index.len() > 50 && most < 300, "{} of {most}", tree.index.len());
}

#[test]
fn a_full_tree_of_which_everything_is_in_use_begins_anew() {
    let mut tree = Tree::with_limit(16_384);
    let mut cleared = 0;
    let mut before = 0;
    crowd(&mut tree, 1_000, |tree, n| {
        let last = Handle { kind: 1, bytes: [&n.to_le_bytes()[..], b"generation"].concat() };
        assert_eq!(tree.locate((&last).into()), within(&[spot(0, &format!("name-{n}"))]));
        cleared += u32::from(tree.index.len() < before);
        before = tree.index.len();
    });
    assert!((2..50).contains(&cleared), "{cleared} times");
}

#[test]
fn a_place_that_was_ready_is_void_when_anything_above_it_moves() {
    let mut tree = tree();
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
    tree.put(&h(2), &h(1), b"z");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "z/b")]));
    tree.detach((&h(2)).into());
    assert_eq!(tree.locate((&h(3)).into()), None);
    tree.put(&h(2), &h(1), b"y");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "y/b")]));
    tree.remove((&h(2)).into());
    assert_eq!(tree.locate((&h(3)).into()), None);
}

#[test]
fn a_ring_is_unknown_and_does_not_hang() {
    let mut tree = tree();
    tree.put(&h(2), &h(3), b"x");
    assert_eq!(tree.locate((&h(3)).into()), None);
}

#[test]
fn the_top_is_never_moved() {
    let mut tree = tree();
    tree.put(&h(0), &h(3), b"x");
    assert_eq!(tree.locate((&h(3)).into()), within(&[spot(0, "a/b")]));
}

#[test]
fn a_cleared_tree_knows_only_its_anchors() {
    let mut tree = tree();
    tree.clear();
    assert_eq!(tree.locate((&h(3)).into()), None);
    assert_eq!(tree.locate((&h(0)).into()), within(&[]));
    tree.put(&h(1), &h(0), b"space");
    assert_eq!(tree.locate((&h(1)).into()), within(&[spot(0, "")]));
}
