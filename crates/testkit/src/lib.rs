//! Development only: generators, faults and models for the tests.

pub mod arbitrary;
pub mod certificates;
pub mod dice;
pub mod dump;
pub mod faulty;
pub mod fixture;
pub mod layers;
pub mod shapes;
pub mod tar;

/// Ends a test that cannot run here, and says so: `SKIPPED: why` on standard error.
///
/// For tests that need root, FUSE or a kernel feature. Takes what `format!` takes; returns from the caller.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        // Not by `eprintln`: the harness would keep that of a test that passes to itself.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {}\n", format_args!($($why)*)));
        return;
    }};
}
