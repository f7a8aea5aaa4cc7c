//! A workload of everything that people do to trees, from one seed: names of every kind, renames of files and
//! directories, content moved in from outside, links, holes, type changes.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Names that have broken lists, parsers and encodings before.
pub fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        b"new\nline".as_slice(),
        b"bad\xff\xfebytes",
        b"# comment",
        b" leading and trailing ",
        b"back\\slash",
        b"tab\there",
        b"quote\"s'",
        b"-rf",
        b"*?[x]",
        b"\xc3\xbcml\xc3\xa4ut",
        b"ends (deleted)",
        b"...",
    ]
    .iter()
    .map(|n| n.to_vec())
    .collect();
    names.push(vec![b'n'; 255]);
    names
}

/// The tree that a workload begins with.
pub fn plant(top: &Path) {
    for dir in ["docs/old", "docs/new", "photos/2024", "photos/2025", "empty", "src/deep/er/still"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    for i in 0..40 {
        write(&top.join(format!("docs/old/{i}.txt")), i, 100 + i * 37);
        write(&top.join(format!("photos/2024/{i}.jpg")), i, 9_000 + i);
    }
    for name in odd_names() {
        write(&top.join("docs").join(OsStr::from_bytes(&name)), 3, 50);
    }
    write(&top.join("src/deep/er/still/here"), 1, 1);
    write(&top.join("zero"), 0, 0);
    symlink("docs/old", top.join("link-to-dir")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    fs::hard_link(top.join("docs/old/1.txt"), top.join("hard-one")).unwrap();
    sparse(&top.join("image.raw"));
}

fn write(path: &Path, seed: usize, size: usize) {
    let content: Vec<u8> = (0..size).map(|i| ((i * 31 + seed * 7) % 251) as u8).collect();
    fs::write(path, content).unwrap();
}

fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(3 << 20).unwrap();
    file.write_all_at(b"in the middle", 1 << 20).unwrap();
}

/// A tree to be changed, and a directory on the same filesystem but outside the root.
pub struct Workload {
    top: PathBuf,
    outside: PathBuf,
    random: StdRng,
    made: usize,
}

impl Workload {
    /// Prints its seed, so that a failure can be repeated.
    pub fn new(top: &Path, outside: &Path, seed: u64) -> Workload {
        println!("workload seed {seed}");
        Workload {
            top: top.to_owned(),
            outside: outside.to_owned(),
            random: StdRng::seed_from_u64(seed),
            made: 0,
        }
    }

    /// The changes that every run must carry over, each once.
    pub fn every_kind(&mut self) {
        let top = self.top.clone();
        let at = |path: &str| top.join(path);
        write(&at("docs/new/created"), 5, 500);
        let mut log = File::options().append(true).open(at("docs/old/2.txt")).unwrap();
        log.write_all(b"appended").unwrap();
        fs::rename(at("docs/old/3.txt"), at("docs/new/renamed.txt")).unwrap();
        fs::rename(at("docs/old/4.txt"), at("docs/old/5.txt")).unwrap();
        fs::rename(at("photos/2024"), at("photos/moved")).unwrap();
        write(&at("photos/moved/0.jpg"), 9, 1_234);
        fs::remove_file(at("docs/old/6.txt")).unwrap();
        fs::remove_dir_all(at("src/deep")).unwrap();
        fs::set_permissions(at("docs/old/7.txt"), Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(at("empty"), Permissions::from_mode(0o700)).unwrap();
        symlink("../zero", at("docs/new/link")).unwrap();
        fs::hard_link(at("docs/old/8.txt"), at("docs/new/second-name")).unwrap();
        fs::write(at("hard-one"), "written through another name").unwrap();
        sparse(&at("docs/new/holes"));
        if xattr::set(at("docs/old/9.txt"), "user.note", b"kept").is_err() {
            println!("no user attributes on this filesystem");
        }
        File::options().write(true).open(at("docs/old/10.txt")).unwrap().set_len(3).unwrap();
        // One name, another type: file → directory, directory → file, file → symlink.
        fs::remove_file(at("zero")).unwrap();
        fs::create_dir(at("zero")).unwrap();
        write(&at("zero/below"), 2, 20);
        fs::remove_dir(at("photos/2025")).unwrap();
        write(&at("photos/2025"), 4, 40);
        fs::remove_file(at("docs/old/11.txt")).unwrap();
        symlink("10.txt", at("docs/old/11.txt")).unwrap();
        for (i, name) in odd_names().iter().enumerate() {
            let old = at("docs").join(OsStr::from_bytes(name));
            match i % 3 {
                0 => write(&old, 8, 70),
                1 => fs::rename(&old, at("docs/new").join(OsStr::from_bytes(name))).unwrap(),
                _ => fs::remove_file(&old).unwrap(),
            }
        }
        self.move_in("from-outside");
    }

    /// A directory with content appears by one rename: its files have no events of their own.
    fn move_in(&mut self, name: &str) {
        let dir = self.outside.join(name);
        fs::create_dir_all(dir.join("sub")).unwrap();
        for i in 0..10 {
            write(&dir.join(format!("sub/{i}")), i, 300);
        }
        fs::rename(&dir, self.top.join(name)).unwrap();
    }

    /// Random changes below a directory of their own.
    pub fn storm(&mut self, steps: usize) {
        let area = self.top.join("storm");
        fs::create_dir_all(&area).unwrap();
        for _ in 0..steps {
            self.step(&area);
        }
    }

    fn step(&mut self, area: &Path) {
        self.made += 1;
        let fresh = area.join(format!("n{}", self.made));
        let known = self.pick(area);
        match (self.random.random_range(0..10), known) {
            (0..=3, _) | (_, None) => write(&fresh, self.made, self.random.random_range(0..5_000)),
            (4, Some(path)) if path.is_dir() => fs::rename(&path, &fresh).unwrap(),
            (4 | 5, Some(path)) => fs::rename(&path, &fresh).unwrap(),
            (6, Some(path)) if path.is_dir() => fs::remove_dir_all(&path).unwrap(),
            (6, Some(path)) => fs::remove_file(&path).unwrap(),
            (7, _) => {
                fs::create_dir(&fresh).unwrap();
                write(&fresh.join("inside"), self.made, 100);
            }
            (8, Some(path)) if path.is_file() => {
                File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
            }
            (_, Some(path)) => fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap(),
        }
    }

    fn pick(&mut self, area: &Path) -> Option<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(area).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        (!names.is_empty()).then(|| names[self.random.random_range(0..names.len())].clone())
    }
}
