//! The real kubectl, on the API server of the tests.

use std::path::PathBuf;
use std::process::Output;
use std::sync::OnceLock;

use anyhow::{Error, Result};
use tokio::process::Command;

use crate::cluster::Cluster;

/// kubectl as the administrator of a cluster.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// What it remembers of the cluster, and other files of the test.
    folder: tempfile::TempDir,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { status: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Kubectl {
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { program: program()?, kubeconfig: cluster.kubeconfig.clone(), folder })
    }

    /// Where it is.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// Writes a file for it.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Runs it, whatever it says.
    pub async fn run<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Result<Outcome> {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(self.folder.path().join("cache"));
        Ok(command.args(arguments).kill_on_drop(true).output().await?.into())
    }
}

/// The one that `WIREPOST_TEST_KUBECTL` names, else the cached one, which is built where it is missing (a minute or two).
fn program() -> Result<PathBuf> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || {
        if let Some(named) = std::env::var_os("WIREPOST_TEST_KUBECTL") {
            return Ok(named.into());
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/services/kubernetes-build");
        let built =
            std::process::Command::new(script).arg("kubectl").output().map_err(|error| format!("{script}: {error}"))?;
        if built.status.success() {
            Ok(PathBuf::from(String::from_utf8_lossy(&built.stdout).trim()).join("kubectl"))
        } else {
            Err(format!("no kubectl: {}", String::from_utf8_lossy(&built.stderr)))
        }
    };
    PROGRAM.get_or_init(find).clone().map_err(Error::msg)
}
