//! The figures for people: at most 80 columns but for paths, and in colour what needs attention.

use shared::clock;
use shared::status::{FilesystemStatus, RootStatus, Status};

use super::super::table;
use super::journal::{JournalStats, LegCounts};
use super::{HANGS, NOT_RUNNING, Stats};

const COLUMNS: usize = 80;
/// Where the text of a labelled line begins.
const INDENT: usize = 10;
/// Of the busiest directories and processes, so many are shown.
const SHOWN: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Head,
    Trouble,
}

#[derive(Debug, Default)]
pub struct Page {
    lines: Vec<(Style, String)>,
}

impl Page {
    fn add(&mut self, style: Style, text: String) {
        self.lines.push((style, text));
    }

    pub fn blank(&mut self) {
        self.add(Style::Plain, String::new());
    }

    /// A label, and text that goes on below itself.
    fn labelled(&mut self, style: Style, label: &str, text: &str) {
        for (n, part) in wrap(text, COLUMNS - INDENT).into_iter().enumerate() {
            let label = if n == 0 { label } else { "" };
            self.add(style, format!("{label:<INDENT$}{part}"));
        }
    }

    pub fn trouble(&mut self, text: &str) {
        wrap(text, COLUMNS).into_iter().for_each(|line| self.add(Style::Trouble, line));
    }

    pub fn remark(&mut self, text: &str) {
        wrap(text, COLUMNS).into_iter().for_each(|line| self.add(Style::Plain, line));
    }

    /// `is_trouble` is asked for each row.
    pub fn table(
        &mut self,
        header: &[&str],
        right: &[usize],
        rows: &[Vec<String>],
        is_trouble: impl Fn(usize) -> bool,
    ) {
        for (n, line) in table(header, right, rows).lines().enumerate() {
            let style = match n {
                0 => Style::Head,
                n if is_trouble(n - 1) => Style::Trouble,
                _ => Style::Plain,
            };
            self.add(style, line.to_owned());
        }
    }

    /// All lines, or what fits into so many columns and rows.
    pub fn render(&self, colour: bool, size: Option<(usize, usize)>) -> String {
        let (columns, rows) = size.unwrap_or((usize::MAX, usize::MAX));
        let mut out = String::new();
        for (style, text) in self.lines.iter().take(rows) {
            let text: String = text.chars().take(columns).collect();
            match style {
                Style::Head if colour => out.push_str(&format!("\x1b[1m{text}\x1b[0m\n")),
                Style::Trouble if colour => out.push_str(&format!("\x1b[31m{text}\x1b[0m\n")),
                _ => out.push_str(&format!("{text}\n")),
            }
        }
        out
    }
}

pub(super) fn of(stats: &Stats) -> Page {
    let mut page = Page::default();
    tracker(&mut page, stats);
    if let Some(journal) = &stats.journal {
        let oldest =
            journal.oldest_ns.map_or(String::new(), |t| format!(", the oldest of {}", clock::show(t)));
        let collapses = stats.status.as_ref().map_or(0, |s| s.collapses);
        let collapses = if collapses > 0 { format!(", collapses {collapses}") } else { String::new() };
        page.labelled(
            Style::Plain,
            "journal",
            &format!("{} entries{oldest}, head {}{collapses}", journal.entries, journal.head),
        );
    }
    if let Some(status) = &stats.status {
        roots(&mut page, &status.roots, stats.journal.as_ref());
    }
    if let Some(journal) = &stats.journal {
        legs(&mut page, &journal.legs);
        for gap in &journal.gaps {
            let count = if gap.count > 1 { format!("{} times, ", gap.count) } else { String::new() };
            page.remark(&format!("{}: gap {} is open: {count}{} old", gap.root, gap.cause, age(gap.age_ns)));
        }
    }
    if let Some(status) = &stats.status {
        remarks(&mut page, status);
        status.filesystems.iter().for_each(|fs| filesystem(&mut page, fs));
    }
    page
}

pub(in crate::commands) fn tracker(page: &mut Page, stats: &Stats) {
    let (style, text) = match (&stats.status, stats.tracker) {
        (Some(s), NOT_RUNNING) => {
            (Style::Trouble, format!("not running (last seen {})", clock::show(s.written_ns)))
        }
        (None, NOT_RUNNING) => (Style::Trouble, "not running".to_owned()),
        (None, condition) => (Style::Plain, format!("{condition}, its status is not written yet")),
        (Some(s), condition) => {
            let up = stats.uptime_ns.map_or_else(|| clock::show(s.started_ns), age);
            let probe = age(stats.probe_age_ns.unwrap_or(0));
            let style = if condition == HANGS { Style::Trouble } else { Style::Plain };
            (style, format!("{condition}, pid {}, up {up}, last probe {probe} ago", s.pid))
        }
    };
    page.labelled(style, "tracker", &text);
    if let (Some(s), Some(up)) = (&stats.status, stats.uptime_ns) {
        let percent = s.cpu_ns as f64 * 100.0 / up.max(1) as f64;
        page.labelled(
            Style::Plain,
            "",
            &format!("memory {}, CPU {} ({percent:.2} %)", bytes(s.rss_bytes), age(s.cpu_ns as i64)),
        );
    }
}

fn roots(page: &mut Page, roots: &[RootStatus], journal: Option<&JournalStats>) {
    let row = |r: &RootStatus| {
        let counts = journal.and_then(|j| j.roots.iter().find(|c| c.name == r.name));
        let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        vec![
            r.name.clone(),
            r.state.clone(),
            r.source.clone(),
            number(counts.map(|c| c.pending)),
            number(counts.map(|c| c.gaps)),
            r.path.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = roots.iter().map(row).collect();
    page.blank();
    page.table(&["ROOT", "STATE", "SOURCE", "PENDING", "GAPS", "PATH"], &[3, 4], &rows, |n| {
        roots[n].state != "ok"
    });
}

fn legs(page: &mut Page, legs: &[LegCounts]) {
    if legs.is_empty() {
        return;
    }
    let row = |l: &LegCounts| {
        let last = match (l.known, l.last_ack_ns) {
            (false, _) => "never run".to_owned(),
            (true, 0) => "-".to_owned(),
            (true, at) => clock::show(at),
        };
        let unsynced = match (l.known, l.unsynced_age_ns) {
            (false, _) => "everything".to_owned(),
            (true, None) => "-".to_owned(),
            (true, Some(for_ns)) => age(for_ns),
        };
        vec![l.name.clone(), l.pending.to_string(), l.deferred.to_string(), unsynced, last]
    };
    let rows: Vec<Vec<String>> = legs.iter().map(row).collect();
    page.blank();
    page.table(&["LEG", "PENDING", "DEFERRED", "UNSYNCED FOR", "LAST ACK"], &[1, 2], &rows, |_| false);
    page.blank();
    for leg in legs {
        if leg.roots.len() > 1 {
            let roots: Vec<String> = leg.roots.iter().map(|r| format!("{} {}", r.name, r.pending)).collect();
            page.remark(&format!("{}: pending by root: {}", leg.name, roots.join(", ")));
        }
        if !leg.owed.is_empty() {
            let owed: Vec<String> = leg
                .owed
                .iter()
                .map(|o| format!("{} {} (oldest of {})", o.count, o.class, clock::show(o.oldest_ns)))
                .collect();
            page.remark(&format!("{}: deferred: {}", leg.name, owed.join(", ")));
        }
    }
}

/// Why a root has its state and source, what is not seen, and the last errors.
pub fn remarks(page: &mut Page, status: &Status) {
    for root in &status.roots {
        if !root.state_reason.is_empty() {
            page.trouble(&format!("{}: {}: {}", root.name, root.state, root.state_reason));
        }
        if !root.source_reason.is_empty() {
            page.remark(&format!("{}: {} because {}", root.name, root.source, root.source_reason));
        }
        if !root.blind_spots.is_empty() {
            page.remark(&format!("{}: not seen: {}", root.name, root.blind_spots.join(", ")));
        }
    }
    for fs in status.filesystems.iter().filter(|f| !f.last_error.is_empty()) {
        page.trouble(&format!("{}: error: {}", fs.name, fs.last_error));
    }
}

fn filesystem(page: &mut Page, fs: &FilesystemStatus) {
    page.blank();
    page.add(Style::Head, fs.name.clone());
    let (k, r) = (&fs.kinds, &fs.rates);
    let mut line = |label: &str, text: String| page.labelled(Style::Plain, label, &text);
    line(
        " events",
        format!(
            "{} read, {:.1} /s over a minute, {:.1} /s over ten; {} not ours",
            fs.events_read, r.per_second_1m, r.per_second_10m, fs.dropped
        ),
    );
    line(
        "",
        format!(
            "create {}, delete {}, modify {}, close-write {}, attrib {}, rename {}; of directories {}",
            k.create, k.delete, k.modify, k.close_write, k.attrib, k.rename, k.directories
        ),
    );
    let queue =
        fs.queue.map_or("not known".to_owned(), |q| format!("{} at {}", q.events, clock::show(q.at_ns)));
    line(" queue", queue);
    let b = &fs.buffer;
    line(
        " buffer",
        format!("{} of {}, at most {} so far", bytes(b.bytes), bytes(b.bytes_max), bytes(b.bytes_peak)),
    );
    line(
        " entries",
        format!(
            "{} written, {} changes coalesced, {} merged in their batch",
            fs.entries, fs.coalesced, fs.merged
        ),
    );
    let l = &fs.commit_latency;
    let [p50, p90, p99, max] = [l.p50_us, l.p90_us, l.p99_us, l.max_us].map(|us| us as f64 / 1_000.0);
    line(
        " commits",
        format!("{}; p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms", fs.commits),
    );
    line(" caches", format!("{} directories", fs.cached_dirs));
    let losses = format!("overflows {}, gaps {}, doubts {}", fs.overflows, fs.gaps, fs.doubts);
    let style = if fs.overflows > 0 { Style::Trouble } else { Style::Plain };
    page.labelled(style, " losses", &losses);
    busiest(page, fs);
}

/// Of the last hour. Paths are never cut or wrapped.
fn busiest(page: &mut Page, fs: &FilesystemStatus) {
    let mut label = " busiest";
    for dir in fs.top_dirs.iter().take(SHOWN) {
        page.add(Style::Plain, format!("{label:<INDENT$}{:>9} {}: {}", dir.changes, dir.root, dir.path));
        label = "";
    }
    label = " writers";
    for process in fs.top_processes.iter().take(SHOWN) {
        let name = if process.name.is_empty() { "(ended)" } else { &process.name };
        page.add(Style::Plain, format!("{label:<INDENT$}{:>9} {name}, pid {}", process.events, process.pid));
        label = "";
    }
}

/// Words in lines of so many columns; a longer word has a line of its own.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A duration in its two largest units.
fn age(ns: i64) -> String {
    let seconds = ns.max(0) / 1_000_000_000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1_024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
pub(in crate::commands) mod tests {
    use super::*;
    use shared::path::RelPath;
    use shared::status::{Queue, TopDir, TopProcess};

    pub fn status(pid: u32, boot_id: &str) -> Status {
        Status {
            schema: 1,
            version: String::new(),
            pid,
            boot_id: boot_id.to_owned(),
            started_ns: 0,
            started_boot_ns: 0,
            written_ns: 0,
            probed_boot_ns: 0,
            rss_bytes: 0,
            cpu_ns: 0,
            collapses: 0,
            roots: Vec::new(),
            filesystems: Vec::new(),
        }
    }

    fn busy() -> Stats {
        let mut status = status(12_345, "");
        status.roots.push(RootStatus {
            name: "space".into(),
            path: "/space".into(),
            state: "failing".into(),
            state_reason: "it cannot be listed: Input/output error (os error 5), and that is said at some length".into(),
            source: "inotify".into(),
            source_reason: "fanotify needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH (EPERM)".into(),
            blind_spots: crate::intake::Kind::Inotify.blind_spots("ext4"),
        });
        let many = 12_345_678_901;
        let mut fs = FilesystemStatus {
            name: "ext4 7f5e508d-6f4c-4f36-9d5c-0d6c6c6c2f11".into(),
            events_read: many,
            dropped: many,
            entries: many,
            coalesced: many,
            merged: many,
            commits: many,
            overflows: 1,
            queue: Some(Queue { events: many, at_ns: 0 }),
            last_error: "a\tfault".into(),
            ..FilesystemStatus::default()
        };
        fs.kinds.create = many;
        fs.kinds.directories = many;
        fs.rates.per_second_1m = 123_456.78;
        fs.commit_latency.max_us = 123_456_789;
        fs.top_dirs =
            vec![TopDir { root: "space".into(), path: RelPath::parse(b"a\xffb").unwrap(), changes: many }];
        fs.top_processes = vec![TopProcess { pid: 77, name: String::new(), events: 5 }];
        status.filesystems.push(fs);
        let leg = LegCounts {
            name: "b2".into(),
            known: true,
            claimed: 1,
            acked: 1,
            pending: many,
            deferred: 3,
            last_ack_ns: 1,
            unsynced_since_ns: Some(1),
            unsynced_age_ns: Some(90_000_000_000_000),
            roots: Vec::new(),
            owed: Vec::new(),
        };
        let journal = JournalStats {
            head: many,
            floor: 0,
            entries: many,
            oldest_ns: Some(0),
            roots: Vec::new(),
            legs: vec![leg],
            gaps: Vec::new(),
        };
        Stats {
            schema: 1,
            tracker: HANGS,
            probe_age_ns: Some(75_000_000_000),
            uptime_ns: Some(200_000_000_000_000),
            coalesced_share: None,
            status: Some(status),
            journal: Some(journal),
        }
    }

    #[test]
    fn no_line_is_wider_than_eighty_columns_and_all_is_said() {
        let text = of(&busy()).render(false, None);
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for needle in [
            "hangs, pid 12345, up 2 d 7 h, last probe 1 min 15 s ago",
            "said at some length",
            "inotify because fanotify needs",
            "other hard-link names of a watched file",
            "1 d 1 h",
            "a\\xffb",
            "(ended), pid 77",
            "max 123456.8 ms",
        ] {
            assert!(words.contains(needle), "{needle}: {text}");
        }
    }

    #[test]
    fn colour_marks_what_needs_attention_and_nothing_is_coloured_where_it_is_not_wanted() {
        let page = of(&busy());
        assert!(!page.render(false, None).contains('\x1b'));
        let coloured = page.render(true, None);
        for needle in ["\x1b[31mtracker   hangs", "\x1b[31mspace  failing", "\x1b[31m losses", "\x1b[1mROOT"]
        {
            assert!(coloured.contains(needle), "{needle:?} {coloured:?}");
        }
    }

    #[test]
    fn on_a_small_terminal_the_page_is_cut_to_it() {
        let text = of(&busy()).render(false, Some((30, 4)));
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().all(|line| line.chars().count() <= 30));
    }

    #[test]
    fn ages_and_sizes_are_told_in_units_that_people_read() {
        let s = 1_000_000_000;
        let ages = [-5, 59 * s, 61 * s, 3_700 * s, 90_000 * s].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!([1_023, 1_024, 5 << 20].map(bytes), ["1023 B", "1.0 KiB", "5.0 MiB"]);
    }
}
