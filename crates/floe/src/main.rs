//! The `floe` binary: parses the command line and hands over.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = floe::cli::Cli::parse();
    match floe::commands::dispatch(cli) {
        Ok(code) => code.into(),
        Err(error) => floe::exit::report(&error).into(),
    }
}
