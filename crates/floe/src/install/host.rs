//! This host: its service manager, and files that are ours to write and to take away.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::units::HEAD;
use crate::exit::Hint;

/// Says whether this host can have a service.
pub(super) fn check() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            anyhow::anyhow!("only root can")
                .context(Hint::new("changing this host's services", "sudo floe …"))
        );
    }
    if !sd_notify::booted().context("looking for systemd")? {
        bail!(anyhow::anyhow!("systemd does not run here").context(Hint::new(
            "changing this host's services",
            "have whatever starts services run `floe daemon`, with [containerd] socket in /etc/floe/config.toml"
        )));
    }
    Ok(())
}

/// Writes a text, unless somebody else's is there.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    match fs::read_to_string(path) {
        Ok(found) if found == text => return Ok(()),
        Ok(found) if !found.starts_with(HEAD) => bail!(
            anyhow::anyhow!("somebody else has written it")
                .context(Hint::new(format!("writing {}", path.display()), "move it away, and install again"))
        ),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("reading {}", path.display()));
        }
        _ => {}
    }
    put(path, text.as_bytes(), 0o644)
}

/// Puts a copy of a program in its place, also while the former one runs.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let program = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == program) {
        return Ok(());
    }
    put(to, &program, 0o755)
}

/// The file appears whole.
fn put(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || {
        let dir = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(dir)?;
        let new = path.with_extension("floe-new");
        let _ = fs::remove_file(&new); // of an attempt that was cut short
        let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(&new)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Empties a directory, and removes it unless it is a mount point.
pub(super) fn clear(dir: &Path) -> anyhow::Result<bool> {
    let dir = match dir.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        found => found.with_context(|| format!("looking for {}", dir.display()))?,
    };
    let clear = || -> std::io::Result<()> {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::ResourceBusy => Err(error),
            _ => Ok(()),
        }
    };
    clear().with_context(|| format!("removing {}", dir.display()))?;
    Ok(true)
}

/// Takes a file of ours away; false if there is none. What somebody else has written stays.
pub(super) fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::read_to_string(path) {
        Ok(found) if found.starts_with(HEAD) => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    Ok(true)
}

/// Asks systemd.
pub(super) fn systemctl(words: &[&str]) -> anyhow::Result<String> {
    run("systemctl", words)
}

/// Says whether a unit is `active`, or `failed`.
pub(super) fn is(state: &str, unit: &str) -> bool {
    systemctl(&[&format!("is-{state}"), "--quiet", unit]).is_ok()
}

/// Runs a program to its end; returns what it printed.
pub(super) fn run(program: &str, words: &[&str]) -> anyhow::Result<String> {
    let doing = || format!("running {program} {}", words.join(" "));
    let output = Command::new(program).args(words).output().with_context(doing)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(anyhow::anyhow!("{}: {}", output.status, said.trim()).context(doing()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_stay_and_ours_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("new/ours"), dir.path().join("theirs"));
        let text = format!("{HEAD}text\n");
        write(&ours, &text).unwrap();
        write(&ours, &format!("{HEAD}another\n")).unwrap();
        fs::write(&theirs, "theirs").unwrap();
        assert!(format!("{:#}", write(&theirs, &text).unwrap_err()).contains("somebody else"));
        assert!(!remove(&theirs).unwrap());
        assert!(theirs.exists());
        assert!(remove(&ours).unwrap());
        assert!(!remove(&ours).unwrap());
    }
}
