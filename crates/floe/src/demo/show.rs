//! `floe demo`: one image started four ways over a slow link, on this machine, compared.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use registry::{Content, ImageName, Pick, Reference, Server, ServerConfig, ServerStats};

use super::chart::{self, Row};
use super::{full_pull, image};
use crate::cli::{self, Output};
use crate::commands::run::start;
use crate::commands::{Session, serve};
use crate::daemon::client::Address;
use crate::daemon::protocol::{Call, Indexed};
use crate::daemon::run_dir;
use crate::origin::Net;
use crate::run::{self, Options, ReadyWhen};

/// Name of the image in the demo's own registry.
const REPOSITORY: &str = "demo";
const TAG: &str = "v1";

/// Where a demo works, below the cache: its process's number follows.
const WORK: &str = "demo-run-";

/// The stores it makes there: of the full pull, which only runs a container, and of three machines.
const STORES: [&str; 4] = ["full-run", "first", "lazy", "profile"];

/// Runs the demo and shows what came out.
pub(crate) fn run(session: &Session, args: &cli::Demo) -> anyhow::Result<()> {
    let cache = cache()?;
    for work in leftovers(&cache) {
        if let Err(error) = clear(&work) {
            tell(&format!("(a demo that was killed has left {}: {error:#})", work.display()));
        }
    }
    let work = cache.join(format!("{WORK}{}", std::process::id()));
    let result = compare(session, args, &cache, &work);
    let cleared = clear(&work);
    let rows = result?;
    cleared?;

    std::fs::write(&args.svg, chart::svg(&title(args), &rows))
        .with_context(|| format!("writing {}", args.svg.display()))?;
    if session.output == Output::Json {
        return session.print(&rows, |_| String::new());
    }
    let colour = std::io::IsTerminal::is_terminal(&std::io::stdout())
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let width =
        rustix::termios::tcgetwinsize(rustix::stdio::stdout()).map_or(100, |size| size.ws_col.max(60));
    let text = format!(
        "\n{}\n\n{}\nchart: {}\n",
        title(args),
        chart::bars(&rows, width.into(), colour),
        args.svg.display()
    );
    crate::commands::out(text.as_bytes())
}

/// Returns where demos worked whose process is gone.
fn leftovers(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let gone = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let process = name.strip_prefix(WORK).and_then(|number| number.parse::<u32>().ok());
        process.is_some_and(|number| !Path::new(&format!("/proc/{number}")).exists())
    };
    entries.map(|entry| entry.path()).filter(gone).collect()
}

/// Ends the containers and daemons of a demo, then removes all it made: a store cannot be removed under a daemon.
fn clear(work: &Path) -> anyhow::Result<()> {
    let stores = STORES.map(|name| work.join(name));
    for store in &stores {
        run::sweep(store);
        stop(store)?;
        let run = run_dir(store)?;
        if run.exists() {
            // Logs and locks of daemons that will never run again.
            std::fs::remove_dir_all(&run).with_context(|| format!("removing {}", run.display()))?;
        }
    }
    let removed = if work.exists() { std::fs::remove_dir_all(work) } else { Ok(()) };
    removed.with_context(|| format!("removing {}", work.display()))
}

fn title(args: &cli::Demo) -> String {
    let image = args.image.as_deref().unwrap_or("Debian with Python, NumPy, Pillow, requests");
    format!("{image}: from the command to ready, link of {} Mbit/s", args.rate * 8 / 1_000_000)
}

fn cache() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
        (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set: where may the demo keep its image?"),
    };
    Ok(base.join("floe"))
}

fn compare(session: &Session, args: &cli::Demo, cache: &Path, work: &Path) -> anyhow::Result<Vec<Row>> {
    let layout = match &args.image {
        Some(image) => image.clone(),
        None => format!("oci:{}:{}", image::ensure(cache, &mut tell)?.display(), image::TAG),
    };
    std::fs::create_dir_all(work).with_context(|| format!("creating {}", work.display()))?;
    let ready: ReadyWhen = args.ready.parse().map_err(crate::exit::misused)?;
    let stage = Stage::set(session, work, &layout.parse()?, ready)?;

    let mut rows = Vec::new();
    tell(&format!("1/4  {}", full_pull::DESCRIPTION));
    rows.push(stage.measure("full pull", args.rate, || stage.full())?);
    tell("2/4  floe, first start anywhere: no index yet, so the layers are streamed and indexed");
    rows.push(stage.measure("floe, first", args.rate, || stage.floe("first"))?);
    stage.push_index("first", None)?;
    tell("3/4  floe, another machine: the registry has the index");
    rows.push(stage.measure("floe, lazy", args.rate, || stage.floe("lazy"))?);
    stage.push_index("lazy", Some(Path::new("recorded")))?;
    tell("4/4  floe, yet another machine: the registry also has what a start reads");
    rows.push(stage.measure("floe, profile", args.rate, || stage.floe("profile"))?);
    Ok(rows)
}

fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}"); // talk: a closed stderr is not our failure
}

/// The registry with the image in it, and where stores are made.
struct Stage<'a> {
    session: &'a Session,
    work: &'a Path,
    net: Net,
    server: Server,
    image: String,
    ready: ReadyWhen,
}

impl<'a> Stage<'a> {
    fn set(session: &'a Session, work: &'a Path, from: &Reference, ready: ReadyWhen) -> anyhow::Result<Self> {
        let net = Net::new(&session.config, None)?;
        let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let server =
            net.run(Server::start(ServerConfig { dir: work.join("registry"), listen, rate: None }))?;
        let image = format!("docker://{}/{REPOSITORY}:{TAG}", server.address());
        let stage = Self { session, work, net, server, image, ready };
        stage.copy(from).with_context(|| format!("copying {from} into the demo's registry"))?;
        Ok(stage)
    }

    /// Copies an image into the registry, through files: a layer need not fit in memory.
    fn copy(&self, from: &Reference) -> anyhow::Result<()> {
        let source = self.net.source(from)?;
        let image = self.net.image(&source)?;
        let name: ImageName = match self.image.parse()? {
            Reference::Registry(name) => name,
            _ => bail!("the demo's own registry has no name"),
        };
        let to = self.net.client().repository(name.host(), name.repository());
        self.net.run(to.push_blob(&Content::bytes(image.config.clone()), None))?;
        for layer in &image.layers {
            let file = self.work.join("layer");
            self.net.save(&source, &layer.digest, layer.size, &file)?;
            let content = self.net.run(Content::file(&file))?;
            if *content.digest() != layer.digest {
                bail!("layer {} came as {}", layer.digest, content.digest());
            }
            self.net.run(to.push_blob(&content, None))?;
            std::fs::remove_file(&file).context("removing a copied layer")?;
        }
        Ok(self.net.run(to.push_manifest(&image.manifest, &Pick::of(&name)))?)
    }

    /// Lets one way run over the slow link, with nothing of the image in memory.
    fn measure(
        &self,
        system: &str,
        rate: u64,
        way: impl FnOnce() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<Row> {
        drop_caches();
        let before = self.server.stats();
        self.server.set_rate(Some(rate));
        let seconds = way().with_context(|| format!("measuring {system}"));
        let ServerStats { requests, bytes_sent, .. } = self.server.stats();
        self.server.set_rate(None);
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let megabytes = (bytes_sent - before.bytes_sent) as f64 / 1e6;
        let requests = requests - before.requests;
        Ok(Row { system: system.into(), seconds: seconds?.as_secs_f64(), megabytes, requests })
    }

    fn options(&self, store: &Path) -> Options {
        let mut options = Options::new(store);
        options.ready = Some(self.ready.clone());
        options.exit_when_ready = true;
        options.stdout = run::Output::Discard;
        options
    }

    fn full(&self) -> anyhow::Result<Duration> {
        let source = full_pull::Source {
            registry: self.server.address(),
            repository: REPOSITORY.into(),
            reference: TAG.into(),
        };
        let measured =
            full_pull::measure(&source, &self.work.join("full"), self.options(&self.work.join("full-run")))?;
        measured.ready.context("the container ended before it was ready")
    }

    fn floe(&self, name: &str) -> anyhow::Result<Duration> {
        let session = self.session_of(name);
        let begun = Instant::now();
        let started = start(&session, self.image.clone(), None, false, self.options(&session.address.root))?;
        let ready = started.ready.context("the container ended before it was ready")?;
        stop(&session.address.root)?;
        Ok(ready.saturating_duration_since(begun))
    }

    fn push_index(&self, name: &str, profile: Option<&Path>) -> anyhow::Result<()> {
        let call = Call::Index {
            image: self.image.clone(),
            push: true,
            out: None,
            sign: None,
            profile: profile.map(Path::to_owned),
        };
        let _: Indexed = self.session_of(name).ask(call).context("storing the index beside the image")?;
        stop(&self.work.join(name))
    }

    fn session_of(&self, name: &str) -> Session {
        let address = Address { root: self.work.join(name), config: self.session.address.config.clone() };
        Session { address, output: Output::Human, config: self.session.config.clone() }
    }
}

fn stop(root: &Path) -> anyhow::Result<()> {
    serve::stop(&Address { root: root.to_owned(), config: None })
}

/// What another machine would not have in memory. Only root can; without it all ways gain alike.
fn drop_caches() {
    rustix::fs::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        tell(&format!("     (memory still holds files that were read before: {error})"));
    }
}
