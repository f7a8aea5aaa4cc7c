//! The application key of a B2 leg: where it may stand, read once, shown to nobody.

mod sys;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use secrecy::{ExposeSecret, SecretString};
use shared::config::B2Leg;

/// Set by systemd for LoadCredential=.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const ID_FILE: &str = "b2-key-id";
const KEY_FILE: &str = "b2-key";
/// Backblaze's own names, then restic's.
const VARIABLES: [(&str, &str); 2] =
    [("B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"), ("B2_ACCOUNT_ID", "B2_ACCOUNT_KEY")];
/// A key is 31 characters; what is longer is another file.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Debug, Clone)]
pub struct Credentials {
    pub key_id: String,
    pub key: SecretString,
    /// Where they were found, for messages.
    pub source: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error(
        "There is no application key for B2. Put it into the systemd credentials {ID_FILE} and {KEY_FILE} \
         (LoadCredential=), or into files named by `key_id_file` and `key_file` of the leg, or into \
         $B2_APPLICATION_KEY_ID and $B2_APPLICATION_KEY"
    )]
    Missing,
    #[error("Only one half of the application key is there: {there} without {missing}")]
    Half { there: String, missing: String },
    #[error("Cannot read the credential {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("Others can read {} (mode {mode:03o}): chmod 600 {0}, and make a new key if they may have", file.display())]
    Exposed { file: PathBuf, mode: u32 },
    #[error("The credential in {0} is empty, or not one line of text")]
    NoText(String),
}

/// What the environment says of credentials, taken out of it.
#[derive(Debug, Default)]
pub struct Environment(BTreeMap<&'static str, SecretString>);

impl Environment {
    /// To be called by `main` before any thread starts: children then inherit none of it.
    ///
    /// # Panics
    /// If another thread runs.
    pub fn take() -> Self {
        Self::from(sys::take_var)
    }

    fn from(mut variable: impl FnMut(&str) -> Option<OsString>) -> Self {
        let names = VARIABLES.into_iter().flat_map(|(id, key)| [id, key]).chain([DIRECTORY]);
        let text = |value: OsString| value.into_string().ok().filter(|text| !text.is_empty());
        Environment(
            names
                .filter_map(|name| Some((name, SecretString::from(variable(name).and_then(text)?))))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&SecretString> {
        self.0.get(name)
    }
}

/// Keeps the key out of core files, and /proc of this process from others of the same user.
pub fn keep_from_dumps() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

impl Credentials {
    /// The first place that has them: systemd's credentials, the leg's key files, the environment.
    pub fn find(leg: &B2Leg, environment: &Environment) -> Result<Self, CredentialsError> {
        if let Some(directory) = environment.get(DIRECTORY) {
            let directory = Path::new(directory.expose_secret());
            if let Some(found) = from_directory(directory)? {
                return Ok(found);
            }
        }
        if let Some((id, key)) = &leg.key_files {
            return pair(
                read_file(id, true)?,
                read_file(key, true)?,
                format!("{} and {}", id.display(), key.display()),
            );
        }
        for (id_name, key_name) in VARIABLES {
            let source = format!("${id_name} and ${key_name}");
            match (environment.get(id_name), environment.get(key_name)) {
                (Some(id), Some(key)) => return pair(id.clone(), key.clone(), source),
                (Some(_), None) => return Err(half(id_name, key_name)),
                (None, Some(_)) => return Err(half(key_name, id_name)),
                (None, None) => {}
            }
        }
        Err(CredentialsError::Missing)
    }
}

/// The directory may hold other credentials only.
fn from_directory(directory: &Path) -> Result<Option<Credentials>, CredentialsError> {
    let (id, key) = (directory.join(ID_FILE), directory.join(KEY_FILE));
    // systemd made them, for this unit alone.
    let there = |file: &Path| match read_file(file, false) {
        Err(CredentialsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    match (there(&id)?, there(&key)?) {
        (Some(id_text), Some(key_text)) => {
            pair(id_text, key_text, format!("{} and {}", id.display(), key.display())).map(Some)
        }
        (Some(_), None) => Err(half(id.display(), key.display())),
        (None, Some(_)) => Err(half(key.display(), id.display())),
        (None, None) => Ok(None),
    }
}

fn half(there: impl ToString, missing: impl ToString) -> CredentialsError {
    CredentialsError::Half { there: there.to_string(), missing: missing.to_string() }
}

fn read_file(path: &Path, private: bool) -> Result<SecretString, CredentialsError> {
    let unreadable = |source| CredentialsError::Read { file: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if private && mode & 0o077 != 0 {
        return Err(CredentialsError::Exposed { file: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(SecretString::from(text))
}

fn pair(key_id: SecretString, key: SecretString, source: String) -> Result<Credentials, CredentialsError> {
    let line = |text: &SecretString| {
        let line = text.expose_secret().trim();
        (!line.is_empty() && !line.contains(char::is_control)).then(|| line.to_owned())
    };
    match (line(&key_id), line(&key)) {
        (Some(key_id), Some(key)) => Ok(Credentials { key_id, key: key.into(), source }),
        _ => Err(CredentialsError::NoText(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use shared::path::RelPath;
    use tempfile::TempDir;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::from(|name| {
            variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.into())
        })
    }

    fn leg(key_files: Option<(PathBuf, PathBuf)>) -> B2Leg {
        B2Leg { bucket: "bucket".into(), prefix: RelPath::root(), endpoint: "https://b2".into(), key_files }
    }

    /// In the directory of the credentials and in the key files; each pair is named after its place.
    fn all_places(dir: &TempDir) -> (B2Leg, String) {
        let files = (dir.path().join("id"), dir.path().join("key"));
        write(&files.0, "id-of-file\n", 0o600);
        write(&files.1, "key-of-file\n", 0o400);
        let directory = dir.path().join("credentials");
        fs::create_dir(&directory).unwrap();
        write(&directory.join(ID_FILE), "id-of-systemd", 0o444);
        write(&directory.join(KEY_FILE), "key-of-systemd", 0o444);
        (leg(Some(files)), directory.to_str().unwrap().to_owned())
    }

    #[test]
    fn systemd_comes_before_key_files_and_they_before_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let (with_files, directory) = all_places(&dir);
        let backblaze = [("B2_APPLICATION_KEY_ID", "id-of-env"), ("B2_APPLICATION_KEY", "key-of-env")];
        let restic = [("B2_ACCOUNT_ID", "id-of-alias"), ("B2_ACCOUNT_KEY", "key-of-alias")];
        let find = |leg: &B2Leg, variables: &[(&str, &str)]| {
            let found = Credentials::find(leg, &environment(variables)).unwrap();
            let place = found.key_id.strip_prefix("id-of-").unwrap().to_owned();
            assert_eq!(found.key.expose_secret(), format!("key-of-{place}"));
            place
        };
        let all = [&[(DIRECTORY, directory.as_str())], &backblaze[..], &restic[..]].concat();
        assert_eq!(find(&with_files, &all), "systemd");
        assert_eq!(find(&with_files, &all[1..]), "file");
        assert_eq!(find(&leg(None), &all[1..]), "env");
        assert_eq!(find(&leg(None), &all[3..]), "alias");
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(find(&with_files, &all), "file", "systemd may give other credentials only");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = (dir.path().join("id"), dir.path().join("key"));
        write(&files.0, "id", 0o600);
        for mode in [0o640, 0o604, 0o660, 0o611] {
            write(&files.1, "secret", mode);
            let error = Credentials::find(&leg(Some(files.clone())), &Environment::default()).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, CredentialsError::Exposed { mode: found, .. } if found == mode),
                "{text}"
            );
            assert!(text.contains(&format!("chmod 600 {}", files.1.display())), "{text}");
        }
    }

    #[test]
    fn none_names_all_three_places() {
        let text = Credentials::find(&leg(None), &Environment::default()).unwrap_err().to_string();
        for place in ["LoadCredential=", ID_FILE, "key_file", "$B2_APPLICATION_KEY_ID"] {
            assert!(text.contains(place), "{text}");
        }
    }

    #[test]
    fn half_a_pair_is_an_error_that_names_the_other_half() {
        let text = Credentials::find(&leg(None), &environment(&[("B2_ACCOUNT_KEY", "x")])).unwrap_err();
        assert!(text.to_string().contains("B2_ACCOUNT_KEY without B2_ACCOUNT_ID"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join(KEY_FILE), "x", 0o400);
        let directory = [(DIRECTORY, dir.path().to_str().unwrap())];
        let error = Credentials::find(&leg(None), &environment(&directory)).unwrap_err();
        assert!(matches!(error, CredentialsError::Half { .. }), "{error}");
        let files = Some((dir.path().join("gone"), dir.path().join(KEY_FILE)));
        let error = Credentials::find(&leg(files), &Environment::default()).unwrap_err();
        assert!(matches!(error, CredentialsError::Read { .. }), "{error}");
    }

    #[test]
    fn what_is_no_line_of_text_is_no_key() {
        for bad in ["", " \n", "two\nlines"] {
            let given = environment(&[("B2_APPLICATION_KEY_ID", "id"), ("B2_APPLICATION_KEY", bad)]);
            assert!(Credentials::find(&leg(None), &given).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn neither_the_credentials_nor_the_environment_show_the_key() {
        let given = environment(&[("B2_APPLICATION_KEY_ID", "id"), ("B2_APPLICATION_KEY", "hush")]);
        let found = Credentials::find(&leg(None), &given).unwrap();
        assert_eq!(found.key.expose_secret(), "hush");
        assert!(!format!("{found:?} {given:?}").contains("hush"));
    }
}
