//! The guard: judges everything that would be destroyed, together with what was released without approval in the
//! last day and month, before the first of it is. Pure.

use shared::config::GuardLimits;

/// What waits, and what it is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub count: u64,
    pub bytes: u64,
    /// Objects the leg holds, those that wait included.
    pub catalog: u64,
    /// Released without approval in the last 24 hours and 30 days: (count, bytes).
    pub day: (u64, u64),
    pub month: (u64, u64),
    /// A root whose every object would go.
    pub empties_a_root: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing waits.
    Clear,
    Release,
    /// Held, with the reason for people.
    Trip(String),
}

const MONTH_FACTOR: u64 = 10;

pub fn judge(load: &Load, limits: &GuardLimits) -> Judgement {
    if load.count == 0 {
        return Judgement::Clear;
    }
    if load.empties_a_root {
        return Judgement::Trip("a root would be left without a single object".into());
    }
    let share = (load.catalog as f64 * limits.delete_percent / 100.0) as u64;
    let count_limit = limits.deletes.max(share);
    let (day, month) = (load.count + load.day.0, load.count + load.month.0);
    if day > count_limit {
        return Judgement::Trip(format!(
            "{day} deletes within 24 hours, {count_limit} are allowed without approval"
        ));
    }
    if month > count_limit.saturating_mul(MONTH_FACTOR) {
        let allowed = count_limit.saturating_mul(MONTH_FACTOR);
        return Judgement::Trip(format!(
            "{month} deletes within 30 days, {allowed} are allowed without approval"
        ));
    }
    if let Some(limit) = limits.delete_bytes {
        let (day, month) = (load.bytes + load.day.1, load.bytes + load.month.1);
        if day > limit || month > limit.saturating_mul(MONTH_FACTOR) {
            return Judgement::Trip(format!(
                "{day} bytes of deletes within 24 hours ({month} within 30 days), {limit} a day are allowed without approval"
            ));
        }
    }
    Judgement::Release
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> GuardLimits {
        GuardLimits { deletes: 5, delete_bytes: None, delete_percent: 0.5 }
    }

    fn load(count: u64) -> Load {
        Load { count, catalog: 100, ..Load::default() }
    }

    fn trips(load: Load, limits: &GuardLimits) -> bool {
        matches!(judge(&load, limits), Judgement::Trip(_))
    }

    #[test]
    fn nothing_waiting_is_clear() {
        assert_eq!(judge(&load(0), &limits()), Judgement::Clear);
    }

    #[test]
    fn the_whole_plan_is_judged_not_its_first_rows() {
        assert_eq!(judge(&load(5), &limits()), Judgement::Release);
        assert!(trips(load(6), &limits()));
    }

    #[test]
    fn the_same_number_every_night_adds_up() {
        assert!(trips(Load { day: (1, 0), ..load(5) }, &limits()));
        assert!(trips(Load { month: (46, 0), ..load(5) }, &limits()));
        assert_eq!(judge(&Load { month: (45, 0), ..load(5) }, &limits()), Judgement::Release);
    }

    #[test]
    fn a_large_catalog_allows_its_share() {
        assert_eq!(
            judge(&Load { count: 500, catalog: 100_000, ..Load::default() }, &limits()),
            Judgement::Release
        );
        assert!(trips(Load { count: 501, catalog: 100_000, ..Load::default() }, &limits()));
    }

    #[test]
    fn bytes_count_where_they_are_limited() {
        let limits = GuardLimits { delete_bytes: Some(100), ..limits() };
        assert!(trips(Load { bytes: 101, ..load(1) }, &limits));
        assert!(trips(Load { bytes: 60, day: (1, 50), ..load(1) }, &limits));
        assert_eq!(judge(&Load { bytes: 100, ..load(1) }, &limits), Judgement::Release);
    }

    #[test]
    fn a_root_is_never_emptied_silently() {
        assert!(trips(Load { empties_a_root: true, ..load(1) }, &limits()));
    }
}
