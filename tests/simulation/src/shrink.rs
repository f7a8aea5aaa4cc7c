//! Makes a script that fails shorter, as long as it fails in the same way: first whole lines in ever smaller pieces,
//! then what happened within them.

use crate::script::{Line, Script};

/// The shortest script found with at most so many tries; `fails` says whether one still fails in the same way.
pub fn shrink(script: &Script, tries: usize, mut fails: impl FnMut(&Script) -> bool) -> Script {
    let mut left = tries;
    let mut best = script.clone();
    loop {
        let before = (best.lines.len(), within_count(&best.lines));
        let shape = best.shape.clone();
        best.lines = without(best.lines, &mut left, |lines| {
            fails(&Script { shape: shape.clone(), lines: lines.to_vec() })
        });
        for at in 0..best.lines.len() {
            let whole = best.clone();
            best.lines[at].within = without(whole.lines[at].within.clone(), &mut left, |within| {
                let mut tried = whole.clone();
                tried.lines[at].within = within.to_vec();
                fails(&tried)
            });
        }
        if left == 0 || (best.lines.len(), within_count(&best.lines)) == before {
            return best;
        }
    }
}

fn within_count(lines: &[Line]) -> usize {
    lines.iter().map(|line| line.within.len()).sum()
}

/// The list without the pieces that are not needed: halves first, single ones at last.
fn without<T: Clone>(list: Vec<T>, left: &mut usize, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = list;
    let mut piece = best.len().div_ceil(2);
    while piece > 0 && !best.is_empty() {
        let mut at = 0;
        while at < best.len() && *left > 0 {
            let end = best.len().min(at + piece);
            let tried = [&best[..at], &best[end..]].concat();
            *left -= 1;
            if fails(&tried) { best = tried } else { at = end }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::script::{Step, What, Within};
    use crate::shape::Shape;

    fn script(count: u64) -> Script {
        let within = |at| Within { at, what: What::Turns(at) };
        let line = |seed| Line { seed, step: Step::Check, within: (1..5).map(within).collect() };
        Script { shape: Shape::drawn(&mut Random::new(1)), lines: (0..count).map(line).collect() }
    }

    #[test]
    fn only_what_the_failure_needs_is_left() {
        let needs = |script: &Script| {
            let has = |seed: u64, at: u32| {
                let mut lines = script.lines.iter();
                lines.any(|l| l.seed == seed && l.within.iter().any(|w| w.at == at))
            };
            has(3, 2) && has(70, 4)
        };
        let found = shrink(&script(100), 10_000, needs);
        let left: Vec<_> =
            found.lines.iter().map(|l| (l.seed, l.within.iter().map(|w| w.at).collect())).collect();
        assert_eq!(left, [(3, vec![2]), (70, vec![4])]);
    }

    #[test]
    fn it_ends_after_so_many_tries() {
        let mut tries = 0;
        let found = shrink(&script(100), 7, |_| {
            tries += 1;
            false
        });
        assert_eq!((tries, found.lines.len()), (7, 100));
    }
}
