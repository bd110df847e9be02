//! The command line: names and flags that users type, and nothing of what they do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::engine::mounts::ReadPath;

/// Starts a container before its image has arrived.
#[derive(Debug, Parser)]
#[command(name = "floe", version, max_term_width = 100)]
pub struct Cli {
    /// Directory of the store [default: /var/lib/floe, for others than root ~/.local/share/floe]
    #[arg(long, global = true, value_name = "DIR", env = "FLOE_ROOT")]
    pub root: Option<PathBuf>,
    /// Configuration file [default: /etc/floe/config.toml, which may be absent]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How results are printed
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human")]
    pub output: Output,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Human,
    /// One JSON document
    Json,
}

/// One command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a container whose image is fetched as it is read
    #[command(after_help = "Example: floe run --ready line:READY docker://registry.example/app:v1")]
    Run(Run),
    /// Mounts an image read-only; files are fetched as they are read
    #[command(after_help = "Example: floe mount docker://registry.example/app:v1 /mnt")]
    Mount(Mount),
    /// Unmounts what `floe mount` mounted
    #[command(after_help = "Example: floe umount /mnt")]
    Umount {
        /// Where the image is mounted
        dir: PathBuf,
    },
    /// Fetches a whole image into the store and proves it against its config
    #[command(after_help = "Example: floe pull docker://registry.example/app:v1")]
    Pull(Pull),
    /// Builds the index of an image, so that others start it lazily
    #[command(after_help = "Example: floe index docker://registry.example/app:v1 --push --sign key.pem")]
    Index(Index),
    /// Copies an image and all that belongs to it: every platform, indexes, signatures, whatever refers to it
    ///
    /// Every byte stays as it is, and so do digests. What is at the destination is not sent again: a copy that failed goes on
    /// where it was. Blobs go from one repository of a registry to another without being sent, where it allows that. No
    /// daemon is needed. As SRC oci-archive:- and docker-archive:- are stdin; as DST the former is stdout, and the result goes to stderr.
    #[command(
        after_help = "Example: floe copy docker://registry.example/app:v1 docker://mirror.example/app:v1"
    )]
    Copy {
        /// The image: `docker://…`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]` or `dir:DIR`
        #[arg(value_name = "SRC")]
        from: String,
        /// Where it goes: one of the first three
        #[arg(value_name = "DST")]
        to: String,
    },
    /// Makes an image whose layers are in another format: eStargz, zstd:chunked, or ordinary ones again
    ///
    /// Any layer of any platform is written anew once; those that the destination's name leads to already are reused, whatever
    /// their level, and so are those of a run that was killed. A layer that the format cannot hold stays as it is. Signatures, attestations and indexes are about
    /// the originals and do not come along; labels and build caches inside the configs do. No daemon is needed. As SRC
    /// oci-archive:- and docker-archive:- are stdin; as DST the former is stdout, and the result goes to stderr.
    #[command(
        after_help = "Example: floe convert docker://registry.example/app:v1 docker://registry.example/app:v1-esgz --format estargz"
    )]
    Convert(Convert),
    /// Makes an image in which what a start reads lies first, as it was seen to read
    ///
    /// As `floe convert`, with an order: the files that a recorded start has read mostly come first in their layers,
    /// eStargz and Nydus say where these end, and whoever knows that fetches them with a few requests. The files are the same, the
    /// tars are others, so the image is another one. The profile is the one recorded here, or the one shipped with the image.
    /// As SRC oci-archive:- and docker-archive:- are stdin.
    #[command(
        after_help = "Example: floe optimize docker://registry.example/app:v1 docker://registry.example/app:v1-fast --format estargz"
    )]
    Optimize(Optimize),
    /// Shows an image: layers, where its indexes come from, what is local
    #[command(after_help = "Example: floe inspect docker://registry.example/app:v1")]
    Inspect {
        /// The image
        image: String,
    },
    /// Lists a directory of an image without mounting it
    #[command(after_help = "Example: floe ls docker://registry.example/app:v1 /etc")]
    Ls {
        /// The image
        image: String,
        /// Path in the image
        #[arg(default_value = "/")]
        path: PathBuf,
    },
    /// Prints a file of an image, fetching only what it needs
    #[command(after_help = "Example: floe cat docker://registry.example/app:v1 /etc/os-release")]
    Cat {
        /// The image
        image: String,
        /// Path in the image
        path: PathBuf,
    },
    /// Shows what differs between the files of two images, and what an upgrade would fetch
    ///
    /// One line per path: + only in B, - only in A, ~ in both, and in what it differs. Contents are compared through the images'
    /// indexes; only where these cannot tell is something fetched. An image without an index is fetched whole. Exits with 0
    /// if nothing differs, with 4 if something does.
    #[command(
        after_help = "Example: floe diff docker://registry.example/app:v1 docker://registry.example/app:v2"
    )]
    Diff {
        /// An image
        #[arg(value_name = "A")]
        from: String,
        /// The image it is compared with
        #[arg(value_name = "B")]
        to: String,
    },
    /// Checks that a copy of an image has the same files, to the last byte, whatever format it is in
    ///
    /// Names, kinds, contents, modes, owners, times, attributes and links all count. What formats with a table of contents
    /// (eStargz) add to the root is left out. Exits with 0 if all is the same, with 4 if not.
    #[command(
        after_help = "Example: floe check docker://registry.example/app:v1 docker://mirror.example/app:v1"
    )]
    Check {
        /// The image
        #[arg(value_name = "SRC")]
        from: String,
        /// Its copy
        #[arg(value_name = "DST")]
        to: String,
    },
    /// Estimates what images would save by sharing more than whole layers
    ///
    /// Counts what the files of all layers take where whole layers are kept once, whole files, the chunks of the layers' indexes, or
    /// chunks whose ends the content decides about (FastCDC, 16 to 256 KiB, 64 on average, in each file by itself). The images
    /// are fetched whole and every byte is read.
    #[command(
        after_help = "Example: floe dedup --estimate docker://registry.example/app:v1 docker://registry.example/app:v2"
    )]
    Dedup {
        /// Only say what would be saved; nothing else can be done
        #[arg(long, required = true)]
        estimate: bool,
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also draw it, as an SVG
        #[arg(long, value_name = "FILE")]
        chart: Option<PathBuf>,
    },
    /// Reads every byte of an image again and compares it with the digests
    #[command(after_help = "Example: floe verify --rebuild docker://registry.example/app:v1")]
    Verify {
        /// The image
        image: String,
        /// Fetch the layers and build their indexes again instead of believing those at hand
        #[arg(long)]
        rebuild: bool,
    },
    /// Shows every image and mount: lazy or full and why, what was fetched, who waited
    #[command(after_help = "Example: floe status --output json")]
    Status,
    /// Shows which files readers of a mount waited for, and how long
    #[command(after_help = "Example: floe trace docker://registry.example/app:v1")]
    Trace {
        /// An image, or the directory of a mount; all mounts unless said
        what: Option<String>,
    },
    /// Removes an image's reference from the store; `gc` frees its room
    #[command(after_help = "Example: floe rm docker://registry.example/app:v1")]
    Rm {
        /// The image
        image: String,
    },
    /// Keeps an image's layers when room is short; without IMAGE lists the pinned ones
    ///
    /// Nothing is fetched: what is here stays, and so does what comes later. A tag stays pinned when it comes to stand
    /// for another image.
    #[command(after_help = "Example: floe pin docker://registry.example/app:v1")]
    Pin {
        /// The image; it must be in the store
        image: Option<String>,
        /// Take the pin away
        #[arg(long, requires = "image")]
        remove: bool,
    },
    /// Frees what no image in the store refers to
    #[command(after_help = "Example: floe gc --dry-run")]
    Gc {
        /// Only say what would be freed
        #[arg(long)]
        dry_run: bool,
    },
    /// Serves a directory as an OCI registry
    #[command(after_help = "Example: floe registry /srv/images --listen 127.0.0.1:5000")]
    Registry {
        /// Directory of the images; made if absent
        dir: PathBuf,
        /// Address to listen on
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000")]
        listen: std::net::SocketAddr,
        /// Bytes per second for all connections together: a number and kbit, mbit or gbit
        #[arg(long, value_name = "RATE", value_parser = rate)]
        rate: Option<u64>,
    },
    /// Runs the daemon in the foreground; commands start one on demand
    #[command(after_help = "Example: floe daemon --listen unix:/run/floe.sock")]
    Daemon(Daemon),
    /// Holds for the daemon what must outlive it; the daemon starts it
    #[command(hide = true, after_help = "Example: floe keeper")]
    Keeper,
    /// Makes the daemon a service of this host and a snapshotter of its containerd; again, brings both up to date
    #[command(after_help = "Example: floe install")]
    Install,
    /// Fetches whole what is mounted, and takes away what `floe install` and the daemon have made
    #[command(after_help = "Example: floe uninstall")]
    Uninstall {
        /// Also while containerd has snapshots: what runs goes on, and cannot be started again
        #[arg(long)]
        force: bool,
    },
    /// Looks for what is in the way of starting images: kernel, store, limits, runtime, network, configuration
    #[command(after_help = "Example: floe doctor --registry registry.example")]
    Doctor(Doctor),
    /// Compares ways to start one image over a slow link, on this machine
    #[command(after_help = "Example: floe demo --rate 50mbit")]
    Demo(Demo),
    /// Prints a completion script for a shell
    #[command(after_help = "Example: floe completion bash >/etc/bash_completion.d/floe")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages, one for each command, into a directory
    #[command(after_help = "Example: floe man /usr/local/share/man/man1")]
    Man {
        /// The directory; made if absent
        dir: PathBuf,
    },
}

/// `floe convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// What its layers are
    #[arg(long)]
    pub format: LayerFormat,
    /// Of what, where to, and how
    #[command(flatten)]
    pub made: Made,
}

/// What is made of what, and how.
#[derive(Debug, Args)]
pub struct Made {
    /// The image: `docker://…`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]` or `dir:DIR`
    #[arg(value_name = "SRC")]
    pub from: String,
    /// Where the new one goes: one of the first three; it may be the same
    #[arg(value_name = "DST")]
    pub to: String,
    /// How hard to compress: 1 to 12 for gzip, to 22 for zstd [default: as the format's own tools]
    #[arg(long, value_name = "N")]
    pub level: Option<i32>,
    /// List the original before the new one, in one image index: who takes the first that fits gets that
    #[arg(long)]
    pub keep_original: bool,
    /// Before anything is named, read what was made from the destination and compare all files, also of layers that an
    /// earlier conversion made or noted there: without this they are believed
    #[arg(long)]
    pub verify: bool,
}

/// `floe optimize`.
#[derive(Debug, Args)]
pub struct Optimize {
    /// What its layers are [default: what they were; ordinary ones that are written anew become gzip]
    #[arg(long)]
    pub format: Option<LayerFormat>,
    /// The profile, of this image or one like it [default: the recorded one, or the registry's]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Of what, where to, and how
    #[command(flatten)]
    pub made: Made,
}

/// Format of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayerFormat {
    /// Gzip, lazy for stargz-snapshotter and Floe
    Estargz,
    /// Zstd, in parts for podman, buildah and CRI-O, lazy for Floe
    Zstdchunked,
    /// Ordinary layers: gzip instead of either; others stay. Of Nydus without an original beside it the tars are made anew, as one
    /// layer where its blobs do not each tell of theirs
    Oci,
    /// An EROFS file system for each layer, which containerd 2.3 or later mounts as it is (snapshotter and differ erofs)
    Erofs,
    /// Blobs of chunks and a bootstrap, lazy for nydus-snapshotter and Floe; the original is always kept beside it
    Nydus,
}

/// `floe pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// The image
    pub image: String,
    /// Make the image known to containerd instead, without fetching its layers: as `ctr` and `nerdctl`, this listens to
    /// CONTAINERD_ADDRESS, CONTAINERD_NAMESPACE and CONTAINERD_SNAPSHOTTER [default: floe]
    #[arg(long, value_name = "containerd[=SOCKET]")]
    pub to: Option<String>,
    /// Also put the layers' blobs into containerd's content store, as the registry has them: then the image can be
    /// exported, saved and pushed. What is there already is not fetched
    #[arg(long, requires = "to")]
    pub blobs: bool,
}

/// `floe run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The image
    pub image: String,
    /// Command instead of the image's
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// Variable for the container, NAME=VALUE or NAME to pass on
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Directory of this machine to show in the container
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    pub volumes: Vec<String>,
    /// Network of the container
    #[arg(long, value_name = "NET", default_value = "host")]
    pub net: Net,
    /// What counts as ready: line:TEXT on stdout, port:N on loopback, or exit
    #[arg(long, value_name = "WHEN", default_value = "exit")]
    pub ready: String,
    /// Stop the container once it is ready
    #[arg(long)]
    pub exit_when_ready: bool,
    /// End with where the time went: on stderr, or in a file of its own
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub timings: Option<PathBuf>,
    /// How the image is read [default: as configured, else auto]
    #[arg(long, value_name = "PATH")]
    pub path: Option<ReadPath>,
    /// Do not fetch the rest of the image in the background
    #[arg(long)]
    pub no_background: bool,
    /// OCI runtime to use [default: runc, else crun]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
}

/// Network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// The machine's own
    Host,
    /// Loopback only
    None,
}

/// `floe mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// The image
    pub image: String,
    /// An existing directory
    pub dir: PathBuf,
    /// How the image is read [default: as configured, else auto]
    #[arg(long, value_name = "PATH")]
    pub path: Option<ReadPath>,
    /// Do not fetch the rest of the image in the background
    #[arg(long)]
    pub no_background: bool,
}

/// `floe index`.
#[derive(Debug, Args)]
pub struct Index {
    /// The image
    pub image: String,
    /// Store the index beside the image, as an artifact that refers to it
    #[arg(long)]
    pub push: bool,
    /// Write the index artifact to an OCI layout directory; made if absent
    #[arg(short = 'o', value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Sign with this ed25519 private key (PKCS#8 PEM)
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// Ship what a start of the image reads: a profile file, or what the last run here recorded
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "recorded")]
    pub profile: Option<PathBuf>,
}

/// `floe daemon`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Daemon {
    /// Socket to listen on [default: below /run/floe, one per store; commands find either]
    #[arg(long, value_name = "unix:PATH")]
    pub listen: Option<String>,
    /// Write one byte to stdout once the socket answers, then let stdout go
    #[arg(long, hide = true)]
    pub notify: bool,
    /// Act on the running daemon
    #[command(subcommand)]
    pub action: Option<DaemonAction>,
}

/// What can be asked of the running daemon.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum DaemonAction {
    /// Unmounts everything and ends the daemon
    Stop,
    /// Replaces the daemon by this program; mounts stay, and reads wait for it
    Upgrade,
}

/// `floe doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Nothing is installed yet: needs no store and makes none
    #[arg(long)]
    pub pre: bool,
    /// Registry to talk to; otherwise nobody is
    #[arg(long, value_name = "HOST")]
    pub registry: Vec<String>,
    /// OCI runtime to use [default: runc, else crun]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
}

/// `floe demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Image to use instead of the one made from Debian packages
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// What counts as ready for `--image`
    #[arg(long, value_name = "WHEN", default_value = "line:READY")]
    pub ready: String,
    /// Speed of the link to the registry
    #[arg(long, value_name = "RATE", default_value = "100mbit", value_parser = rate)]
    pub rate: u64,
    /// Where the chart goes
    #[arg(long, value_name = "FILE", default_value = "floe-demo.svg")]
    pub svg: PathBuf,
}

/// Parses `100mbit` to bytes per second.
fn rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "kbit" => 1000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return Err("a rate is a number and kbit, mbit or gbit, as 100mbit".into()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is not a whole number"))?;
    match number.checked_mul(unit).map(|bits| bits / 8) {
        Some(bytes) if bytes >= 1000 => Ok(bytes),
        _ => Err("a rate is at least 8kbit".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_an_example() {
        use clap::CommandFactory;
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("Example: floe {}", command.get_name());
            assert!(help.starts_with(&example), "{}: {help:?}", command.get_name());
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn rates() {
        assert_eq!(rate("100mbit"), Ok(12_500_000));
        assert_eq!(rate("8kbit"), Ok(1000));
        for bad in ["7kbit", "100", "mbit", "1e3mbit", "99999999999999999999gbit", "-1mbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_of_the_container_follow_two_dashes() {
        let cli = Cli::try_parse_from(["floe", "run", "-e", "A=b", "img", "--", "sh", "-c", "id"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("run") };
        assert_eq!(run.command, ["sh", "-c", "id"]);
    }

    #[test]
    fn a_value_that_may_be_left_out_takes_no_image_for_itself() {
        let profile = |flag| {
            let cli = Cli::try_parse_from(["floe", "index", flag, "img"]).unwrap();
            let Command::Index(index) = cli.command else { panic!("index") };
            assert_eq!(index.image, "img");
            index.profile
        };
        assert_eq!(profile("--profile"), Some("recorded".into()));
        assert_eq!(profile("--profile=file"), Some("file".into()));
        let timings = |flag| {
            let cli = Cli::try_parse_from(["floe", "run", flag, "img"]).unwrap();
            let Command::Run(run) = cli.command else { panic!("run") };
            assert_eq!(run.image, "img");
            run.timings
        };
        assert_eq!(timings("--timings"), Some("-".into()));
        assert_eq!(timings("--timings=file"), Some("file".into()));
    }
}
