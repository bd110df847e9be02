//! A host in the small: a real systemd as the first process of namespaces of its own, on a copy of this machine's root.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::containerd::Release;
use super::{Node, Outcome, until};

/// Makes the root and becomes systemd. What would change the kernel that all hosts share is masked.
const BOOT: &str = r#"
set -e
mkdir -p "$UP" "$WORK" "$ROOT"
mount -t overlay overlay -o lowerdir=/,upperdir="$UP",workdir="$WORK" "$ROOT"
cd "$ROOT"
mkdir -p etc/systemd/system opt/floe var/lib/floe var/lib/containerd
mount --bind "$STORE" var/lib/floe
mount --bind "$CONTAINERD" var/lib/containerd
if [ ! -e opt/floe/floe ]; then
  rm -rf etc/systemd/system/*.wants etc/floe
  cp "$FLOE" opt/floe/floe
  if [ "$RELEASE" ]; then
    for file in usr/bin/{containerd,containerd-shim-runc-v2,ctr} usr/lib/systemd/system/containerd.service etc/containerd/config.toml; do
      install -D "$RELEASE/$file" $file
    done
  fi
  for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-udev-trigger systemd-remount-fs \
    systemd-binfmt systemd-random-seed systemd-logind systemd-sysusers systemd-tmpfiles-setup-dev; do
    ln -sf /dev/null etc/systemd/system/$unit.service
  done
  for unit in getty.target proc-sys-fs-binfmt_misc.automount dev-hugepages.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount; do
    ln -sf /dev/null etc/systemd/system/$unit
  done
fi
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --rbind /dev dev
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  for controller in $(cut -d: -f2 /proc/self/cgroup | grep -v = | tr -s '\n'); do
    mkdir sys/fs/cgroup/"$controller"
    mount -t cgroup -o "$controller" cgroup sys/fs/cgroup/"$controller"
  done
fi
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=0
"#;

/// Where the program under test is before it is installed.
pub const FLOE: &str = "/opt/floe/floe";

/// Returns why no host can be booted here, if none can.
pub fn cannot_boot() -> Option<&'static str> {
    if !std::path::Path::new("/lib/systemd/systemd").exists() {
        return Some("there is no systemd");
    }
    let tried = Command::new("unshare")
        .args(["-m", "-p", "-u", "-i", "-C", "--fork", "sh", "-c", "mount -t cgroup2 cgroup2 /mnt"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        return Some("no namespaces with cgroups of their own can be made");
    }
    None
}

/// A running host; it ends when dropped, and everything on it.
pub struct Host<'a> {
    release: Release,
    node: &'a Node,
    outside: Option<Child>,
    init: String,
}

impl<'a> Host<'a> {
    /// Boots a host whose store is the node's and whose containerd is a release's.
    pub fn boot(release: Release, node: &'a Node) -> Self {
        let mut host = Self { release, node, outside: None, init: String::new() };
        host.up();
        host
    }

    /// Takes its power away and boots it again.
    pub fn reboot(&mut self) {
        self.down();
        self.up();
    }

    fn up(&mut self) {
        let place = |name: &str| -> PathBuf {
            let dir = self.node.path("host").join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let mut command = Command::new("unshare");
        command.args(["-m", "-p", "-u", "-i", "-C", "--fork", "--kill-child", "bash", "-c", BOOT]);
        for (name, dir) in [("UP", "up"), ("WORK", "work"), ("ROOT", "root"), ("CONTAINERD", "containerd")] {
            command.env(name, place(dir));
        }
        command.env("RELEASE", self.release.root().unwrap_or_default());
        command.env("STORE", self.node.store()).env("FLOE", env!("CARGO_BIN_EXE_floe"));
        let log = fs::File::options().create(true).append(true).open(self.node.path("boot.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        self.outside = Some(child);
        until("the first process is there", || {
            self.init = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            !self.init.is_empty()
        });
        let is_up = || {
            let outcome = self.run(&["systemctl", "is-system-running"]);
            matches!(outcome.text().trim(), "running" | "degraded")
        };
        until("systemd has started everything", is_up);
    }

    fn down(&mut self) {
        if let Some(mut child) = self.outside.take() {
            let _ = child.kill(); // takes the first process along
            let _ = child.wait();
        }
        let init = format!("/proc/{}", self.init);
        until("everything on it has ended", || !std::path::Path::new(&init).exists());
    }

    /// Says whether containers can have cgroups on it: the controllers may be somebody else's.
    pub fn has_cgroups(&self) -> bool {
        self.run(&["sh", "-c", "ls -d /sys/fs/cgroup/cpu || grep -w cpu /sys/fs/cgroup/cgroup.controllers"])
            .status
            .success()
    }

    /// Returns where one of its files is, seen from here.
    pub fn path(&self, file: &str) -> PathBuf {
        format!("/proc/{}/root{file}", self.init).into()
    }

    /// Runs a command on it to its end.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-m", "-p", "-u", "-i", "-C", "env", "-i"]);
        command.args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]);
        command.args(words).stdin(Stdio::null());
        self.node.spawn(command).end()
    }

    /// Runs one that must succeed; returns what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let outcome = self.run(words);
        assert!(outcome.status.success(), "{words:?}: {outcome:?}\n{}", self.journal());
        outcome.text()
    }

    /// Runs a line of shell that must succeed; returns what it printed.
    pub fn sh(&self, line: &str) -> String {
        self.ok(&["sh", "-ec", line])
    }

    /// Returns what was logged last.
    pub fn journal(&self) -> String {
        let last = "journalctl --no-pager -o short-monotonic -n 30 -u floe.service -u floe.socket; journalctl --no-pager -o cat -n 20";
        self.run(&["sh", "-c", last]).text()
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.down();
    }
}
