//! Numbers that are the same on every run.

/// Knuth's MMIX generator, from any seed; its high bits are good enough.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// Returns the next number below `n`, at most 2^31.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}
