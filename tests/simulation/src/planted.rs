//! Planted mistakes: the catalogue of them, and a copy of the sources into which one at a time is written. Nothing of
//! it is in the programs themselves.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::oracle::Invariant;

/// A mistake that somebody could make.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plant {
    pub name: String,
    /// What goes wrong.
    pub why: String,
    /// Which is expected to catch it.
    pub invariant: Invariant,
    /// The feature that it would be a mistake in, where that is not there yet.
    pub absent: Option<String>,
    #[serde(default, rename = "change")]
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Below the top of the workspace.
    pub file: PathBuf,
    /// Stands there exactly once.
    pub from: String,
    pub to: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PlantError {
    #[error("the catalogue of plants cannot be read: {0}")]
    Catalogue(#[from] toml::de::Error),
    #[error("`{from}` stands {times} times in {}", file.display())]
    Times { file: PathBuf, from: String, times: usize },
    #[error("two changes of {} are of the same place", file.display())]
    Overlap { file: PathBuf },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("git does not list the sources: {0}")]
    Git(String),
}

/// All plants, in the order of the catalogue.
pub fn catalogue() -> Result<Vec<Plant>, PlantError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Catalogue {
        plant: Vec<Plant>,
    }
    Ok(toml::from_str::<Catalogue>(include_str!("../planted.toml"))?.plant)
}

/// Where the workspace lies.
pub fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The text with the changes, each at the only place that it can mean.
pub fn apply(file: &Path, text: &str, changes: &[&Change]) -> Result<String, PlantError> {
    let mut places = BTreeMap::new();
    for change in changes {
        let mut found = text.match_indices(&change.from);
        let (Some((at, _)), None) = (found.next(), found.next()) else {
            let times = text.matches(&change.from).count();
            return Err(PlantError::Times { file: file.to_owned(), from: change.from.clone(), times });
        };
        places.insert(at, change);
    }
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for (at, change) in &places {
        if *at < done || places.len() < changes.len() {
            return Err(PlantError::Overlap { file: file.to_owned() });
        }
        out.push_str(&text[done..*at]);
        out.push_str(&change.to);
        done = at + change.from.len();
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// A copy of the sources, outside of what git sees.
pub struct Copy {
    top: PathBuf,
}

impl Copy {
    /// Brings the copy below `to` in line with the sources below `from`. What is the same stays untouched, so that
    /// nothing is built for it.
    pub fn make(from: &Path, to: &Path) -> Result<Copy, PlantError> {
        let copy = Copy { top: to.to_owned() };
        let names = listed(from)?;
        // A file that left would still be taken for a program or a test by its place.
        for old in files(to)?.into_iter().filter(|old| names.binary_search(old).is_err()) {
            let path = to.join(old);
            fs::remove_file(&path).map_err(|source| PlantError::File { path, source })?;
        }
        for name in names {
            let path = from.join(&name);
            match fs::read(&path) {
                Ok(content) => copy.write(&name, &content)?,
                // Taken away, and not committed yet.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(PlantError::File { path, source }),
            }
        }
        Ok(copy)
    }

    pub fn top(&self) -> &Path {
        &self.top
    }

    /// Writes a plant into the copy; returns what stood there before.
    pub fn plant(&self, plant: &Plant) -> Result<Vec<(PathBuf, String)>, PlantError> {
        let mut by_file: BTreeMap<&Path, Vec<&Change>> = BTreeMap::new();
        plant.changes.iter().for_each(|change| by_file.entry(&change.file).or_default().push(change));
        let mut planted = Vec::new();
        for (file, changes) in by_file {
            let path = self.top.join(file);
            let text = fs::read_to_string(&path).map_err(|source| PlantError::File { path, source })?;
            let changed = apply(file, &text, &changes)?;
            planted.push((file.to_owned(), text, changed));
        }
        for (file, _, changed) in &planted {
            self.write(file, changed.as_bytes())?;
        }
        Ok(planted.into_iter().map(|(file, text, _)| (file, text)).collect())
    }

    /// Takes a plant out again.
    pub fn restore(&self, before: &[(PathBuf, String)]) -> Result<(), PlantError> {
        before.iter().try_for_each(|(file, text)| self.write(file, text.as_bytes()))
    }

    fn write(&self, name: &Path, content: &[u8]) -> Result<(), PlantError> {
        let path = self.top.join(name);
        if fs::read(&path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(&self.top);
        let written = fs::create_dir_all(dir).and_then(|()| fs::write(&path, content));
        written.map_err(|source| PlantError::File { path, source })
    }
}

/// The sources by their names, sorted; new ones too that git was not told of yet.
fn listed(top: &Path) -> Result<Vec<PathBuf>, PlantError> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(top)
        .output()
        .map_err(|e| PlantError::Git(e.to_string()))?;
    if !output.status.success() {
        return Err(PlantError::Git(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let mut names: Vec<PathBuf> =
        names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The files below a directory, by their names from there; none, if it is not there.
fn files(top: &Path) -> Result<Vec<PathBuf>, PlantError> {
    let (mut found, mut left) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(dir) = left.pop() {
        let path = top.join(&dir);
        let entries = match fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            read => read.and_then(|entries| entries.collect::<io::Result<Vec<_>>>()),
        };
        for entry in entries.map_err(|source| PlantError::File { path, source })? {
            let name = dir.join(entry.file_name());
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir { left.push(name) } else { found.push(name) }
        }
    }
    Ok(found)
}

/// What `simulate --json` says at its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Told {
    pub worlds: u64,
    pub failures: Vec<Failure>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Failure {
    pub seed: u64,
    pub invariant: Invariant,
    pub message: String,
}

impl Told {
    /// From the last line of the output; `None` if that is none of it.
    pub fn parse(output: &str) -> Option<Told> {
        serde_json::from_str(output.trim_end().lines().next_back()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn change(from: &str, to: &str) -> Change {
        Change { file: "f".into(), from: from.into(), to: to.into() }
    }

    fn applied(text: &str, changes: &[Change]) -> Result<String, PlantError> {
        apply(Path::new("f"), text, &changes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn every_plant_still_has_its_place_in_the_code() {
        let mut lost = Vec::new();
        for plant in catalogue().unwrap() {
            let mut by_file: BTreeMap<&Path, Vec<&Change>> = BTreeMap::new();
            plant.changes.iter().for_each(|change| by_file.entry(&change.file).or_default().push(change));
            for (file, changes) in by_file {
                let text = fs::read_to_string(top().join(file)).unwrap_or_default();
                if let Err(e) = apply(file, &text, &changes) {
                    lost.push(format!("{}: {e}", plant.name));
                }
            }
        }
        assert!(lost.is_empty(), "follow the code with these plants:\n{}", lost.join("\n"));
    }

    #[test]
    fn the_catalogue_is_whole() {
        let plants = catalogue().unwrap();
        let names: BTreeSet<&str> = plants.iter().map(|plant| plant.name.as_str()).collect();
        assert_eq!(names.len(), plants.len(), "two plants of one name");
        for plant in &plants {
            assert_eq!(plant.absent.is_some(), plant.changes.is_empty(), "{}", plant.name);
            assert!(plant.changes.iter().all(|c| c.from != c.to && !c.from.is_empty()), "{}", plant.name);
            assert!(plant.why.ends_with('.') && !plant.name.ends_with('.'), "{}", plant.name);
        }
    }

    #[test]
    fn changes_are_made_where_they_were_meant_whatever_the_others_write() {
        let changes = [change("b", "c"), change("c", "b")];
        assert_eq!(applied("a b c", &changes).unwrap(), "a c b");
    }

    #[test]
    fn a_change_without_its_one_place_is_refused() {
        let times = |text, from| match applied(text, &[change(from, "x")]) {
            Err(PlantError::Times { times, .. }) => times,
            other => panic!("{other:?}"),
        };
        assert_eq!((times("a b a", "a"), times("a b a", "c")), (2, 0));
        for changes in [[change("ab", "x"), change("bc", "y")], [change("ab", "x"), change("ab", "y")]] {
            assert!(matches!(applied("abc", &changes), Err(PlantError::Overlap { .. })));
        }
    }

    #[test]
    fn a_plant_goes_into_the_copy_and_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let copy = Copy { top: dir.path().to_owned() };
        copy.write(Path::new("f"), b"one two").unwrap();
        copy.write(Path::new("d/g"), b"three").unwrap();
        let other = Change { file: "d/g".into(), ..change("three", "3") };
        let plant = Plant {
            name: "n".into(),
            why: "w".into(),
            invariant: Invariant::Told,
            absent: None,
            changes: vec![change("two", "2"), other],
        };
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let before = copy.plant(&plant).unwrap();
        assert_eq!((read("f"), read("d/g")), ("one 2".to_owned(), "3".to_owned()));
        assert!(copy.plant(&plant).is_err(), "it is there already");
        copy.restore(&before).unwrap();
        assert_eq!((read("f"), read("d/g")), ("one two".to_owned(), "three".to_owned()));
        let mut names = files(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, [PathBuf::from("d/g"), PathBuf::from("f")]);
    }

    #[test]
    fn what_the_simulation_tells_is_read_from_its_last_line() {
        let output = "world 7\n{\"worlds\":8,\"steps\":90,\"failures\":[{\"seed\":7,\"invariant\":\"order\",\"message\":\"m\"}]}\n";
        let failure = Failure { seed: 7, invariant: Invariant::Order, message: "m".into() };
        assert_eq!(Told::parse(output), Some(Told { worlds: 8, failures: vec![failure] }));
        assert_eq!(Told::parse("Killed\n"), None);
        assert_eq!(Told::parse(""), None);
    }
}
