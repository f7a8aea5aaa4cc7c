//! A histogram of times in microseconds, of fixed size: eight buckets for each power of two.

/// Buckets of one power of two, as a power of two itself.
const FINE_BITS: u32 = 3;
const FINE: usize = 1 << FINE_BITS;
/// Up to 2^32 µs, more than an hour; what took longer counts as that.
const BUCKETS: usize = (32 - FINE_BITS as usize + 1) * FINE;
/// At so many values all counts are halved, so that the newer ones weigh more.
const FULL: u64 = 65_536;

#[derive(Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], total: 0, max: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        if self.total >= FULL {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u64::from(*count)).sum();
        }
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Not less than `percent` of the values are at most this; 0 without values.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.total * percent).div_ceil(100);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return highest(at).min(self.max);
            }
        }
        self.max
    }

    pub fn max(&self) -> u64 {
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let value = value.min(u64::from(u32::MAX));
    if value < FINE as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let fine = (value >> (power - FINE_BITS)) as usize % FINE;
    (power - FINE_BITS + 1) as usize * FINE + fine
}

/// The highest value of a bucket.
fn highest(at: usize) -> u64 {
    if at < FINE {
        return at as u64;
    }
    let shift = at / FINE - 1;
    (((FINE + at % FINE + 1) as u64) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_values_everything_is_zero() {
        let empty = Histogram::default();
        assert_eq!((empty.percentile(50), empty.percentile(99), empty.max()), (0, 0, 0));
    }

    #[test]
    fn one_value_is_every_percentile_of_itself() {
        for value in [0, 1, 7, 8, 9, 1_000, u64::from(u32::MAX), u64::MAX] {
            let mut one = Histogram::default();
            one.record(value);
            assert_eq!(one.max(), value);
            let top = one.percentile(99);
            assert!(top <= value && top >= value.min(u64::from(u32::MAX)), "{value}: {top}");
        }
    }

    #[test]
    fn many_values_make_room_for_newer_ones() {
        let mut histogram = Histogram::default();
        (0..3 * FULL).for_each(|_| histogram.record(10));
        (0..FULL).for_each(|_| histogram.record(1_000));
        let top = histogram.percentile(50);
        assert!((1_000..1_125).contains(&top), "{top}");
        assert!(histogram.total <= FULL);
    }

    proptest! {
        #[test]
        fn a_percentile_is_at_most_an_eighth_too_high(mut values in prop::collection::vec(0u64..10_000_000, 1..300), percent in 1u64..=100) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let exact = values[(values.len() as u64 * percent).div_ceil(100) as usize - 1];
            let told = histogram.percentile(percent);
            prop_assert!(told >= exact && told <= exact + exact / 8, "{told} {exact}");
        }
    }
}
