//! `floe doctor`: what is in the way of starting images.

use crate::cli::{self, Output};
use crate::daemon::client::Address;
use crate::doctor::{Subject, examine};
use crate::exit::{Code, misused};

use super::print;

/// Before the configuration has been read: that it cannot be is a finding.
pub(super) fn doctor(address: Address, output: Output, args: cli::Doctor) -> anyhow::Result<Code> {
    let hosts = args.registry.iter().map(|host| host.parse());
    let registries =
        hosts.collect::<Result<_, _>>().map_err(|error| misused(format!("--registry: {error}")))?;
    let subject = Subject { address, pre: args.pre, runtime: args.runtime, registries };
    let report = examine(&subject);
    print(output, &report, |report| report.text())?;
    Ok(report.code())
}
