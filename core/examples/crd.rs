//! Writes the CustomResourceDefinitions into a folder: `cargo run -q -p wirepost-core --example crd crds/`.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or_else(|| io::Error::other("name the folder"))?);
    for (name, yaml) in wirepost_core::crd::files() {
        fs::write(folder.join(name), yaml)?;
    }
    Ok(())
}
