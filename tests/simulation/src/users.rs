//! What people and programs do to files: drawn from a small world of names, so that the same names are met again and
//! again, as files, as directories, as links, gone and come back.

use crate::random::Random;
use crate::script::{Op, text};
use crate::shape::Shape;

/// Directories below the top of each disk. `a` and `b` may be roots of their own, `o` lies outside of those.
const DIRS: [&str; 10] = ["", "a", "b", "a/d", "a/e", "a/d/x", "b/d", "o", "a/n", "b/n/m"];
const NAMES: [&[u8]; 12] =
    [b"f", b"g", b"h", b"i", b"j", b"k", b"d", b"n", b"x.tmp", b"odd \n\xff", b".longshore", b"big"];
/// Files that are kept open at once.
const OPEN_MAX: u64 = 3;

/// The operations that fill the disks of a new world: at least 50 files.
pub fn beginning(shape: &Shape, random: &mut Random) -> Vec<Op> {
    let mut ops = Vec::new();
    for disk in 0..shape.disks.len() {
        for dir in DIRS.iter().filter(|dir| !dir.is_empty() && **dir != "a/n") {
            // Parents first, those that are there already fail.
            let parts: Vec<&str> = dir.split('/').collect();
            let above = (1..=parts.len()).map(|n| format!("/d{disk}/{}", parts[..n].join("/")));
            ops.extend(above.map(|path| Op::Mkdir { path }));
        }
        for dir in DIRS {
            for name in &NAMES[..8] {
                let path = join(disk, dir, name);
                ops.push(Op::Create { path, content: content(random) });
            }
        }
    }
    ops
}

/// One operation.
pub fn draw(shape: &Shape, random: &mut Random) -> Op {
    let disk = random.below(shape.disks.len() as u64) as usize;
    let path = |random: &mut Random| path(disk, random);
    let fd = random.below(OPEN_MAX) as u8;
    match random.below(100) {
        0..16 => Op::Create { path: path(random), content: content(random) },
        16..36 => Op::Write { path: path(random), at: random.below(4), content: content(random) },
        36..40 => Op::Truncate { path: path(random), size: random.below(6) },
        40..52 => Op::Rename { from: path(random), to: path(random) },
        52..54 => Op::Exchange { a: path(random), b: path(random) },
        54..60 => Op::Link { from: path(random), to: path(random) },
        60..69 => Op::Unlink { path: path(random) },
        69..71 => Op::RemoveAll { path: dir(disk, random) },
        71..76 => Op::Mkdir { path: if random.one_in(2) { dir(disk, random) } else { path(random) } },
        76..79 => Op::Symlink { target: "f".to_owned(), path: path(random) },
        79 => Op::Fifo { path: path(random) },
        80..83 => Op::Chmod { path: path(random), mode: 0o600 + random.below(64) as u32 },
        83..86 => {
            Op::Touch { path: path(random), mtime_ns: 1_000_000_000_000_000_000 + random.below(4) as i64 }
        }
        86 => Op::Xattr { path: path(random), value: content(random) },
        87..90 => Op::Open { path: path(random), fd },
        90..93 => Op::WriteOpen { fd, content: content(random) },
        93..95 => Op::Close { fd },
        95 => Op::Tmpfile { path: path(random), content: content(random) },
        96..98 => Op::Map { fd, content: content(random) },
        98 => Op::Aio { fd, content: content(random) },
        _ => Op::Rename { from: dir(disk, random), to: dir(disk, random) },
    }
}

fn path(disk: usize, random: &mut Random) -> String {
    let dir = random.of(&DIRS).copied().unwrap_or_default();
    // The first names are the ones that are met most.
    let most = if random.one_in(4) { NAMES.len() } else { 5 } as u64;
    join(disk, dir, NAMES[random.below(most) as usize])
}

/// A path below a root.
pub fn name(random: &mut Random) -> String {
    let path = path(0, random);
    path.trim_start_matches("/d0/").to_owned()
}

fn dir(disk: usize, random: &mut Random) -> String {
    let dir = DIRS[1 + random.below(DIRS.len() as u64 - 1) as usize];
    format!("/d{disk}/{dir}")
}

fn join(disk: usize, dir: &str, name: &[u8]) -> String {
    let between = if dir.is_empty() { "" } else { "/" };
    format!("/d{disk}/{dir}{between}{}", text(name))
}

/// Few contents, of few lengths: what was replaced often looks the same.
fn content(random: &mut Random) -> String {
    let letter = b'a' + random.below(16) as u8;
    text(&vec![letter; 1 + random.below(4) as usize])
}
