//! Proxies, the clock, and the registries that were named. Nobody else is talked to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use registry::{Error, Host, Reference};

use super::patience::within;
use super::report::{Check, Group};
use crate::config::Config;
use crate::origin::Net;

const GROUP: Group = Group::Network;

/// How long a registry may take, with a connection that is tried once.
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);

/// Proxies, as curl and Go's programs take them.
const PROXIES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// This program is younger than 2026 and certificates end long before 2060.
const EARLIEST: u64 = 1_767_225_600;
const LATEST: u64 = 2_840_140_800;

/// Looks at the environment, and talks to registries.
pub(super) fn check(config: &Config, registries: &[Host]) -> Vec<Check> {
    let mut checks = vec![proxies(|name| std::env::var(name).ok()), clock(SystemTime::now())];
    if registries.is_empty() {
        checks.push(GROUP.skipped("registry", "none was named: --registry HOST talks to one"));
    }
    checks.extend(registries.iter().map(|host| registry(config, host)));
    checks
}

fn proxies(variable: impl Fn(&str) -> Option<String>) -> Check {
    let seen = PROXIES.iter().filter_map(|name| {
        let value = variable(name).filter(|value| !value.is_empty())?;
        Some(format!("{name}={}", without_secret(&value)))
    });
    let seen: Vec<_> = seen.collect();
    match seen.is_empty() {
        true => GROUP.ok("proxies", "none in the environment"),
        false => GROUP
            .ok("proxies", format!("{} (a daemon has those of the command that started it)", seen.join(" "))),
    }
}

/// Leaves out the user and the password.
fn without_secret(proxy: &str) -> String {
    let (scheme, rest) = proxy.split_once("://").map_or(("", proxy), |(scheme, rest)| (scheme, rest));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

fn clock(now: SystemTime) -> Check {
    let hint = "set the clock (timedatectl set-ntp true); until then no certificate is valid";
    match now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) {
        ..EARLIEST => GROUP.warning("clock", "it is before this program was written", hint),
        LATEST.. => GROUP.warning("clock", "it is decades ahead", hint),
        _ => GROUP.ok("clock", "plausible"),
    }
}

fn registry(config: &Config, host: &Host) -> Check {
    let mut config = config.clone();
    let settings = config.registry.entry(host.to_string()).or_default();
    settings.budgets.retries = 0;
    settings.budgets.connect = settings.budgets.connect.min(CONNECT);
    let asked = host.clone();
    let answer = within(PATIENCE, move || ask(&config, &asked));
    match answer {
        Some(Ok(said)) => GROUP.ok("registry", format!("{host} answers: {said}")),
        Some(Err(error)) => {
            let found = format!("{host}: {error:#}");
            let hint = registry_hint(&found);
            GROUP.failed("registry", found, hint)
        }
        None => {
            GROUP.failed("registry", format!("{host} does not answer in {} s", PATIENCE.as_secs()), SILENT)
        }
    }
}

const SILENT: &str = "look at the firewall, the proxy and the registry";

/// Asks for an image that hardly any registry has: whatever it says, it is there.
fn ask(config: &Config, host: &Host) -> anyhow::Result<String> {
    let net = Net::new(config, None)?;
    let reference: Reference = format!("docker://{host}/floe/doctor:probe").parse()?;
    let answer = net.source(&reference).and_then(|source| net.image(&source));
    match answer {
        Ok(_) => Ok("it has the image that was asked for".into()),
        Err(Error::NotFound { .. }) => Ok("no such image, as was to be expected".into()),
        Err(Error::Denied { message, .. }) => Ok(format!("access denied to what was asked for: {message}")),
        Err(Error::Refused { status, .. }) => Ok(format!("HTTP status {status}")),
        Err(error) => Err(error.into()),
    }
}

fn registry_hint(found: &str) -> &'static str {
    let found = found.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| found.contains(word));
    if says(&["dns", "resolve", "name or service"]) {
        "look at the name and at /etc/resolv.conf"
    } else if says(&["proxy"]) {
        "mend the proxy, or add the registry to NO_PROXY"
    } else if says(&["certificate", "tls"]) {
        "set ca in [registry.\"HOST\"] if the registry has an authority of its own; look at the clock"
    } else if says(&["plain_http", "without tls", "plain http"]) {
        "set plain_http = true in [registry.\"HOST\"] if that is meant"
    } else {
        SILENT
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn proxies_are_told_without_their_passwords() {
        let none = proxies(|_| None);
        assert_eq!((none.state, &*none.found), (State::Ok, "none in the environment"));
        let some = proxies(|name| match name {
            "HTTPS_PROXY" => Some("http://user:se@cret@proxy.test:3128".into()),
            "no_proxy" => Some("a.test,b.test".into()),
            "HTTP_PROXY" => Some(String::new()),
            "ALL_PROXY" => Some("user:secret@other.test".into()),
            _ => None,
        });
        assert!(
            some.found.starts_with(
                "HTTPS_PROXY=http://proxy.test:3128 ALL_PROXY=other.test no_proxy=a.test,b.test"
            )
        );
        assert!(!some.found.contains("cret"), "{}", some.found);
    }

    #[test]
    fn clocks_that_stand_at_the_epoch_are_told() {
        let at = |seconds| clock(UNIX_EPOCH + Duration::from_secs(seconds)).state;
        assert_eq!([at(0), at(EARLIEST - 1), at(LATEST)], [State::Warning; 3]);
        assert_eq!([at(EARLIEST), at(LATEST - 1)], [State::Ok; 2]);
    }

    #[test]
    fn a_registry_that_is_not_there_fails_with_a_hint() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let check = registry(&Config::default(), &nobody.to_string().parse().unwrap());
        assert_eq!((check.state, check.hint.is_some()), (State::Failed, true), "{check:?}");
        assert_eq!(registry_hint("dns error: failed to lookup"), "look at the name and at /etc/resolv.conf");
        assert!(registry_hint("invalid peer certificate: UnknownIssuer").contains("ca in"));
    }
}
