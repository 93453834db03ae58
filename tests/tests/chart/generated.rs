//! Files that are made of others.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::render::{CHART, examples, file, run};

#[test]
fn the_crds_in_the_chart_are_those_in_crds() -> Result<()> {
    for (name, shipped) in [
        ("wsbusinesses", include_str!("../../../crds/wsbusinesses.wirepost.dev.yaml")),
        ("wsbusinessclasses", include_str!("../../../crds/wsbusinessclasses.wirepost.dev.yaml")),
    ] {
        ensure!(file(&format!("files/{name}.wirepost.dev.yaml"))? == shipped, "the chart's {name} is stale: make crds");
    }
    Ok(())
}

#[test]
fn the_readme_is_what_the_values_say() -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/chart-readme");
    let output = Command::new(script).arg("--check").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn lint_has_nothing_to_say() -> Result<()> {
    let default = ("the defaults".to_owned(), String::new());
    for (name, values) in examples()?.into_iter().chain([default]) {
        let output = run(&["lint", "--strict", CHART], &values)?;
        ensure!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// `COPY` takes no rust-toolchain.toml, see the Dockerfile.
#[test]
fn images_are_built_with_the_pinned_compiler() -> Result<()> {
    let quoted = include_str!("../../../rust-toolchain.toml").split('"').nth(1).unwrap_or_default();
    ensure!(include_str!("../../../Dockerfile").contains(&format!("\nARG RUST={quoted}\n")), "Rust {quoted} is pinned");
    Ok(())
}

/// Image tags are the chart's appVersion, which is that of the programs.
#[test]
fn the_chart_has_the_programs_version() -> Result<()> {
    let wanted = format!("\nappVersion: {}\n", env!("CARGO_PKG_VERSION"));
    ensure!(file("Chart.yaml")?.contains(&wanted), "Chart.yaml has no{wanted}");
    Ok(())
}
