//! What the runtime is told: `config.json` of the OCI runtime spec, from an image's config and the options.
//!
//! The defaults are Docker's: capabilities, masked and read-only paths, mounts. There is no seccomp profile.
//! [`build`] is a pure function of its arguments; who the user is was looked up before (`user.rs`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::options::{Net, Options, Volume};
use super::user::Identity;
use crate::exit::{Hint, misused};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What `docker run` leaves to a container without further options.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Files that tell about the host or act on it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Files that would change the host if written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The file systems every container has: where, type, source, options.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

/// What the machine contributes.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// The host's own name, which a container on its network shares.
    pub(super) hostname: String,
    /// Our environment, for `-e NAME`.
    pub(super) env: BTreeMap<String, String>,
    /// The one and only cgroup hierarchy is version 2, so a container can have its own view of it.
    pub(super) cgroup2: bool,
    /// The container is an ordinary user's, in a user namespace with that user alone.
    pub(super) inside: bool,
}

/// What differs there: `/sys` belongs to the machine's network and can only be shown, there is no group 5, and cgroups
/// are not ours to make.
const INSIDE: [(&str, &str, &str, &[&str]); 2] = [
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
    ("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]),
];

/// Where the parts of one container are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The container's id.
    pub(super) id: String,
    /// The mount point of its root.
    pub(super) rootfs: PathBuf,
    /// A directory with `hosts`, `hostname` and `resolv.conf` for it.
    pub(super) etc: PathBuf,
}

/// Returns the name the container sees as its own.
pub(super) fn hostname(options: &Options, host: &Host, id: &str) -> String {
    match (&options.hostname, options.net) {
        (Some(name), _) => name.clone(),
        (None, Net::Host) => host.hostname.clone(),
        (None, Net::None) => id.to_owned(),
    }
}

/// Returns the runtime's configuration of a container.
pub(super) fn build(
    image: &ImageConfiguration,
    options: &Options,
    volumes: &[Volume],
    user: &Identity,
    host: &Host,
    place: &Place,
) -> Result<Spec> {
    let hostname = hostname(options, host, &place.id);
    let root = RootBuilder::default().path(&place.rootfs).readonly(false).build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .process(process(image, options, user, host, &hostname)?)
        .mounts(mounts(volumes, host, place)?)
        .linux(linux(options, host, &place.id)?)
        .hostname(hostname)
        .build()
        .context("putting the runtime's config.json together")
}

fn process(
    image: &ImageConfiguration,
    options: &Options,
    user: &Identity,
    host: &Host,
    hostname: &str,
) -> Result<Process> {
    let config = image.config().clone().unwrap_or_default();
    // One that cannot change groups has those of the user who started it.
    let groups = if host.inside { Vec::new() } else { user.groups.clone() };
    let ids = UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(groups).build()?;
    let image_env = config.env().as_deref().unwrap_or_default();
    Ok(ProcessBuilder::default()
        .terminal(options.tty)
        .user(ids)
        .args(command(image, options)?)
        .env(environment(image_env, options, user, host, hostname)?)
        .cwd(working_dir(config.working_dir().as_deref(), options))
        .capabilities(capabilities(user.uid)?)
        .rlimits(Vec::new())
        .no_new_privileges(false)
        .build()?)
}

/// Entrypoint and arguments as `docker run` combines them: arguments replace Cmd, another entrypoint drops it.
fn command(image: &ImageConfiguration, options: &Options) -> Result<Vec<String>> {
    let config = image.config().clone().unwrap_or_default();
    let own_entrypoint = options.entrypoint.as_ref();
    let entrypoint = own_entrypoint.or(config.entrypoint().as_ref());
    let arguments = match (options.args.as_slice(), own_entrypoint) {
        ([], Some(_)) => &[],
        ([], None) => config.cmd().as_deref().unwrap_or_default(),
        (given, _) => given,
    };
    let command: Vec<String> =
        entrypoint.into_iter().flatten().cloned().chain(arguments.iter().cloned()).collect();
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => Err(misused("the image has neither Entrypoint nor Cmd")
            .context(Hint::new("looking for a command to run", "name one: floe run IMAGE -- COMMAND"))),
    }
}

/// Later settings of a name replace earlier ones in place: defaults, image, options.
fn environment(
    image: &[String],
    options: &Options,
    user: &Identity,
    host: &Host,
    hostname: &str,
) -> Result<Vec<String>> {
    let mut env: Vec<String> = vec![PATH.into(), format!("HOSTNAME={hostname}")];
    if options.tty {
        env.push("TERM=xterm".into());
    }
    let mut set = |setting: String| {
        let name = setting.split('=').next().unwrap_or_default().to_owned();
        match env.iter_mut().find(|other| other.split('=').next() == Some(&name)) {
            Some(other) => *other = setting,
            None => env.push(setting),
        }
    };
    image.iter().filter(|setting| !setting.starts_with('=')).cloned().for_each(&mut set);
    for given in &options.env {
        match given.split_once('=') {
            Some(("", _)) => return Err(misused(format!("-e {given:?} has no name"))),
            Some(_) => set(given.clone()),
            None => host.env.get(given).into_iter().for_each(|value| set(format!("{given}={value}"))),
        }
    }
    if !env.iter().any(|setting| setting.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
    }
    if let Some(setting) = env.iter().find(|setting| setting.contains('\0')) {
        return Err(misused(format!("environment setting {setting:?} holds a NUL")));
    }
    Ok(env)
}

/// Absolute and without dots. The runtime creates it when it is missing, inside the container's root.
fn working_dir(image: Option<&str>, options: &Options) -> PathBuf {
    let wanted = options.workdir.as_deref().or(image.map(Path::new)).unwrap_or(Path::new("/"));
    absolute(wanted)
}

fn absolute(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Only root begins with capabilities in effect, as after an `execve` on a plain Linux. Nothing is inheritable:
/// that would let programs with file capabilities gain what they should not.
fn capabilities(uid: u32) -> Result<LinuxCapabilities> {
    let all: oci_spec::runtime::Capabilities = CAPABILITIES.into_iter().collect();
    let none = oci_spec::runtime::Capabilities::new();
    let active = if uid == 0 { all.clone() } else { none.clone() };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(active.clone())
        .permitted(active)
        .inheritable(none.clone())
        .ambient(none)
        .build()?)
}

fn mounts(volumes: &[Volume], host: &Host, place: &Place) -> Result<Vec<Mount>> {
    let mount = |at: &Path, kind: &str, source: &Path, options: &[&str]| {
        MountBuilder::default()
            .destination(at)
            .typ(kind)
            .source(source)
            .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
            .build()
    };
    let mut mounts = Vec::new();
    for usual in MOUNTS {
        let other = INSIDE.into_iter().find(|(at, ..)| host.inside && *at == usual.0);
        let (at, kind, source, flags) = other.unwrap_or(usual);
        if host.inside && kind == "cgroup" {
            continue;
        }
        mounts.push(mount(Path::new(at), kind, Path::new(source), flags)?);
    }
    for file in ["resolv.conf", "hostname", "hosts"] {
        let at = Path::new("/etc").join(file);
        mounts.push(mount(&at, "bind", &place.etc.join(file), &["rbind", "rprivate"])?);
    }
    for Volume { source, destination, read_only } in volumes {
        // "ro" alone would leave file systems mounted below the source writable.
        let access: &[&str] = if *read_only { &["ro", "rro"] } else { &["rw"] };
        mounts.push(mount(destination, "bind", source, &[&["rbind", "rprivate"], access].concat())?);
    }
    Ok(mounts)
}

fn linux(options: &Options, host: &Host, id: &str) -> Result<Linux> {
    let mut kinds = vec![
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Pid,
    ];
    // With version 1 the container's cgroup mounts only make sense in the host's view.
    kinds.extend(host.cgroup2.then_some(LinuxNamespaceType::Cgroup));
    kinds.extend((options.net == Net::None).then_some(LinuxNamespaceType::Network));
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    // Nothing but the devices every runtime adds itself: null, zero, full, random, urandom, tty, pts.
    let no_device = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut sysctl = HashMap::new();
    if options.net == Net::None {
        // A network of its own has no port worth protecting from its own users.
        sysctl.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    }
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .sysctl(sysctl)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec());
    if host.inside {
        return Ok(linux.build()?);
    }
    let resources = LinuxResourcesBuilder::default().devices(vec![no_device]).build()?;
    Ok(linux.resources(resources).cgroups_path(format!("/floe/{id}")).build()?)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
