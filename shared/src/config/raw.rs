//! The file as it was typed, and the checks that make a [`Config`] of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::types::{AbsolutePath, ByteSize, Name};
use super::{B2Leg, Config, ConfigError, Deletes, DirLeg, GuardLimits, Leg, LegKind, LegRoot, Root};
use crate::identity::Identity;
use crate::limits;
use crate::path::RelPath;
use crate::rules::Rules;

const DEFAULT_STATE_DIR: &str = "/var/lib/longshore";
const DEFAULT_RUNTIME_DIR: &str = "/run/longshore";
const DEFAULT_ENDPOINT: &str = "https://api.backblazeb2.com";
const DEFAULT_TRANSFERS: usize = 16;
const DEFAULT_TRASH_DAYS: u32 = 30;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    state_dir: Option<Spanned<AbsolutePath>>,
    runtime_dir: Option<Spanned<AbsolutePath>>,
    max_entries: Option<Spanned<u64>>,
    #[serde(default)]
    root: Vec<RawRoot>,
    #[serde(default)]
    leg: Vec<RawLeg>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoot {
    name: Spanned<Name>,
    path: Spanned<AbsolutePath>,
    identity: Option<Identity>,
    #[serde(default)]
    exclude: Vec<Spanned<String>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Kind {
    B2,
    Dir,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLeg {
    name: Spanned<Name>,
    kind: Spanned<Kind>,
    roots: Spanned<Vec<Spanned<RootRef>>>,
    #[serde(default)]
    guard: RawGuard,
    deletes: Option<Deletes>,
    transfers: Option<Spanned<usize>>,
    bucket: Option<Spanned<String>>,
    prefix: Option<Spanned<String>>,
    endpoint: Option<Spanned<String>>,
    key_id_file: Option<Spanned<AbsolutePath>>,
    key_file: Option<Spanned<AbsolutePath>>,
    path: Option<Spanned<AbsolutePath>>,
    trash_days: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a root's name, or { root = NAME, prefix = PATH }")]
enum RootRef {
    Name(String),
    WithPrefix(RawLegRoot),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLegRoot {
    root: String,
    #[serde(default)]
    prefix: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawGuard {
    deletes: Option<u64>,
    delete_bytes: Option<ByteSize>,
    delete_percent: Option<Spanned<f64>>,
}

/// A finding at a byte offset of the text.
struct Finding {
    at: usize,
    message: String,
}

fn at<T>(value: &Spanned<T>, message: impl Into<String>) -> Finding {
    Finding { at: value.span().start, message: message.into() }
}

pub(super) fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let raw: RawConfig = toml::from_str(text).map_err(|e| ConfigError::Parse {
        file: file.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    })?;
    build(file, raw).map_err(|finding| {
        let before = &text[..finding.at.min(text.len())];
        ConfigError::Invalid {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.chars().rev().take_while(|&c| c != '\n').count() + 1,
            message: finding.message,
        }
    })
}

fn build(file: &Path, raw: RawConfig) -> Result<Config, Finding> {
    let mut roots: Vec<Root> = Vec::new();
    let mut paths_at = Vec::new();
    for raw_root in raw.root {
        paths_at.push(raw_root.path.span().start);
        roots.push(build_root(raw_root, &roots)?);
    }
    let state_dir = build_own_dir("state_dir", raw.state_dir, DEFAULT_STATE_DIR, &roots, &paths_at)?;
    let runtime_dir = build_own_dir("runtime_dir", raw.runtime_dir, DEFAULT_RUNTIME_DIR, &roots, &paths_at)?;
    let max_entries = match &raw.max_entries {
        Some(n) if !limits::ENTRIES_MAX_RANGE.contains(n.get_ref()) => {
            let (least, most) = (limits::ENTRIES_MAX_RANGE.start(), limits::ENTRIES_MAX_RANGE.end());
            return Err(at(n, format!("`max_entries` must lie between {least} and {most}")));
        }
        Some(n) => *n.get_ref(),
        None => limits::ENTRIES_MAX,
    };
    let mut legs: Vec<Leg> = Vec::new();
    for raw_leg in raw.leg {
        let name = &raw_leg.name;
        if legs.iter().any(|l| &l.name == name.get_ref()) {
            return Err(at(name, format!("the leg `{}` is named twice", name.get_ref())));
        }
        let roots_at = raw_leg.roots.span().start;
        let leg = build_leg(raw_leg, &roots)?;
        check_places(&leg, &legs).map_err(|message| Finding { at: roots_at, message })?;
        legs.push(leg);
    }
    Ok(Config { file: file.to_owned(), state_dir, runtime_dir, max_entries, roots, legs })
}

/// Nothing below a directory of our own is tracked, so none may hold a root. The other way round is allowed.
fn build_own_dir(
    key: &str,
    typed: Option<Spanned<AbsolutePath>>,
    default: &str,
    roots: &[Root],
    paths_at: &[usize],
) -> Result<PathBuf, Finding> {
    let typed_at = typed.as_ref().map(|p| p.span().start);
    let dir = typed.map_or_else(|| default.into(), |p| p.into_inner().0);
    match roots.iter().zip(paths_at).find(|(root, _)| root.path.starts_with(&dir)) {
        Some((root, path_at)) => Err(Finding {
            at: typed_at.unwrap_or(*path_at),
            message: format!(
                "`{key}` ({}) is or holds the root `{}` ({}): nothing in it would be tracked. Choose a directory that no root lies in",
                dir.display(),
                root.name,
                root.path.display()
            ),
        }),
        None => Ok(dir),
    }
}

fn build_root(raw: RawRoot, known: &[Root]) -> Result<Root, Finding> {
    let name = raw.name.get_ref();
    if known.iter().any(|r| &r.name == name) {
        return Err(at(&raw.name, format!("the root `{name}` is named twice")));
    }
    if let Some(other) = known.iter().find(|r| r.path == raw.path.get_ref().0) {
        return Err(at(&raw.path, format!("the root `{}` has this path already", other.name)));
    }
    for pattern in &raw.exclude {
        Rules::new(std::slice::from_ref(pattern.get_ref())).map_err(|e| at(pattern, e.to_string()))?;
    }
    let patterns: Vec<String> = raw.exclude.iter().map(|p| p.get_ref().clone()).collect();
    let rules = Rules::new(&patterns).map_err(|e| at(&raw.name, e.to_string()))?;
    Ok(Root { name: name.clone(), path: raw.path.into_inner().0, identity: raw.identity, rules })
}

fn build_leg(mut raw: RawLeg, roots: &[Root]) -> Result<Leg, Finding> {
    let leg_roots = build_leg_roots(&raw, roots)?;
    let transfers = match &raw.transfers {
        Some(n) if !(1..=256).contains(n.get_ref()) => {
            return Err(at(n, "`transfers` must lie between 1 and 256"));
        }
        Some(n) => *n.get_ref(),
        None => DEFAULT_TRANSFERS,
    };
    let guard = build_guard(&raw.guard)?;
    let kind = match raw.kind.get_ref() {
        Kind::B2 => LegKind::B2(build_b2(&mut raw)?),
        Kind::Dir => LegKind::Dir(build_dir(&mut raw)?),
    };
    Ok(Leg {
        name: raw.name.into_inner(),
        roots: leg_roots,
        guard,
        deletes: raw.deletes.unwrap_or(Deletes::Hide),
        transfers,
        kind,
    })
}

fn build_leg_roots(raw: &RawLeg, roots: &[Root]) -> Result<Vec<LegRoot>, Finding> {
    if raw.roots.get_ref().is_empty() {
        return Err(at(&raw.roots, "a leg needs at least one root"));
    }
    let mut out: Vec<LegRoot> = Vec::new();
    for reference in raw.roots.get_ref() {
        let (root, prefix) = match reference.get_ref() {
            RootRef::Name(name) => (name.as_str(), ""),
            RootRef::WithPrefix(r) => (r.root.as_str(), r.prefix.as_str()),
        };
        let Some(root) = roots.iter().find(|r| r.name.as_str() == root) else {
            return Err(at(reference, format!("there is no root named `{root}`")));
        };
        if out.iter().any(|r| r.root == root.name) {
            return Err(at(reference, format!("the root `{}` is listed twice", root.name)));
        }
        let prefix = parse_prefix(prefix).map_err(|m| at(reference, m))?;
        if let Some(other) = out.iter().find(|o| overlap(&o.prefix, &prefix)) {
            return Err(at(reference, format!("its prefix and that of the root `{}` overlap", other.root)));
        }
        out.push(LegRoot { root: root.name.clone(), prefix });
    }
    Ok(out)
}

fn build_guard(raw: &RawGuard) -> Result<GuardLimits, Finding> {
    let default = GuardLimits::default();
    let delete_percent = match &raw.delete_percent {
        Some(p) if !(0.0..=100.0).contains(p.get_ref()) => {
            return Err(at(p, "`delete_percent` must lie between 0 and 100"));
        }
        Some(p) => *p.get_ref(),
        None => default.delete_percent,
    };
    Ok(GuardLimits {
        deletes: raw.deletes.unwrap_or(default.deletes),
        delete_bytes: raw.delete_bytes.map(|b| b.0),
        delete_percent,
    })
}

fn build_b2(raw: &mut RawLeg) -> Result<B2Leg, Finding> {
    refuse(&raw.path, "path", Kind::B2)?;
    refuse(&raw.trash_days, "trash_days", Kind::B2)?;
    let Some(bucket) = raw.bucket.take() else {
        return Err(at(&raw.kind, "a leg of kind `b2` needs `bucket`"));
    };
    let prefix = match raw.prefix.take() {
        Some(text) => parse_prefix(text.get_ref()).map_err(|m| at(&text, m))?,
        None => RelPath::root(),
    };
    let endpoint = match raw.endpoint.take() {
        Some(url) if !endpoint_allowed(url.get_ref()) => {
            return Err(at(&url, "the endpoint must begin with https:// (http:// only for 127.0.0.1)"));
        }
        Some(url) => url.into_inner().trim_end_matches('/').to_owned(),
        None => DEFAULT_ENDPOINT.to_owned(),
    };
    let key_files = match (raw.key_id_file.take(), raw.key_file.take()) {
        (Some(id), Some(key)) => Some((id.into_inner().0, key.into_inner().0)),
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => {
            return Err(at(&one, "`key_id_file` and `key_file` belong together"));
        }
    };
    Ok(B2Leg { bucket: bucket.into_inner(), prefix, endpoint, key_files })
}

fn build_dir(raw: &mut RawLeg) -> Result<DirLeg, Finding> {
    refuse(&raw.bucket, "bucket", Kind::Dir)?;
    refuse(&raw.prefix, "prefix", Kind::Dir)?;
    refuse(&raw.endpoint, "endpoint", Kind::Dir)?;
    refuse(&raw.key_id_file, "key_id_file", Kind::Dir)?;
    refuse(&raw.key_file, "key_file", Kind::Dir)?;
    let Some(path) = raw.path.take() else {
        return Err(at(&raw.kind, "a leg of kind `dir` needs `path`"));
    };
    let trash_days = raw.trash_days.take().map_or(DEFAULT_TRASH_DAYS, Spanned::into_inner);
    Ok(DirLeg { path: path.into_inner().0, trash_days })
}

fn refuse<T>(value: &Option<Spanned<T>>, key: &str, kind: Kind) -> Result<(), Finding> {
    match value {
        Some(v) => {
            let kind = format!("{kind:?}").to_lowercase();
            Err(at(v, format!("`{key}` has no meaning for a leg of kind `{kind}`")))
        }
        None => Ok(()),
    }
}

/// Plain http would show the key to the network; loopback is for tests.
fn endpoint_allowed(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://127.0.0.1:")
}

fn parse_prefix(text: &str) -> Result<RelPath, String> {
    RelPath::parse(text.trim_end_matches('/').as_bytes()).map_err(|e| e.to_string())
}

fn overlap(a: &RelPath, b: &RelPath) -> bool {
    a.is_within(b) || b.is_within(a)
}

/// Refuses a leg that would write where another one does.
fn check_places(leg: &Leg, others: &[Leg]) -> Result<(), String> {
    let places = |l: &Leg| -> BTreeMap<String, Vec<RelPath>> {
        let below = |top: &RelPath| l.roots.iter().map(|r| top.join(&r.prefix)).collect();
        match &l.kind {
            LegKind::B2(b2) => [(format!("{} {}", b2.endpoint, b2.bucket), below(&b2.prefix))].into(),
            LegKind::Dir(dir) => [(format!("dir {}", dir.path.display()), below(&RelPath::root()))].into(),
        }
    };
    let mine = places(leg);
    for other in others {
        for (place, prefixes) in places(other) {
            let clash =
                mine.get(&place).is_some_and(|m| m.iter().any(|a| prefixes.iter().any(|b| overlap(a, b))));
            if clash {
                return Err(format!("the prefixes of the legs `{}` and `{}` overlap", leg.name, other.name));
            }
        }
    }
    Ok(())
}
