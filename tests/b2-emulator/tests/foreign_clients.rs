//! The emulator proven by clients that nobody here wrote: rclone, and Backblaze's own `b2`.
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};
use std::{env, fs};

use b2_emulator::Emulator;
use b2_emulator::calls::Call;
use b2_emulator::options::{KeyRules, Limits, Options};
use b2_emulator::version::Action;

const BUCKET: &str = "foreign-clients";
/// Above what rclone takes for the smallest part, 5 MiB.
const LARGE: usize = 12_000_000;

/// An emulator with a bucket, and directories on both sides of it.
struct Setup {
    emulator: Emulator,
    /// What the clients authorize with.
    key: (String, String),
    scratch: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let limits = Limits { recommended_part_size: 5_000_000, ..Limits::default() };
        let emulator = Emulator::start(Options { limits, ..Options::default() }).expect("a free port");
        emulator.create_bucket(BUCKET).expect("a free name");
        let scratch = tempfile::tempdir().expect("a directory");
        for side in ["source", "back", "home"] {
            fs::create_dir(scratch.path().join(side)).expect("a directory");
        }
        Self { key: emulator.key(), emulator, scratch }
    }

    fn path(&self, side: &str) -> PathBuf {
        self.scratch.path().join(side)
    }

    fn write(&self, name: impl AsRef<OsStr>, body: &[u8]) {
        let path = self.path("source").join(name.as_ref());
        fs::create_dir_all(path.parent().expect("below the source")).expect("a directory");
        fs::write(&path, body).expect("a file");
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let file = fs::File::options().write(true).open(&path).expect("the file");
        file.set_modified(modified).expect("the time");
    }

    fn write_tree(&self) {
        for number in 0..40 {
            self.write(
                format!("dir{}/sub/file{number}", number % 4),
                &vec![number; usize::from(number) * 50],
            );
        }
        self.write("empty", b"");
        self.write("with space/ü 码/+%#&?.txt", b"odd, but for every client");
        self.write("large", &(0..LARGE).map(|at| (at / 7) as u8).collect::<Vec<_>>());
    }

    fn rclone_command(&self, arguments: &[&str]) -> Command {
        let (id, key) = &self.key;
        let mut command = Command::new(tool("LONGSHORE_RCLONE", "rclone").expect("the caller has looked"));
        command
            .env_clear()
            .env("HOME", self.path("home"))
            .env("RCLONE_CONFIG", "/dev/null")
            .env("RCLONE_CONFIG_B_TYPE", "b2")
            .env("RCLONE_CONFIG_B_ACCOUNT", id)
            .env("RCLONE_CONFIG_B_KEY", key)
            .env("RCLONE_CONFIG_B_ENDPOINT", self.emulator.endpoint())
            .args(["--retries", "1", "--b2-chunk-size", "5M", "--b2-upload-cutoff", "5M"])
            .args(arguments)
            .current_dir(self.scratch.path());
        command
    }

    fn b2_command(&self, arguments: &[&str]) -> Command {
        let (id, key) = &self.key;
        let mut command = Command::new(tool("LONGSHORE_B2_CLI", "b2").expect("the caller has looked"));
        command
            .env_clear()
            .env("HOME", self.path("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("B2_ACCOUNT_INFO", self.path("home").join("account"))
            .env("B2_ENVIRONMENT", self.emulator.endpoint())
            .env("B2_APPLICATION_KEY_ID", id)
            .env("B2_APPLICATION_KEY", key)
            .args(arguments)
            .current_dir(self.scratch.path());
        command
    }

    fn rclone(&self, arguments: &[&str]) {
        succeed(self.rclone_command(arguments));
    }

    fn b2(&self, arguments: &[&str]) {
        succeed(self.b2_command(arguments));
    }

    fn assert_no_violations(&self) {
        assert_eq!(self.emulator.violations(), Vec::<String>::new());
        let counters = self.emulator.counters();
        assert!(!counters.errors.contains_key("bad_request"), "{counters:?}");
    }
}

fn succeed(mut command: Command) {
    let Output { status, stdout, stderr } = command.output().expect("the tool is there");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}{}", text(stdout), text(stderr));
}

/// None after saying why the test is skipped; in CI that is a failure.
fn tool(variable: &str, name: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    let paths = env::var_os("PATH").unwrap_or_default();
    let found =
        named.or_else(|| env::split_paths(&paths).map(|path| path.join(name)).find(|path| path.exists()));
    if found.is_none() {
        assert_ne!(env::var("CI").as_deref(), Ok("true"), "{name} is neither in {variable} nor in PATH");
        eprintln!("skipped: {name} is neither in {variable} nor in PATH");
    }
    found
}

/// Names below `root` with content and time; in milliseconds, which is what both clients keep.
fn tree(root: &Path) -> BTreeMap<OsString, (Vec<u8>, u128)> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(root).expect("below the root").as_os_str().to_owned();
            let modified = fs::metadata(&path).and_then(|it| it.modified()).expect("a time");
            let since_1970 = modified.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            files.insert(name, (fs::read(&path).expect("a file"), since_1970.as_millis()));
        }
    }
    files
}

/// Says which names differ, and not how: that would fill the screen.
fn assert_same_tree(left: &Path, right: &Path) {
    let (left, right) = (tree(left), tree(right));
    assert!(left.keys().eq(right.keys()), "{:?} {:?}", left.keys(), right.keys());
    let differing: Vec<_> = left.keys().filter(|name| left[*name] != right[*name]).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn rclone_syncs_checks_and_copies_back_the_same_tree() {
    if tool("LONGSHORE_RCLONE", "rclone").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    for name in
        [&b"new\nline"[..], b"not utf-8 \xff", b"back\\slash", b"#hash", b" space around ", &[b'x'; 255]]
    {
        setup.write(OsStr::from_bytes(name), name);
    }
    let remote = format!("b:{BUCKET}/below");
    setup.rclone(&["sync", "source", &remote]);
    assert_eq!(setup.emulator.files(BUCKET).len(), tree(&setup.path("source")).len());
    assert_eq!(setup.emulator.counters().calls(Call::FinishLargeFile), 1);

    let uploads = setup.emulator.counters().calls(Call::UploadFile);
    setup.rclone(&["sync", "source", &remote]);
    assert_eq!(setup.emulator.counters().calls(Call::UploadFile), uploads, "nothing has changed");

    setup.rclone(&["check", "source", &remote]);
    setup.rclone(&["check", "--download", "source", &remote]);
    setup.rclone(&["copy", &remote, "back"]);
    assert_same_tree(&setup.path("back"), &setup.path("source"));
    setup.assert_no_violations();
}

#[test]
fn rclone_lists_flat_and_by_directory_alike_and_hides_what_is_gone() {
    if tool("LONGSHORE_RCLONE", "rclone").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    let remote = format!("b:{BUCKET}");
    setup.rclone(&["sync", "--fast-list", "source", &remote]);
    fs::remove_dir_all(setup.path("source").join("dir1")).expect("removed");
    setup.rclone(&["sync", "--fast-list", "source", &remote]);
    setup.rclone(&["check", "source", &remote]);
    assert_eq!(setup.emulator.counters().calls(Call::HideFile), 10);
    setup.rclone(&["cleanup", &remote]);
    let left = setup.emulator.versions(BUCKET);
    assert!(left.iter().all(|version| version.action == Action::Upload), "markers are deleted");
    setup.assert_no_violations();
}

#[test]
fn rclone_tracks_renames_by_copying_on_the_server() {
    if tool("LONGSHORE_RCLONE", "rclone").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    let remote = format!("b:{BUCKET}");
    setup.rclone(&["sync", "source", &remote]);
    let uploads = setup.emulator.counters().calls(Call::UploadFile);
    let renamed = ["dir0/sub/file4", "dir1/sub/file5", "large"];
    for name in renamed {
        let source = setup.path("source");
        fs::rename(source.join(name), source.join(format!("{name} renamed"))).expect("renamed");
    }
    setup.rclone(&["sync", "--track-renames", "--b2-copy-cutoff", "5M", "source", &remote]);
    let counters = setup.emulator.counters();
    assert_eq!(counters.calls(Call::UploadFile), uploads);
    assert_eq!(
        (counters.calls(Call::CopyFile), counters.calls(Call::CopyPart)),
        (2, 3),
        "the large one by parts"
    );
    assert_eq!(counters.calls(Call::HideFile), 3);
    setup.rclone(&["check", "--download", "source", &remote]);
    setup.rclone(&["copy", &remote, "back"]);
    assert_same_tree(&setup.path("back"), &setup.path("source"));
    setup.assert_no_violations();
}

#[test]
fn b2_syncs_up_and_down_with_deletions() {
    if tool("LONGSHORE_B2_CLI", "b2").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    let remote = format!("b2://{BUCKET}/below");
    setup.b2(&["sync", "--no-progress", "source", &remote]);
    assert_eq!(setup.emulator.files(BUCKET).len(), tree(&setup.path("source")).len());
    assert_eq!(setup.emulator.counters().calls(Call::FinishLargeFile), 1);

    setup.write("dir2/sub/file2", b"another length than before");
    fs::remove_dir_all(setup.path("source").join("dir3")).expect("removed");
    setup.b2(&["sync", "--no-progress", "--delete", "--compare-versions", "size", "source", &remote]);
    assert_eq!(setup.emulator.versions(BUCKET).len(), tree(&setup.path("source")).len());

    setup.b2(&["sync", "--no-progress", &remote, "back"]);
    assert_same_tree(&setup.path("back"), &setup.path("source"));
    setup.assert_no_violations();
}

#[test]
fn b2_hides_what_is_gone_lists_and_finds_one_file() {
    if tool("LONGSHORE_B2_CLI", "b2").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    let remote = format!("b2://{BUCKET}");
    setup.b2(&["sync", "--no-progress", "source", &remote]);
    fs::remove_file(setup.path("source").join("empty")).expect("removed");
    setup.b2(&["sync", "--no-progress", "--keep-days", "30", "source", &remote]);
    assert_eq!(setup.emulator.counters().calls(Call::HideFile), 1);
    setup.b2(&["ls", "--recursive", "--versions", &remote]);
    setup.b2(&["file", "info", &format!("{remote}/dir0/sub/file4")]);
    setup.b2(&["file", "server-side-copy", &format!("{remote}/large"), &format!("{remote}/copy")]);
    setup.assert_no_violations();
}

#[test]
fn what_b2_uploaded_rclone_takes_for_unchanged() {
    if tool("LONGSHORE_B2_CLI", "b2").is_none() || tool("LONGSHORE_RCLONE", "rclone").is_none() {
        return;
    }
    let setup = Setup::new();
    setup.write_tree();
    setup.b2(&["sync", "--no-progress", "source", &format!("b2://{BUCKET}")]);
    let before = setup.emulator.versions(BUCKET).len();
    setup.rclone(&["sync", "source", &format!("b:{BUCKET}")]);
    assert_eq!(setup.emulator.versions(BUCKET).len(), before);
    setup.assert_no_violations();
}

#[test]
fn a_restricted_key_is_enough_below_its_prefix_and_for_nothing_else() {
    if tool("LONGSHORE_B2_CLI", "b2").is_none() || tool("LONGSHORE_RCLONE", "rclone").is_none() {
        return;
    }
    let mut setup = Setup::new();
    setup.write("a", b"one");
    let capabilities = ["listBuckets", "listFiles", "readFiles", "writeFiles"].map(str::to_owned).to_vec();
    let rules = KeyRules {
        capabilities: Some(capabilities),
        bucket_name: Some(BUCKET.into()),
        name_prefix: Some("mine/".into()),
    };
    setup.key = setup.emulator.create_key(rules).expect("the bucket is there");
    let inside = format!("{BUCKET}/mine/x");
    setup.rclone(&["sync", "source", &format!("b:{inside}")]);
    setup.b2(&["sync", "--no-progress", "source", &format!("b2://{inside}")]);
    assert_eq!(setup.emulator.versions(BUCKET).len(), 1, "b2 found what rclone had uploaded");

    let outside = format!("{BUCKET}/yours");
    let fails = |mut command: Command| !command.output().expect("the tool is there").status.success();
    assert!(fails(setup.rclone_command(&["sync", "source", &format!("b:{outside}")])));
    assert!(fails(setup.b2_command(&["sync", "--no-progress", "source", &format!("b2://{outside}")])));
    assert_eq!(setup.emulator.versions(BUCKET).len(), 1);
    setup.assert_no_violations();
}
