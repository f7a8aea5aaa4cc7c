//! `tracker add`.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use shared::config::{Config, Root};
use shared::control::{self, AddedPath, Request};
use shared::exit::Exit;
use shared::limits;
use shared::path::{self, RelPath};

use super::CommandError;

/// The paths of the command line, or those in a file, each ended by NUL.
pub fn collect(from0: Option<&Path>, paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, CommandError> {
    let Some(file) = from0 else { return Ok(paths) };
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_end(&mut bytes))
    };
    read.map_err(|source| CommandError::Io { op: format!("read paths from {}", file.display()), source })?;
    let records = bytes.split(|&b| b == 0).filter(|r| !r.is_empty());
    Ok(records.map(|r| PathBuf::from(OsString::from_vec(r.to_vec()))).collect())
}

pub fn run(
    config: &Config,
    root: Option<&str>,
    subtree: bool,
    paths: &[PathBuf],
) -> Result<Exit, CommandError> {
    let find = |path: &PathBuf| {
        locate(&config.roots, root, path).map(|(root, path)| AddedPath {
            root: root.name.as_str().to_owned(),
            path,
            subtree,
        })
    };
    let paths: Vec<AddedPath> =
        paths.iter().map(find).collect::<Result<_, _>>().map_err(CommandError::Usage)?;
    if paths.is_empty() {
        return Ok(Exit::Ok);
    }
    let request = Request::Add { paths };
    control::ask(&config.control_path(), &request, limits::FLUSH_TIMEOUT).map_err(CommandError::Control)?;
    Ok(Exit::Ok)
}

/// The deepest root that holds an absolute path; the named one for a relative path.
fn locate<'a>(roots: &'a [Root], named: Option<&str>, path: &Path) -> Result<(&'a Root, RelPath), String> {
    let shown = path::escape(path.as_os_str().as_bytes());
    let named = match named {
        Some(name) => match roots.iter().find(|r| r.name.as_str() == name) {
            Some(root) => Some(root),
            None => return Err(format!("There is no root named `{name}`. Nothing was added")),
        },
        None => None,
    };
    let (root, below) = if path.is_absolute() {
        let holds = |r: &&Root| path.starts_with(&r.path) && named.is_none_or(|n| n.name == r.name);
        let root = roots.iter().filter(holds).max_by_key(|r| r.path.components().count());
        let Some(root) = root else { return Err(format!("{shown} lies in no root. Nothing was added")) };
        (root, path.strip_prefix(&root.path).unwrap_or(path))
    } else {
        let Some(root) = named else {
            return Err(format!("{shown} is relative: say with --root in which root. Nothing was added"));
        };
        (root, path)
    };
    // Doubled and trailing slashes and `.` go, `..` does not.
    let plain: PathBuf = below.components().filter(|c| *c != std::path::Component::CurDir).collect();
    let rel = RelPath::parse(plain.as_os_str().as_bytes()).map_err(|e| format!("{e}. Nothing was added"))?;
    Ok((root, rel))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "[[root]]\nname = \"a\"\npath = \"/a\"\n[[root]]\nname = \"b\"\npath = \"/a/b\"\n";

    fn found(named: Option<&str>, path: &str) -> Result<(String, String), String> {
        let config = Config::parse(Path::new("x"), CONFIG).unwrap();
        locate(&config.roots, named, Path::new(path)).map(|(r, p)| (r.name.to_string(), p.to_string()))
    }

    #[test]
    fn an_absolute_path_goes_to_the_deepest_root() {
        assert_eq!(found(None, "/a/b/x"), Ok(("b".into(), "x".into())));
        assert_eq!(found(None, "/a/bx//./y/"), Ok(("a".into(), "bx/y".into())));
        assert_eq!(found(Some("a"), "/a/b/x"), Ok(("a".into(), "b/x".into())));
        assert_eq!(found(None, "/a"), Ok(("a".into(), ".".into())));
        assert!(found(None, "/elsewhere").unwrap_err().contains("/elsewhere"));
    }

    #[test]
    fn a_relative_path_needs_its_root_named() {
        assert_eq!(found(Some("a"), "x/y"), Ok(("a".into(), "x/y".into())));
        assert!(found(None, "x/y").unwrap_err().contains("--root"));
        assert!(found(Some("none"), "x").unwrap_err().contains("none"));
    }

    #[test]
    fn a_path_that_leaves_its_root_is_refused() {
        assert!(found(None, "/a/../etc").is_err());
        assert!(found(Some("a"), "../etc").is_err());
    }
}
