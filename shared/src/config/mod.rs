//! The configuration file: what it may say, and errors that name the line and column.
//! `raw` is what was typed, the types here are what it means; nothing else sees the first.

mod raw;
mod types;

use std::io;
use std::path::{Path, PathBuf};

use crate::identity::Identity;
use crate::path::RelPath;
use crate::rules::Rules;

pub use types::{ByteSize, Name};

pub const DEFAULT_PATH: &str = "/etc/longshore/longshore.toml";

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub file: PathBuf,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    /// Rows of the journal above which it is collapsed.
    pub max_entries: u64,
    pub roots: Vec<Root>,
    pub legs: Vec<Leg>,
}

/// A tracked directory tree.
#[derive(Debug, Clone)]
pub struct Root {
    pub name: Name,
    pub path: PathBuf,
    /// As `tracker identify` printed it; without it a root is proven only against what the catalog remembers.
    pub identity: Option<Identity>,
    pub rules: Rules,
}

/// One destination.
#[derive(Debug, Clone)]
pub struct Leg {
    pub name: Name,
    pub roots: Vec<LegRoot>,
    pub guard: GuardLimits,
    pub deletes: Deletes,
    /// Transfers at once.
    pub transfers: usize,
    pub kind: LegKind,
}

/// A root of a leg, and where it lies below the leg's top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegRoot {
    pub root: Name,
    pub prefix: RelPath,
}

#[derive(Debug, Clone)]
pub enum LegKind {
    B2(B2Leg),
    Dir(DirLeg),
}

#[derive(Debug, Clone)]
pub struct B2Leg {
    pub bucket: String,
    /// Where the leg's top lies in the bucket.
    pub prefix: RelPath,
    pub endpoint: String,
    /// Files with the application key's id and the key, readable by their owner only.
    pub key_files: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone)]
pub struct DirLeg {
    pub path: PathBuf,
    pub trash_days: u32,
}

/// What happens at the destination to what is gone at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deletes {
    /// Hidden at B2, moved to the trash of a `dir` leg.
    Hide,
    /// Nothing: it stays.
    Never,
}

/// Above any of these the guard holds back what would be destroyed.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardLimits {
    pub deletes: u64,
    pub delete_bytes: Option<u64>,
    /// Of the paths the leg holds; the larger of this and `deletes` counts.
    pub delete_percent: f64,
}

impl Default for GuardLimits {
    fn default() -> Self {
        GuardLimits { deletes: 1_000, delete_bytes: None, delete_percent: 0.5 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("Cannot read the configuration {}: {source}. Name another file with --config or $LONGSHORE_CONFIG", file.display())]
    Read { file: PathBuf, source: io::Error },
    /// The text has the excerpt with line and column already.
    #[error("The configuration {} is not valid.\n{message}", file.display())]
    Parse { file: PathBuf, message: String },
    #[error("The configuration {} is not valid at line {line}, column {column}: {message}", file.display())]
    Invalid { file: PathBuf, line: usize, column: usize, message: String },
}

impl Config {
    /// Reads and checks a configuration file.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        Config::parse(file, &text)
    }

    /// Checks a configuration text; `file` is only named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        raw::parse(file, text)
    }

    pub fn root(&self, name: &Name) -> Option<&Root> {
        self.roots.iter().find(|r| &r.name == name)
    }

    pub fn leg(&self, name: &str) -> Option<&Leg> {
        self.legs.iter().find(|l| l.name.as_str() == name)
    }

    pub fn journal_path(&self) -> PathBuf {
        self.state_dir.join("journal.db")
    }

    /// Locked for as long as a tracker runs with this state directory.
    pub fn lock_path(&self) -> PathBuf {
        self.state_dir.join("tracker.lock")
    }

    pub fn status_path(&self) -> PathBuf {
        self.runtime_dir.join("tracker.json")
    }

    pub fn control_path(&self) -> PathBuf {
        self.runtime_dir.join("tracker.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "/var/lib/longshore"
runtime_dir = "/run/longshore"

[[root]]
name = "space"
path = "/space"
exclude = ["_ops/logs/**", "*.tmp"]

[[leg]]
name = "b2"
kind = "b2"
roots = [{ root = "space", prefix = "mirror/space" }]
bucket = "my-space-mirror"
guard = { deletes = 10, delete_bytes = "10GiB", delete_percent = 1.5 }

[[leg]]
name = "disk2"
kind = "dir"
roots = ["space"]
path = "/mnt/disk2/space"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("longshore.toml"), text)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_understood() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.roots[0].path, Path::new("/space"));
        assert_eq!(config.max_entries, 500_000);
        let leg = config.leg("b2").unwrap();
        assert_eq!(leg.roots[0].prefix.as_bytes(), b"mirror/space");
        assert_eq!(leg.guard.delete_bytes, Some(10 << 30));
        assert!(matches!(&config.legs[1].kind, LegKind::Dir(d) if d.trash_days == 30));
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_column() {
        let message = error(&GOOD.replace("bucket =", "transfres = 4\nbucket ="));
        assert!(message.contains("line 14, column 1"), "{message}");
        assert!(message.contains("transfres"), "{message}");
    }

    #[test]
    fn what_contradicts_itself_is_named_with_line_and_column() {
        for (from, to, needle) in [
            (
                "roots = [\"space\"]",
                "roots = [\"spaec\"]",
                "line 20, column 10: there is no root named `spaec`",
            ),
            ("name = \"disk2\"", "name = \"b2\"", "line 18, column 8: the leg `b2` is named twice"),
            (
                "path = \"/mnt/disk2/space\"",
                "bucket = \"x\"",
                "`bucket` has no meaning for a leg of kind `dir`",
            ),
            ("bucket = \"my-space-mirror\"", "", "a leg of kind `b2` needs `bucket`"),
            ("path = \"/space\"", "path = \"space\"", "an absolute path"),
            ("\"10GiB\"", "\"10 parsecs\"", "10 parsecs"),
            ("name = \"space\"", "name = \"Space\"", "Space"),
            ("\"*.tmp\"", "\"a[z-a]\"", "a[z-a]"),
            ("prefix = \"mirror/space\"", "prefix = \"../x\"", "`..`"),
            ("[[root]]", "max_entries = 10\n[[root]]", "`max_entries` must lie between 1000 and 100000000"),
        ] {
            let message = error(&GOOD.replacen(from, to, 1));
            assert!(message.contains(needle), "{from} -> {to}: {message}");
            assert!(message.contains("line"), "{message}");
        }
    }

    #[test]
    fn a_directory_of_ours_at_or_above_a_root_is_named_with_line_and_column() {
        let place = |key: &str, path: &str| {
            let line = GOOD.lines().find(|l| l.starts_with(key)).unwrap();
            GOOD.replace(line, &format!("{key} = \"{path}\""))
        };
        for path in ["/space", "/space/.", "/"] {
            for (key, at) in [("state_dir", "line 2, column 13"), ("runtime_dir", "line 3, column 15")] {
                let message = error(&place(key, path));
                assert!(message.contains(at), "{key} {path}: {message}");
                assert!(message.contains(key) && message.contains("root `space`"), "{message}");
            }
        }
        for path in ["/space/.longshore", "/spaces", "/spac"] {
            parse(&place("state_dir", path)).unwrap();
            parse(&place("runtime_dir", path)).unwrap();
        }
        let by_default = "[[root]]\nname = \"a\"\npath = \"/var/lib/longshore/x\"\n";
        let message = error(by_default);
        assert!(message.contains("line 3, column 8") && message.contains("/var/lib/longshore"), "{message}");
    }

    #[test]
    fn two_legs_may_not_write_to_the_same_place() {
        let second = GOOD
            .replace("kind = \"dir\"", "kind = \"b2\"\nbucket = \"my-space-mirror\"")
            .replace("path = \"/mnt/disk2/space\"", "prefix = \"mirror\"");
        assert!(error(&second).contains("overlap"), "{}", error(&second));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/longshore.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/longshore.toml") && error.contains("--config"), "{error}");
    }
}
