//! The most frequent of very many things in the last hour, in bounded memory: the space-saving sketch of Metwally,
//! Agrawal and El Abbadi, one for each ten minutes. What makes up more than a sixty-fourth of any of them is in it.

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher as _};

/// Things remembered at once.
const KEPT: usize = 64;
const SLICE_NS: i64 = 600 * 1_000_000_000;
/// Slices that make up the hour; the newest is still being filled.
const SLICES: usize = 6;

#[derive(Debug)]
pub struct Busiest<K> {
    /// Newest last, each with the time it began.
    slices: VecDeque<(i64, Sketch<K>)>,
}

impl<K> Default for Busiest<K> {
    fn default() -> Busiest<K> {
        Busiest { slices: VecDeque::new() }
    }
}

impl<K: Ord + Clone> Busiest<K> {
    pub fn add<Q>(&mut self, now_ns: i64, key: &Q, count: u64)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.slices.back().is_none_or(|(begun, _)| now_ns - begun >= SLICE_NS) {
            if self.slices.len() == SLICES {
                self.slices.pop_front();
            }
            self.slices.push_back((now_ns, Sketch::default()));
        }
        if let Some((_, newest)) = self.slices.back_mut() {
            newest.add(key, count);
        }
    }

    /// The most frequent first, each with how often it was seen at least.
    pub fn top(&self, now_ns: i64, limit: usize) -> Vec<(K, u64)> {
        let mut sums: BTreeMap<&K, u64> = BTreeMap::new();
        let recent = self.slices.iter().filter(|(begun, _)| now_ns - begun < SLICE_NS * SLICES as i64);
        for item in recent.flat_map(|(_, sketch)| &sketch.items) {
            *sums.entry(&item.key).or_default() += item.count - item.error;
        }
        let mut all: Vec<(&K, u64)> = sums.into_iter().filter(|(_, count)| *count > 0).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        all.into_iter().take(limit).map(|(key, count)| (key.clone(), count)).collect()
    }
}

#[derive(Debug)]
struct Sketch<K> {
    /// Of the items, in their order: a look through these finds one without following pointers.
    hashes: Vec<u64>,
    items: Vec<Item<K>>,
}

#[derive(Debug)]
struct Item<K> {
    key: K,
    count: u64,
    /// What of the count may belong to those whose place it took.
    error: u64,
}

impl<K> Default for Sketch<K> {
    fn default() -> Sketch<K> {
        Sketch { hashes: Vec::new(), items: Vec::new() }
    }
}

impl<K> Sketch<K> {
    fn add<Q>(&mut self, key: &Q, count: u64)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        let known = self.hashes.iter().position(|h| *h == hash);
        if let Some(at) = known.filter(|at| self.items[*at].key.borrow() == key) {
            self.items[at].count += count;
            return;
        }
        let least = self.items.iter().enumerate().min_by_key(|(_, item)| item.count);
        match least.map(|(at, item)| (at, item.count)) {
            Some((at, error)) if self.items.len() == KEPT => {
                self.hashes[at] = hash;
                self.items[at] = Item { key: key.to_owned(), count: error + count, error };
            }
            _ => {
                self.hashes.push(hash);
                self.items.push(Item { key: key.to_owned(), count, error: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60 * 1_000_000_000;

    #[test]
    fn a_frequent_one_is_found_among_very_many_rare_ones() {
        let mut busiest = Busiest::<u32>::default();
        for n in 0..100_000u32 {
            busiest.add(0, &(1_000 + n), 1);
            if n % 20 == 0 {
                busiest.add(0, &7, 1);
            }
        }
        let (key, count) = busiest.top(0, 1)[0];
        assert_eq!(key, 7);
        assert!(count <= 5_000 && count > 3_000, "never more than it was: {count}");
        assert!(busiest.slices[0].1.items.len() <= KEPT);
    }

    #[test]
    fn what_is_older_than_an_hour_is_forgotten() {
        let mut busiest = Busiest::<Vec<u8>>::default();
        busiest.add(0, b"old".as_slice(), 100);
        for minute in 1..59 {
            busiest.add(minute * MINUTE, b"new".as_slice(), 1);
        }
        let both = [(b"old".to_vec(), 100), (b"new".to_vec(), 58)];
        assert_eq!(busiest.top(59 * MINUTE, 9), both);
        assert_eq!(busiest.top(61 * MINUTE, 9).len(), 1, "also if nothing is added any more");
        busiest.add(61 * MINUTE, b"new".as_slice(), 1);
        assert_eq!(busiest.slices.len(), SLICES);
        assert_eq!(busiest.top(200 * MINUTE, 9), []);
    }

    #[test]
    fn few_things_are_counted_exactly() {
        let mut busiest = Busiest::<u32>::default();
        for n in 0..KEPT as u32 {
            busiest.add(0, &n, u64::from(n) + 1);
            busiest.add(0, &n, 1);
        }
        let top = busiest.top(0, 2);
        assert_eq!(top, [(63, 65), (62, 64)]);
    }
}
