//! `syncer watch`: a run whenever the tracker has committed something, or something owed comes due.

use std::sync::atomic::Ordering;
use std::time::Duration;

use shared::config::Leg;
use shared::control::{self, Answer, Request};
use shared::exit::Exit;
use tokio::sync::mpsc;

use crate::commands::{Context, print, run_leg};

/// Between two attempts to reach a tracker that does not answer.
const RETRY: Duration = Duration::from_secs(5);
/// What is owed is looked at this often even when nothing happens.
const REVISIT: Duration = Duration::from_secs(60);

enum Wake {
    Changed,
    TrackerGone(String),
}

pub async fn watch(context: &Context, legs: &[&Leg]) -> anyhow::Result<Exit> {
    let (wake, mut woken) = mpsc::channel(16);
    let socket = context.config.control_path();
    std::thread::spawn(move || listen(&socket, &wake));
    let mut complained = false;
    loop {
        for leg in legs {
            let report = run_leg(context, leg).await;
            if report.files_sent + report.others_sent + report.removed > 0 || report.exit != Exit::Ok {
                print(context, &report)?;
            }
            if matches!(report.exit, Exit::Config | Exit::Refused) {
                return Ok(report.exit); // only the owner can help
            }
        }
        loop {
            if context.stop.load(Ordering::Relaxed) {
                return Ok(Exit::Ok);
            }
            tokio::select! {
                () = stopped(context) => return Ok(Exit::Ok),
                () = tokio::time::sleep(REVISIT) => break,
                event = woken.recv() => match event {
                    Some(Wake::Changed) => {
                        complained = false;
                        while let Ok(Wake::Changed) = woken.try_recv() {}
                        break;
                    }
                    Some(Wake::TrackerGone(reason)) if !complained => {
                        complained = true;
                        eprintln!("syncer: {reason}; waiting for it");
                    }
                    Some(Wake::TrackerGone(_)) => {}
                    None => return Ok(Exit::Failed),
                },
            }
        }
    }
}

/// Returns once the process was asked to stop.
async fn stopped(context: &Context) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while !context.stop.load(Ordering::Relaxed) {
        tick.tick().await;
    }
}

/// Hands on what the tracker says, for as long as somebody listens; connects again when it went away.
fn listen(socket: &std::path::Path, wake: &mpsc::Sender<Wake>) {
    loop {
        let gone = match control::connect(socket, &Request::Watch, None) {
            Err(e) => e,
            Ok(mut connection) => loop {
                match connection.answer() {
                    Ok(Answer::Changed { .. } | Answer::Done { .. }) => {
                        if wake.blocking_send(Wake::Changed).is_err() {
                            return;
                        }
                    }
                    Ok(Answer::Refused { .. }) => {}
                    Err(e) => break e,
                }
            },
        };
        if wake.blocking_send(Wake::TrackerGone(gone.to_string())).is_err() {
            return;
        }
        std::thread::park_timeout(RETRY);
    }
}
