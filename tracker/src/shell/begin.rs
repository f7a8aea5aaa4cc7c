//! What a start makes of the configuration, the journal and the machine: which filesystems there are, and what the slot
//! of each begins with.

use crossbeam_channel::Sender;
use shared::config::Config;
use shared::database::DatabaseError;
use shared::entry::Cause;
use shared::journal::{Journal, RootId, RootRow, Session};
use shared::limits;

use super::slot::{Common, SlotParts};
use super::{Report, RunError};
use crate::host::Host;
use crate::intake::fanotify;
use crate::intake::keep::Keep;
use crate::roots::{Found, TrackedRoot};

/// The parts of all slots, and what else a start learned.
pub struct Begun<H: Host> {
    pub parts: Vec<SlotParts<H>>,
    pub rows: Vec<RootRow>,
    /// To be ended when everything is committed.
    pub session: i64,
    pub boot_id: String,
}

/// The roots of the configuration, as far as they are there.
pub fn tracked_roots(config: &Config, host: &impl Host) -> Result<Vec<TrackedRoot>, RunError> {
    let mut tracked = config.roots.iter().map(unnumbered).collect::<Vec<_>>();
    for root in &mut tracked {
        root.check_at_start(host).map_err(RunError::Root)?;
    }
    Ok(tracked)
}

/// Begins a session. Each slot gets a connection of its own to the journal of the configuration.
pub fn begin<H: Host>(
    config: &Config,
    host: &H,
    mut tracked: Vec<TrackedRoot>,
    journal: &mut Journal,
    common: &Common,
    reports: &Sender<Report>,
) -> Result<Begun<H>, RunError> {
    let now = host.clock().wall_ns();
    let rows = journal.put_roots(&config.roots, now).map_err(RunError::Journal)?;
    for (root, row) in tracked.iter_mut().zip(&rows) {
        root.id = row.id;
        root.changed = row.changed;
    }
    let boot_id = host.boot_id().map_err(|source| RunError::System { op: "read the boot id", source })?;
    let version = env!("CARGO_PKG_VERSION");
    let (session, before) = journal.begin_session(&boot_id, version, now).map_err(RunError::Journal)?;
    let before = before_this(before.as_ref(), &boot_id);
    let names: Vec<String> = tracked.iter().map(filesystem_name).collect();
    let parts = parts(config, host, tracked, before, &boot_id, common, reports)?;
    for name in host.discard_rest() {
        let text = format!("{name} is of no filesystem of the configuration, and is kept no more");
        tracing::info!("{text}");
        journal.add_history(now, "start", None, &text).map_err(RunError::Journal)?;
    }
    forget_filesystems(journal, config, &names).map_err(RunError::Journal)?;
    Ok(Begun { parts, rows, session, boot_id })
}

fn unnumbered(root: &shared::config::Root) -> TrackedRoot {
    TrackedRoot {
        id: RootId(0),
        name: root.name.as_str().to_owned(),
        path: root.path.clone(),
        rules: root.rules.clone(),
        expected: root.identity.clone(),
        is_mount: false,
        changed: false,
    }
}

/// How the tracker before ended, and the cause of the gap if nothing of it can be adopted.
fn before_this(before: Option<&Session>, boot_id: &str) -> (&'static str, Cause) {
    match before {
        None => ("the first start", Cause::Start),
        Some(s) if s.boot_id != boot_id && s.ended => ("after a clean reboot", Cause::Boot),
        Some(s) if s.boot_id != boot_id => ("after a crash of the machine", Cause::Boot),
        Some(s) if s.ended => ("after a clean stop", Cause::Start),
        Some(_) => ("after the tracker was killed", Cause::Start),
    }
}

/// Before the number of a filesystem that has the name of another.
const TWIN: &str = " #";

/// One slot for each filesystem; a root that is not there yet gets one of its own.
fn parts<H: Host>(
    config: &Config,
    host: &H,
    tracked: Vec<TrackedRoot>,
    (before, cause): (&'static str, Cause),
    boot_id: &str,
    common: &Common,
    reports: &Sender<Report>,
) -> Result<Vec<SlotParts<H>>, RunError> {
    let own: Vec<_> =
        [&config.state_dir, &config.runtime_dir].into_iter().filter_map(|d| host.own_dir(d).ok()).collect();
    let groups = by_filesystem(host, tracked);
    if groups.len() > limits::FILESYSTEMS_MAX {
        return Err(RunError::TooManyFilesystems { count: groups.len(), max: limits::FILESYSTEMS_MAX });
    }
    let mut all: Vec<SlotParts<H>> = Vec::new();
    for (number, roots) in groups.into_iter().enumerate() {
        let name = filesystem_name(&roots[0]);
        // Clones have one UUID, and so have two roots of one disk that is not there.
        let twins = all.iter().filter(|other| other.name == name).count();
        let fs_key = if twins == 0 { name.clone() } else { format!("{name}{TWIN}{}", twins + 1) };
        let journal = Journal::create_or_open(&config.journal_path()).map_err(RunError::Journal)?;
        all.push(SlotParts {
            number,
            host: host.clone(),
            keep: Keep::new(host.clone(), &fs_key, boot_id, journal.id()),
            fs_key,
            name,
            roots,
            own: own.clone(),
            journal,
            cause,
            before,
            common: common.clone(),
            reports: reports.clone(),
        });
    }
    Ok(all)
}

fn by_filesystem(host: &impl Host, tracked: Vec<TrackedRoot>) -> Vec<Vec<TrackedRoot>> {
    let all = host.mounts().unwrap_or_default();
    let mut groups: Vec<(Option<u64>, Vec<TrackedRoot>)> = Vec::new();
    for root in tracked {
        let dev = match root.look(host) {
            Found::Ok(open) => Some(fanotify::superblock(&open, &all)),
            Found::Not { .. } => None,
        };
        match groups.iter_mut().find(|(d, _)| dev.is_some() && *d == dev) {
            Some((_, roots)) => roots.push(root),
            None => groups.push((dev, vec![root])),
        }
    }
    // What was kept for a disk goes to the roots that are there, not to one of the same disk that is not.
    groups.sort_by_key(|(dev, _)| dev.is_none());
    groups.into_iter().map(|(_, roots)| roots).collect()
}

/// Type and UUID, or the root's path where there is none.
fn filesystem_name(root: &TrackedRoot) -> String {
    match &root.expected {
        Some(identity) if identity.uuid.is_some() => {
            format!("{} {}", identity.fs, identity.uuid.as_deref().unwrap_or_default())
        }
        Some(identity) => format!("{} at {}", identity.fs, root.path.display()),
        None => root.path.display().to_string(),
    }
}

/// What was known of filesystems without a root is of no use: nothing of their groups is kept any more either, so that
/// one that comes back begins with a gap. A root whose identity nobody wrote down may belong to one of them.
fn forget_filesystems(journal: &mut Journal, config: &Config, names: &[String]) -> Result<(), DatabaseError> {
    if config.roots.iter().any(|root| root.identity.is_none()) {
        return Ok(());
    }
    for fs in journal.forget_filesystems(|fs| is_of(names, fs))? {
        tracing::info!("{fs} has no root any more, and what was known of it is forgotten");
    }
    Ok(())
}

/// Whether a key of the journal is one that a filesystem of these names can have.
fn is_of(names: &[String], fs_key: &str) -> bool {
    let rest = |name: &String| fs_key.strip_prefix(name.as_str());
    names.iter().filter_map(rest).any(|rest| rest.is_empty() || rest.starts_with(TWIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_the_tracker_before_ended_is_told_apart() {
        let session = |boot: &str, ended| Session { boot_id: boot.to_owned(), ended };
        let told = |before: Option<Session>| before_this(before.as_ref(), "now");
        assert_eq!(told(None), ("the first start", Cause::Start));
        assert_eq!(told(Some(session("now", true))), ("after a clean stop", Cause::Start));
        assert_eq!(told(Some(session("now", false))), ("after the tracker was killed", Cause::Start));
        assert_eq!(told(Some(session("then", true))), ("after a clean reboot", Cause::Boot));
        assert_eq!(told(Some(session("then", false))), ("after a crash of the machine", Cause::Boot));
    }

    #[test]
    fn the_twin_of_a_configured_filesystem_is_one_of_them() {
        let names = ["ext4 a".to_owned(), "tmpfs at /t".to_owned()];
        assert!(["ext4 a", "ext4 a #2", "tmpfs at /t"].iter().all(|fs| is_of(&names, fs)));
        assert!(["ext4 ab", "ext4", "tmpfs at /t/x", ""].iter().all(|fs| !is_of(&names, fs)));
    }
}
