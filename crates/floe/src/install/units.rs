//! What is written: two units of systemd, and what tells containerd of the snapshotter.

use std::path::Path;

use crate::daemon::client::Address;

/// The first line of each file: one without it is somebody else's.
pub(super) const HEAD: &str = "# Written by `floe install`; `floe uninstall` takes it away.\n";

/// Where containerd connects to.
pub(super) const SOCKET: &str = "/run/floe/containerd.sock";

/// Returns the service. Why each line is there is said in `docs/SERVICE.md`.
pub(super) fn service(program: &Path, address: &Address) -> String {
    let mut words = vec![program, Path::new("--root"), &address.root];
    if let Some(config) = &address.config {
        words.extend([Path::new("--config"), config]);
    }
    words.push(Path::new("daemon"));
    let command: Vec<_> = words.into_iter().map(quoted).collect();
    format!(
        "{HEAD}\
         [Unit]\n\
         Description=Floe, which starts containers before their images have arrived\n\
         After=local-fs.target network.target\n\
         Before=containerd.service\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={}\n\
         Restart=always\n\
         KillMode=process\n\
         OOMScoreAdjust=-999\n\
         LimitNOFILE=1048576\n\
         LimitMEMLOCK=infinity\n\
         TasksMax=infinity\n\
         NoNewPrivileges=yes\n\
         LockPersonality=yes\n\
         RestrictRealtime=yes\n\
         SystemCallArchitectures=native\n\
         RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        command.join(" ")
    )
}

/// Returns the socket that containerd connects to; it is there while no daemon runs.
pub(super) fn socket() -> String {
    format!(
        "{HEAD}\
         [Unit]\n\
         Description=Floe's socket for containerd\n\
         Before=containerd.service\n\
         \n\
         [Socket]\n\
         ListenStream={SOCKET}\n\
         SocketMode=0600\n\
         DirectoryMode=0711\n\
         FileDescriptorName=containerd\n\
         RemoveOnStop=yes\n\
         \n\
         [Install]\n\
         WantedBy=sockets.target\n"
    )
}

/// Returns what containerd is to import: the snapshotter, and nothing that it has a say in already.
pub(super) fn plugin(root: &Path) -> String {
    format!(
        "{HEAD}\
         version = 2\n\
         \n\
         {}",
        proxy(root)
    )
}

/// Returns a configuration that is another one and the snapshotter, for a containerd that imports nothing. It has to be of the
/// other one's version.
pub(super) fn wrapper(version: Option<i64>, main: Option<&Path>, root: &Path) -> String {
    let version = version.map_or_else(String::new, |version| format!("version = {version}\n"));
    let imports = main.map_or_else(String::new, |main| format!("imports = [{}]\n", toml_text(main)));
    format!("{HEAD}{version}{imports}\n{}", proxy(root))
}

fn proxy(root: &Path) -> String {
    format!(
        "[proxy_plugins.floe]\n\
         type = \"snapshot\"\n\
         address = \"{SOCKET}\"\n\
         [proxy_plugins.floe.exports]\n\
         root = {}\n",
        toml_text(root)
    )
}

/// Returns what has containerd read a configuration.
pub(super) fn override_of(containerd: &str, config: &Path) -> String {
    format!("{HEAD}[Service]\nExecStart=\nExecStart={containerd} --config {}\n", quoted(config))
}

/// Returns what takes a store away at the next boot, and itself.
pub(super) fn at_next_boot(root: &Path, own: &Path) -> String {
    format!("{HEAD}R! {} - - - - -\nr! {} - - - - -\n", root.display(), own.display())
}

/// Returns a word of a unit's command line, as systemd.syntax(7) and systemd.unit(5) have it.
fn quoted(word: &Path) -> String {
    let text = word.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('%', "%%").replace('$', "$$"))
}

/// Returns a path as a string of TOML, whose escapes are those of JSON.
fn toml_text(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_come_through() {
        let address = Address { root: "/srv/a \"b\"/100%".into(), config: Some("/etc/$x".into()) };
        let service = service(Path::new("/usr/bin/floe"), &address);
        let command = service.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            command,
            r#"ExecStart="/usr/bin/floe" "--root" "/srv/a \"b\"/100%%" "--config" "/etc/$$x" "daemon""#
        );
        let plugin: toml::Table = toml::from_str(&plugin(&address.root)).unwrap();
        let floe = &plugin["proxy_plugins"]["floe"];
        assert_eq!(floe["exports"]["root"].as_str(), Some("/srv/a \"b\"/100%"));
        let wrapper: toml::Table =
            toml::from_str(&wrapper(Some(3), Some(Path::new("/etc/containerd/config.toml")), &address.root))
                .unwrap();
        assert_eq!(wrapper["version"].as_integer(), Some(3));
        assert_eq!(wrapper["imports"][0].as_str(), Some("/etc/containerd/config.toml"));
        assert_eq!(wrapper["proxy_plugins"]["floe"]["address"].as_str(), Some(SOCKET));
    }
}
