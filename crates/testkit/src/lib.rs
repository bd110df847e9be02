//! Development only: generators, faults and models for the tests.

pub mod arbitrary;
pub mod base64;
pub mod certificates;
pub mod dice;
pub mod dump;
pub mod faulty;
pub mod fixture;
pub mod layers;
pub mod shapes;
pub mod soci;
pub mod tar;
pub mod torture;

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

/// Makes a program of a shell script, to be run by what is tested.
///
/// Written beside its place and renamed: a file that some fork still has open for writing cannot be run.
#[allow(clippy::unwrap_used, reason = "what cannot be made fails the test")]
pub fn program(path: &std::path::Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let draft = path.with_extension("draft");
    std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::rename(draft, path).unwrap();
}
