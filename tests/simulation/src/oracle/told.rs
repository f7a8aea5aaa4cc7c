//! What people are told of a run must be true: counts, exit code, words.

use shared::exit::{Exit, gravest};
use syncer::report::Report;

use super::requests::Counts;
use super::{Invariant, Violation};

/// Compares a report with what the destination saw of the run.
pub fn check(report: &Report, counts: Counts) -> Result<(), Violation> {
    let wrong = |what: String| Err(Violation::new(Invariant::Told, what));
    if report.files_sent != counts.files {
        return wrong(format!("{} files sent, it says; they were {}", report.files_sent, counts.files));
    }
    if report.removed != counts.removed {
        return wrong(format!("{} removed, it says; they were {}", report.removed, counts.removed));
    }
    if report.exit != gravest(report.outcomes.iter().copied()) {
        return wrong(format!("{:?} is not the gravest of {:?}", report.exit, report.outcomes));
    }
    if report.exit != Exit::Ok {
        return Ok(());
    }
    let failed = report.roots.iter().any(|root| root.unproven.is_some());
    if failed || report.guard.is_some() || report.tracker.is_some() || report.held > 0 || report.aborted {
        return wrong(format!("exit 0 of a run that was hindered:\n{}", report.text()));
    }
    Ok(())
}
