//! What is written: two units of systemd, and what tells containerd of the snapshotter.

use std::path::{Path, PathBuf};

use crate::daemon::client::Address;
use crate::daemon::manager::IMAGES;

/// The first line of each file: one without it is somebody else's.
pub(super) const HEAD: &str = "# Written by `floe install`; `floe uninstall` takes it away.\n";

/// Where containerd connects to.
pub(super) const SOCKET: &str = "/run/floe/containerd.sock";

/// What the line of the unit begins with that names the store.
const STORE: &str = "# Store: ";

/// What the unit says of a program that was put in its place.
const COPIED: &str = "# The program was copied there.\n";

/// Returns the service. Why each line is there is said in `docs/SERVICE.md`.
pub(super) fn service(program: &Path, copied: bool, address: &Address) -> String {
    let copied = if copied { COPIED } else { "" };
    let root = address.root.display();
    let mounts = escaped(&address.root);
    let mut words = vec![program, Path::new("--root"), &address.root];
    if let Some(config) = &address.config {
        words.extend([Path::new("--config"), config]);
    }
    words.push(Path::new("daemon"));
    let command: Vec<_> = words.into_iter().map(quoted).collect();
    format!(
        "{HEAD}{STORE}{root}\n{copied}\
         [Unit]\n\
         Description=Floe, which starts containers before their images have arrived\n\
         After=local-fs.target network.target\n\
         Before=containerd.service\n\
         Requires=floe.socket\n\
         RequiresMountsFor={mounts}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={}\n\
         Environment=HOME=/root\n\
         EnvironmentFile=-/etc/default/floe\n\
         Restart=always\n\
         RestartSec=1\n\
         TimeoutStopSec=300\n\
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

/// Returns the sockets that containerd and kubelet connect to; they are there while no daemon runs.
pub(super) fn socket() -> String {
    format!(
        "{HEAD}\
         [Unit]\n\
         Description=Floe's sockets for containerd and kubelet\n\
         Before=containerd.service\n\
         \n\
         [Socket]\n\
         ListenStream={SOCKET}\n\
         ListenStream={IMAGES}\n\
         SocketMode=0600\n\
         DirectoryMode=0711\n\
         RemoveOnStop=yes\n\
         TriggerLimitIntervalSec=0\n\
         \n\
         [Install]\n\
         WantedBy=sockets.target\n"
    )
}

/// Returns what containerd is to import: the snapshotter, and nothing that it has a say in already.
pub(super) fn plugin(root: &Path, remaps: bool) -> String {
    format!(
        "{HEAD}\
         version = 2\n\
         \n\
         {}",
        proxy("floe", Path::new(SOCKET), root, remaps)
    )
}

/// Returns a configuration that is containerd's own one and the snapshotter, for a containerd that imports nothing. It has to
/// be of the other one's version. That is named by a pattern that nothing else matches: a plain name has to be there.
pub(super) fn wrapper(version: Option<i64>, root: &Path, remaps: bool) -> String {
    let version = version.map_or_else(String::new, |version| format!("version = {version}\n"));
    let proxy = proxy("floe", Path::new(SOCKET), root, remaps);
    format!("{HEAD}{version}imports = [\"/etc/containerd/config.[t*]oml\"]\n\n{proxy}")
}

/// Returns what tells containerd of a snapshotter, where it is asked, and where its images are.
///
/// Where we can show other owners, containerd leaves that to us; else it copies the image for each user namespace.
/// What it exports has the transfer service of containerd 2.1 say which layer of which image is unpacked; others read over it.
pub fn proxy(name: &str, socket: &Path, root: &Path, remaps: bool) -> String {
    let capabilities = if remaps { "capabilities = [\"remap-ids\"]\n" } else { "" };
    format!(
        "[proxy_plugins.{name}]\n\
         type = \"snapshot\"\n\
         address = {}\n\
         {capabilities}\
         [proxy_plugins.{name}.exports]\n\
         enable_remote_snapshot_annotations = \"true\"\n\
         root = {}\n",
        toml_text(socket),
        toml_text(root)
    )
}

/// Returns what has containerd read a configuration.
pub(super) fn override_of(containerd: &str, config: &Path) -> String {
    format!("{HEAD}[Service]\nExecStart=\nExecStart={containerd} --config {}\n", quoted(config))
}

/// What an installed unit says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Installed {
    /// The store.
    pub(super) root: PathBuf,
    /// Whether its program was copied to where it is.
    pub(super) copied: bool,
}

impl Installed {
    /// Reads a unit, if it is one of ours.
    pub(super) fn read(unit: &str) -> Option<Self> {
        let line = |prefix: &str| unit.lines().find_map(|line| line.strip_prefix(prefix));
        unit.starts_with(HEAD).then_some(())?;
        Some(Self { root: line(STORE)?.into(), copied: unit.contains(COPIED) })
    }
}

/// Returns what takes a store away at the next boot, and itself; nothing for a path that would mean something else there
/// (tmpfiles.d(5): patterns, specifiers, blanks).
pub(super) fn at_next_boot(root: &Path, own: &Path) -> Option<String> {
    let plain = |path: &Path| {
        let text = path.to_str()?;
        text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)).then(|| text.to_owned())
    };
    Some(format!("{HEAD}R! {} - - - - -\nr! {} - - - - -\n", plain(root)?, plain(own)?))
}

/// Returns a word of a unit, as systemd.syntax(7) and systemd.unit(5) have it.
fn escaped(word: &Path) -> String {
    let text = word.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('%', "%%"))
}

/// Returns a word of a command line.
fn quoted(word: &Path) -> String {
    escaped(word).replace('$', "$$")
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
        let service = service(Path::new("/usr/bin/floe"), true, &address);
        let read = Installed::read(&service).unwrap();
        assert_eq!((&read.root, read.copied), (&address.root, true));
        assert_eq!(at_next_boot(&address.root, Path::new("/etc/a.conf")), None);
        assert!(at_next_boot(Path::new("/var/lib/floe"), Path::new("/etc/a.conf")).is_some());
        let command = service.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            command,
            r#"ExecStart="/usr/bin/floe" "--root" "/srv/a \"b\"/100%%" "--config" "/etc/$$x" "daemon""#
        );
        let plugin: toml::Table = toml::from_str(&plugin(&address.root, true)).unwrap();
        let floe = &plugin["proxy_plugins"]["floe"];
        assert_eq!(floe["exports"]["root"].as_str(), Some("/srv/a \"b\"/100%"));
        assert_eq!(floe["capabilities"][0].as_str(), Some("remap-ids"));
        let wrapper: toml::Table = toml::from_str(&wrapper(Some(3), &address.root, false)).unwrap();
        assert_eq!(wrapper["version"].as_integer(), Some(3));
        assert_eq!(wrapper["imports"][0].as_str(), Some("/etc/containerd/config.[t*]oml"));
        assert_eq!(wrapper["proxy_plugins"]["floe"]["address"].as_str(), Some(SOCKET));
    }
}
