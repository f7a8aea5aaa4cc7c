//! What a tree is, in full, and where two of them differ.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::SeekFrom;
use sha1::{Digest as _, Sha1};
use shared::path::escape;

/// Everything a `dir` leg must carry over of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i64,
    pub size: u64,
    pub rdev: u64,
    pub sha1: Option<[u8; 20]>,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, in byte order, of the same inode.
    pub linked_with: Vec<u8>,
    /// True if the file has a hole.
    pub sparse: bool,
}

pub type Facts = BTreeMap<Vec<u8>, Fact>;

/// Reads a whole tree; `.longshore` at its top is left out.
pub fn facts(top: &Path) -> Facts {
    let mut out = Facts::new();
    let mut inodes = BTreeMap::new();
    add(top, Vec::new(), &mut out, &mut inodes);
    out
}

fn add(top: &Path, path: Vec<u8>, out: &mut Facts, inodes: &mut BTreeMap<u64, Vec<u8>>) {
    let full = top.join(std::ffi::OsStr::from_bytes(&path));
    let meta = fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
    let linked_with =
        if meta.is_dir() { path.clone() } else { inodes.entry(meta.ino()).or_insert(path.clone()).clone() };
    let is_file = meta.is_file();
    out.insert(
        path.clone(),
        Fact {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            rdev: meta.rdev(),
            sha1: is_file.then(|| hash(&full)),
            target: meta.is_symlink().then(|| fs::read_link(&full).unwrap().into_os_string().into_vec()),
            xattrs: xattrs(&full),
            linked_with,
            sparse: is_file && has_hole(&full, meta.size()),
        },
    );
    if !meta.is_dir() {
        return;
    }
    let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        if path.is_empty() && name == ".longshore" {
            continue;
        }
        let mut child = path.clone();
        if !child.is_empty() {
            child.push(b'/');
        }
        child.extend_from_slice(name.as_bytes());
        add(top, child, out, inodes);
    }
}

fn hash(path: &Path) -> [u8; 20] {
    let mut hasher = Sha1::new();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().into(),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let Ok(names) = xattr::list(path) else { return BTreeMap::new() };
    names.filter_map(|name| Some((name.as_bytes().to_vec(), xattr::get(path, &name).ok()??))).collect()
}

fn has_hole(path: &Path, size: u64) -> bool {
    let file = File::open(path).unwrap();
    size > 0 && rustix::fs::seek(&file, SeekFrom::Hole(0)).is_ok_and(|at| at < size)
}

/// What two trees have to agree in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything.
    All,
    /// What an unprivileged user can carry over: not the owner.
    Unprivileged,
}

/// One line per difference; empty means equal. The top directory itself is compared too.
pub fn differences(expected: &Facts, found: &Facts, depth: Depth) -> Vec<String> {
    let mut out = Vec::new();
    for (path, want) in expected {
        match found.get(path) {
            None => out.push(format!("missing: {}", escape(path))),
            Some(have) => {
                let mut have = have.clone();
                if depth == Depth::Unprivileged {
                    (have.uid, have.gid) = (want.uid, want.gid);
                }
                if *want != have {
                    out.push(format!("differs: {}\n  expected {want:?}\n  found    {have:?}", escape(path)));
                }
            }
        }
    }
    out.extend(found.keys().filter(|p| !expected.contains_key(*p)).map(|p| format!("extra: {}", escape(p))));
    out
}

/// Panics with all differences.
pub fn assert_equal(source: &Path, destination: &Path, depth: Depth) {
    let differences = differences(&facts(source), &facts(destination), depth);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
