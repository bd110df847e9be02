//! The configuration file and what it names.

use std::path::Path;

use super::report::{Check, Group};
use crate::config::{Config, DEFAULT_PATH};
use crate::trust::Rule;

const GROUP: Group = Group::Configuration;

/// Reads it; returns nothing where that fails.
pub(super) fn check(path: Option<&Path>) -> (Vec<Check>, Option<Config>) {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            let found = format!("{error:#}").trim().replace('\n', " ");
            let hint = "mend the line that is named; crates/floe/src/config.rs has every key";
            return (vec![GROUP.failed("file", found, hint)], None);
        }
    };
    let there = match file.exists() {
        true => format!("{} is understood", file.display()),
        false => format!("no {}: defaults", file.display()),
    };
    (vec![GROUP.ok("file", there), keys(&config), authorities(&config)], Some(config))
}

/// Looks at how containerd hears of the snapshotter.
pub(super) fn containerd() -> Check {
    match crate::install::told() {
        None => GROUP.ok("containerd", "no file of `floe install` tells it of the snapshotter"),
        Some((file, None)) => {
            GROUP.ok("containerd", format!("{} tells it of the snapshotter", file.display()))
        }
        Some((file, Some(why))) => {
            GROUP.warning("containerd", format!("{}: {why}", file.display()), "floe install")
        }
    }
}

fn keys(config: &Config) -> Check {
    match Rule::new(config) {
        Ok(_) => match config.trust.keys.len() {
            0 => {
                GROUP.ok("keys", "none; images named by digest start lazily where an index is signed by one")
            }
            n => GROUP.ok("keys", format!("{n} can be used")),
        },
        Err(error) => {
            let hint = "[trust] keys names ed25519 public keys: openssl pkey -in KEY -pubout";
            GROUP.failed("keys", format!("{error:#}"), hint)
        }
    }
}

fn authorities(config: &Config) -> Check {
    let files = config.registry.iter().filter_map(|(host, settings)| Some((host, settings.ca.as_ref()?)));
    let mut count = 0;
    for (host, file) in files {
        count += 1;
        let bad = match std::fs::read(file) {
            Ok(bytes) if bytes.windows(27).any(|text| text == b"-----BEGIN CERTIFICATE-----") => continue,
            Ok(_) => "it holds no certificate".to_owned(),
            Err(error) => error.to_string(),
        };
        let found = format!("ca of {host}, {}: {bad}", file.display());
        return GROUP.failed("authorities", found, "name a PEM file with the certificate of the authority");
    }
    GROUP.ok(
        "authorities",
        match count {
            0 => "the system's".to_owned(),
            n => format!("the system's, and {n} of registries"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn states(text: &str) -> Vec<State> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        check(Some(&file)).0.iter().map(|check| check.state).collect()
    }

    #[test]
    fn files_that_are_named_must_be_there() {
        use State::{Failed, Ok};
        assert_eq!(states(""), [Ok, Ok, Ok]);
        assert_eq!(states("[fetch]\nbackgruond = true"), [Failed]);
        assert_eq!(states("[trust]\nkeys = [\"/nonexistent/key\"]"), [Ok, Failed, Ok]);
        assert_eq!(states("[registry.\"a.test\"]\nca = \"/nonexistent/ca\""), [Ok, Ok, Failed]);
        assert_eq!(states("[registry.\"a.test\"]\nca = \"/etc/passwd\""), [Ok, Ok, Failed]);
        let (checks, config) = check(Some(Path::new("/nonexistent/floe.toml")));
        assert!(checks[0].hint.is_some() && config.is_none());
    }
}
