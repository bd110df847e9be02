//! Writes the tars of the torture image: `torture DIR` makes `00-hidden.tar` and so on there, bottom first.

use std::fs;
use std::io;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| io::Error::other("usage: torture DIR"))?;
    for (n, layer) in testkit::torture::layers().into_iter().enumerate() {
        let name = layer.name.replace(' ', "-");
        fs::write(dir.join(format!("{n:02}-{name}.tar")), layer.tar)?;
    }
    Ok(())
}
