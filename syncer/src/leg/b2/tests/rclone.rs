//! The mirror as rclone sees it: each takes the other's names and times for its own. Skipped where there is no rclone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::*;

/// All that the encoding has a meaning for and that rclone brings back to disk as it was.
const ODD_NAMES: [&[u8]; 16] = [
    b"plain",
    b"with space +%#?&=;",
    b"bad\xff\xfe",
    b"cut\xe2\x80",
    b"\xed\xa0\x80",
    b"back\\slash",
    b"new\nline\ttab\x01\x1f\x7f",
    "␊␟␡＼".as_bytes(),
    "␀／".as_bytes(),
    "．".as_bytes(),
    "．．".as_bytes(),
    "‛．".as_bytes(),
    "‛‛x".as_bytes(),
    "‛␀‛／".as_bytes(),
    "\u{fffd}ü码".as_bytes(),
    b" lead and trail . ",
];

fn has_rclone() -> bool {
    let found = Command::new("rclone").arg("version").output().is_ok();
    if !found {
        eprintln!("There is no rclone: nothing was checked against it");
    }
    found
}

fn rclone(emulator: &Emulator, arguments: [&OsStr; 3]) {
    let (id, key) = emulator.key();
    let output = Command::new("rclone")
        .args(arguments)
        .args(["--config", "/dev/null", "--retries", "1", "--b2-endpoint", &emulator.endpoint()])
        .env("RCLONE_B2_ACCOUNT", id)
        .env("RCLONE_B2_KEY", key)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn remote() -> String {
    format!(":b2:{BUCKET}/mirror")
}

fn odd_paths() -> Vec<RelPath> {
    ODD_NAMES.iter().map(|name| path(&[b"dir/", *name].concat())).collect()
}

fn files_in(dir: &Path) -> BTreeMap<Vec<u8>, i64> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let time = |entry: &fs::DirEntry| {
        let modified = entry.metadata().unwrap().modified().unwrap();
        modified.duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
    };
    entries.map(|entry| (entry.file_name().into_vec(), time(&entry))).collect()
}

#[tokio::test]
async fn what_rclone_uploads_is_listed_under_the_paths_on_disk() {
    if !has_rclone() {
        return;
    }
    let fixture = Fixture::tuned("mirror", Tuning { page_files: 1000, ..tuning() }).await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for path in odd_paths() {
        let file = dir.path().join(path.as_path());
        fs::write(&file, path.as_bytes()).unwrap();
        let time = UNIX_EPOCH + Duration::from_nanos(MTIME_NS as u64);
        fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    }
    rclone(&fixture.emulator, ["copy".as_ref(), dir.path().as_ref(), remote().as_ref()]);
    let page = fixture.store.list(&RelPath::root(), None).await.unwrap();
    let mut listed: Vec<_> = page.objects.iter().map(|object| object.dest.clone().unwrap()).collect();
    listed.sort();
    let mut expected = odd_paths();
    expected.sort();
    assert_eq!(listed, expected);
    for object in page.objects {
        assert_eq!(object.sha1, Some(sha1(object.dest.unwrap().as_bytes())));
        assert_eq!(object.mtime_ns, Some(MTIME_NS / 1_000_000 * 1_000_000));
        assert_eq!(object.writer, None);
    }
    // The same names are ours: an upload makes new versions, not new names.
    let before = fixture.names();
    for path in odd_paths() {
        fixture.store.put(put(path, small(b"ours"))).await.unwrap();
    }
    assert_eq!(fixture.names(), before);
}

#[tokio::test]
async fn what_we_upload_is_restored_by_rclone_byte_for_byte_names_and_times_included() {
    if !has_rclone() {
        return;
    }
    let fixture = Fixture::tuned("mirror", tuning()).await;
    for path in odd_paths() {
        let body = small(path.as_bytes());
        fixture.store.put(put(path, body)).await.unwrap();
    }
    fixture.put("dir/large", TestFile::new(&content(5 * PART_BYTES)).body()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    rclone(&fixture.emulator, ["copy".as_ref(), remote().as_ref(), dir.path().as_ref()]);
    let millis = MTIME_NS / 1_000_000 * 1_000_000;
    let expected: BTreeMap<_, _> =
        ODD_NAMES.iter().copied().chain([&b"large"[..]]).map(|name| (name.to_vec(), millis)).collect();
    assert_eq!(files_in(&dir.path().join("dir")), expected);
    for path in odd_paths() {
        assert_eq!(fs::read(dir.path().join(path.as_path())).unwrap(), path.as_bytes());
    }
    // With the hash of the large file, which only its uploader knows.
    rclone(&fixture.emulator, ["check".as_ref(), dir.path().as_ref(), remote().as_ref()]);
}

#[test]
fn names_of_the_table_are_names_of_single_files() {
    for name in ODD_NAMES {
        assert!(!OsStr::from_bytes(name).is_empty() && !name.contains(&b'/'));
    }
}
