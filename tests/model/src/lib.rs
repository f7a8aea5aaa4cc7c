//! Every order in which the steps of the tracker's hand-made synchronisation can fall, tried by loom. The file under
//! test is the tracker's own, compiled with loom's types. What loom does not try is a plain store that takes effect
//! after a later lock; so the file has none.
#![cfg(test)]

#[path = "../../../tracker/src/shell/news.rs"]
mod news;

use std::time::Duration;

use loom::sync::{Arc, Mutex};
use loom::thread;
use news::{Heads, Notice};

/// loom's waits have no end of their own.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[test]
fn who_watches_the_head_misses_none_that_is_published() {
    loom::model(|| {
        let heads = Arc::new(Heads::default());
        let publishers: Vec<_> = [1, 2]
            .map(|head| {
                let heads = Arc::clone(&heads);
                thread::spawn(move || heads.publish(head))
            })
            .into();
        let mut seen = 0;
        while seen < 2 {
            seen = heads.above(seen, FOR_EVER).expect("it waits for ever");
        }
        publishers.into_iter().for_each(|p| p.join().expect("a publisher"));
        assert_eq!(heads.get(), 2);
    });
}

#[test]
fn a_change_is_seen_by_a_look_or_reported_after_it() {
    loom::model(|| {
        let status = Arc::new((Mutex::new(0), Notice::default()));
        // One report has been made, and its look is under way.
        assert!(status.1.raise());
        let changer = {
            let status = Arc::clone(&status);
            thread::spawn(move || {
                *status.0.lock().expect("the status") = 1;
                status.1.raise()
            })
        };
        status.1.take();
        let looked = *status.0.lock().expect("the status");
        let reported = changer.join().expect("the changer");
        assert!(looked == 1 || reported, "the change would stand unseen");
    });
}
