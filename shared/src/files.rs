//! Small files that others read, written so that a reader sees the old or the new content, never half of it.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("Cannot write {}: {source}", path.display())]
pub struct WriteError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Whether the content must survive a power cut, or only be whole for readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Temp, write, fsync, rename, fsync of the directory.
    Synced,
    /// Temp, write, rename: for files in the runtime directory.
    Renamed,
}

/// Replaces `path` with `content` by rename, readable by all.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<(), WriteError> {
    let error = |source| WriteError { path: path.to_owned(), source };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
    temp.write_all(content).map_err(error)?;
    temp.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(error)?;
    if durability == Durability::Synced {
        temp.as_file().sync_all().map_err(error)?;
    }
    temp.persist(path).map_err(|e| error(e.error))?;
    if durability == Durability::Synced {
        File::open(dir).and_then(|d| d.sync_all()).map_err(error)?;
    }
    Ok(())
}

/// A file that `fill` writes at the path it is given: durable, and in its place whole or not at all. What stands there
/// is replaced only if `overwrite` says so.
pub fn make<E: From<WriteError>>(
    path: &Path,
    overwrite: bool,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let error = |source| WriteError { path: path.to_owned(), source };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = tempfile::NamedTempFile::new_in(dir).map_err(error)?;
    fill(temp.path())?;
    temp.as_file().sync_all().map_err(error)?;
    let placed = if overwrite { temp.persist(path) } else { temp.persist_noclobber(path) };
    placed.map_err(|e| error(e.error))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_content_takes_the_place_of_the_old_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        replace(&path, b"one", Durability::Synced).unwrap();
        replace(&path, b"two", Durability::Renamed).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_could_not_be_filled_is_not_there_and_one_that_stands_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let fill = |content: &'static str| {
            move |temp: &Path| {
                std::fs::write(temp, content).map_err(|source| WriteError { path: temp.to_owned(), source })
            }
        };
        let fail =
            |temp: &Path| Err(WriteError { path: temp.to_owned(), source: io::ErrorKind::Other.into() });
        make(&path, false, fail).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        make(&path, false, fill("one")).unwrap();
        make(&path, false, fill("two")).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        make(&path, true, fill("three")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = replace(Path::new("/nonexistent/x"), b"", Durability::Renamed).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"));
    }
}
