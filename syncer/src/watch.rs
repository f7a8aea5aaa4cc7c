//! `syncer watch`: a run of each leg that does not end. Between its rounds it waits for the tracker to commit
//! something, or for something owed to come due.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shared::clock::{Clock as _, SystemClock};
use shared::config::Leg;
use shared::control::{self, Answer, Request};
use shared::exit::{Exit, gravest};
use tokio::sync::watch;

use crate::commands::{Context, Wish, print, run_leg_with, write_marker};
use crate::report::Report;
use crate::run::Rest;

/// Between two attempts to reach a tracker that does not answer.
const RECONNECT: Duration = Duration::from_secs(5);
/// Before a run that failed for a passing reason begins again, and before what could not be done is looked at again.
const RETRY: Duration = Duration::from_secs(60);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(3600);

/// Watches all legs; ends when asked to, or when no leg can go on.
pub async fn watch(context: &Context, legs: &[&Leg]) -> Exit {
    let (changed, woken) = watch::channel(0u64);
    let socket = context.config.control_path();
    std::thread::spawn(move || listen(&socket, &changed));
    let watches = legs.iter().map(|leg| watch_leg(context, leg, woken.clone()));
    gravest(futures_util::future::join_all(watches).await)
}

/// A leg that only its owner can help rests alone; the others go on.
async fn watch_leg(context: &Context, leg: &Leg, woken: watch::Receiver<u64>) -> Exit {
    loop {
        let rest = BetweenRounds { context, leg, woken: woken.clone(), said: String::new() };
        let report = run_leg_with(context, leg, Wish::default(), Some(Box::new(rest))).await;
        if context.stop.load(Ordering::Relaxed) {
            return Exit::Ok;
        }
        say(context, &report);
        if matches!(report.exit, Exit::Config | Exit::Refused) {
            return report.exit;
        }
        tokio::select! {
            () = stopped(&context.stop) => return Exit::Ok,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct BetweenRounds<'a> {
    context: &'a Context,
    leg: &'a Leg,
    woken: watch::Receiver<u64>,
    /// The trouble that was said last: it is said once.
    said: String,
}

#[async_trait(?Send)]
impl Rest for BetweenRounds<'_> {
    async fn rest(&mut self, report: &Report, due_ns: Option<i64>) -> bool {
        let trouble = if report.exit == Exit::Ok { String::new() } else { report.troubles_text() };
        if report.did_something() || trouble != self.said {
            say(self.context, report);
            write_marker(self.context, self.leg, report);
        }
        self.said = trouble;
        let wait = due_ns.map_or(REST_MAX, |due| {
            let until = due.saturating_sub(SystemClock.wall_ns());
            // What is due and was not done (a disk that is away) waits a while.
            if until <= 0 { RETRY } else { Duration::from_nanos(until as u64).min(REST_MAX) }
        });
        tokio::select! {
            () = stopped(&self.context.stop) => false,
            () = tokio::time::sleep(wait) => true,
            // The listener lives as long as the process.
            changed = self.woken.changed() => changed.is_ok(),
        }
    }
}

fn say(context: &Context, report: &Report) {
    if let Err(e) = print(context, report) {
        tracing::error!("{e:#}");
    }
}

/// Returns once the process was asked to stop.
async fn stopped(stop: &Arc<AtomicBool>) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
    }
}

/// Hands on what the tracker says, for as long as somebody listens; connects again when it went away.
fn listen(socket: &Path, changed: &watch::Sender<u64>) {
    let mut complained = false;
    while !changed.is_closed() {
        match control::connect(socket, &Request::Watch, None) {
            Ok(mut connection) => {
                complained = false;
                // What happened while nobody listened.
                changed.send_modify(|n| *n += 1);
                while let Ok(Answer::Changed { .. } | Answer::Done { .. }) = connection.answer() {
                    changed.send_modify(|n| *n += 1);
                }
            }
            Err(e) if !complained => {
                complained = true;
                eprintln!("syncer: {e} Waiting for it");
            }
            Err(_) => {}
        }
        std::thread::park_timeout(RECONNECT);
    }
}
