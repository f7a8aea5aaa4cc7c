//! What is judged of a tracker and its roots, and with which exit code.

use super::*;
use shared::status::FilesystemStatus;

fn config() -> Config {
    let text = "[[root]]\nname = \"a\"\npath = \"/a\"\n[[root]]\nname = \"b\"\npath = \"/b\"\n";
    Config::parse(std::path::Path::new("x"), text).unwrap()
}

fn seen(name: &str, state: &str, source: &str) -> RootStatus {
    RootStatus {
        name: name.to_owned(),
        path: format!("/{name}"),
        state: state.to_owned(),
        state_reason: String::new(),
        source: source.to_owned(),
        source_reason: String::new(),
        blind_spots: Vec::new(),
    }
}

fn stats(tracker: &'static str, roots: Vec<RootStatus>, last_error: &str) -> Stats {
    let filesystem = FilesystemStatus { last_error: last_error.to_owned(), ..FilesystemStatus::default() };
    let status = Status { roots, filesystems: vec![filesystem], ..page::tests::status(1, "") };
    Stats {
        schema: 1,
        tracker,
        probe_age_ns: Some(0),
        uptime_ns: None,
        coalesced_share: None,
        status: Some(status),
        journal: None,
    }
}

fn both(state: &str, source: &str) -> Vec<RootStatus> {
    vec![seen("a", "ok", "fanotify"), seen("b", state, source)]
}

fn told(root: &str, state: &str, heard: Option<bool>) -> Canary {
    let (root, state, source) = (root.to_owned(), state.to_owned(), "fanotify".to_owned());
    Canary { root, state, state_reason: String::new(), source, heard }
}

/// (exit code, is a, is b healthy)
fn outcome(stats: &Stats, canaries: Option<Vec<Canary>>) -> (u8, bool, bool) {
    let health = judge(&config(), stats, canaries.map(Ok));
    assert_eq!(health.healthy, health.exit == Exit::Ok);
    (health.exit.code(), health.roots[0].healthy, health.roots[1].healthy)
}

#[test]
fn all_roots_must_be_ok_and_served() {
    let good = vec![told("a", "ok", Some(true)), told("b", "ok", None)];
    let ok = stats(RUNNING, both("ok", "inotify"), "");
    assert_eq!(outcome(&ok, Some(good.clone())), (0, true, true));
    for bad in [both("missing", "fanotify"), both("ok", ""), vec![seen("a", "ok", "fanotify")]] {
        let mut canaries = good.clone();
        if let Some(bad) = bad.get(1) {
            canaries[1].state.clone_from(&bad.state);
            canaries[1].source.clone_from(&bad.source);
        }
        assert_eq!(outcome(&stats(RUNNING, bad, ""), Some(canaries)), (5, true, false));
    }
}

#[test]
fn what_the_tracker_answers_is_newer_than_its_file() {
    let file = stats(RUNNING, both("ok", "fanotify"), "");
    let gone = vec![told("a", "ok", Some(true)), told("b", "missing", None)];
    assert_eq!(outcome(&file, Some(gone)), (5, true, false));
    let file = stats(RUNNING, both("missing", "fanotify"), "");
    let back = vec![told("a", "ok", Some(true)), told("b", "ok", Some(true))];
    assert_eq!(outcome(&file, Some(back)), (0, true, true));
}

#[test]
fn a_silent_root_is_not_proven_and_one_that_does_not_answer_is_for_later() {
    let file = stats(RUNNING, both("ok", "fanotify"), "");
    let silent = vec![told("a", "ok", Some(true)), told("b", "ok", Some(false))];
    assert_eq!(outcome(&file, Some(silent)), (5, true, false));
    assert_eq!(outcome(&file, Some(vec![told("a", "ok", Some(true))])), (75, true, false));
}

#[test]
fn a_tracker_that_is_gone_proves_nothing_and_one_that_hangs_says_what_it_knew() {
    assert_eq!(outcome(&stats(NOT_RUNNING, both("missing", ""), ""), None), (75, false, false));
    assert_eq!(outcome(&stats(HANGS, both("ok", "fanotify"), ""), None), (75, false, false));
    assert_eq!(outcome(&stats(HANGS, both("missing", ""), ""), None), (5, false, false));
}

#[test]
fn a_journal_that_takes_nothing_is_trouble() {
    let full = stats(RUNNING, both("ok", "fanotify"), &format!("{JOURNAL_ERROR}: it is full"));
    let health = judge(&config(), &full, None);
    assert_eq!(health.exit, Exit::TryLater);
    assert!(human(&health, &full).contains("not healthy: the journal does not take entries: it is full"));
    assert_eq!(judge(&config(), &stats(RUNNING, both("ok", "fanotify"), "passing"), None).exit, Exit::Ok);
}
