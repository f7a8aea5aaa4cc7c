//! How likely each fault is: all of them off, or as a world is drawn. Many worlds have few kinds each: a fault that
//! always strikes hides what others would show.

use crate::fate::Fault;
use crate::random::Random;

/// Each fault strikes once in so many questions for it; 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    one_in: [u32; Fault::ALL.len()],
    /// Others go on once in so many passes; 0 is never.
    between: u32,
}

impl Faults {
    pub const fn none() -> Faults {
        Faults { one_in: [0; Fault::ALL.len()], between: 0 }
    }

    pub fn with(mut self, fault: Fault, one_in: u32) -> Faults {
        self.one_in[fault as usize] = one_in;
        self
    }

    /// Those of one world: a few kinds, each more or less likely.
    pub fn drawn(random: &mut Random) -> Faults {
        let mut faults = Faults::none();
        // A third of the worlds knows none: what goes wrong there is the plainest to read.
        if random.below(3) > 0 {
            for fault in Fault::ALL {
                if random.one_in(5) {
                    faults.one_in[*fault as usize] = fault.often() * (1 << random.below(4)) as u32;
                }
            }
        }
        faults.between = [0, 3, 10, 40][random.below(4) as usize];
        faults
    }

    pub fn one_in(&self, fault: Fault) -> u32 {
        self.one_in[fault as usize]
    }

    pub fn between(&self) -> Option<u64> {
        (self.between > 0).then_some(u64::from(self.between))
    }
}
