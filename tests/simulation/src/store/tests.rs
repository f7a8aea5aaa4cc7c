//! Faults, power cuts, late effects and what is written down of them.
