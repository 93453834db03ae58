//! Small files that change while the process runs: keys, certificates. They are polled and compared by content, because
//! a Secret mounted by Kubernetes changes by a symlink swap, which no watch on the file itself notices.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// How often files are polled.
pub const INTERVAL: Duration = Duration::from_secs(3);
/// Largest file that is read; ours have a few KiB.
const MAX_BYTES: u64 = 1 << 20;

/// A digest of the last content.
pub type Seen = [u8; 32];

/// The digest of the files' contents, for [`watch`] to compare with.
pub fn digest<const N: usize>(contents: &[Vec<u8>; N]) -> Seen {
    let mut hasher = Sha256::new();
    for content in contents {
        hasher.update((content.len() as u64).to_be_bytes());
        hasher.update(content);
    }
    hasher.finalize().into()
}

/// Reads one file as a whole, up to a bound.
///
/// # Errors
/// It is not there, is no file (to open a pipe would wait for its writer), is too large, or can't be read.
pub async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let mut content = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_BYTES + 1).read_to_end(&mut content).await?;
    if content.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other(format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(content)
}

async fn read_all<const N: usize>(paths: &[PathBuf; N]) -> Result<[Vec<u8>; N], String> {
    let mut contents = [const { Vec::new() }; N];
    for (content, path) in contents.iter_mut().zip(paths) {
        *content = read(path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    }
    Ok(contents)
}

/// Calls `apply` with the contents of all files whenever one of them has changed, until cancelled. `apply` itself keeps
/// the last valid value; files that were read in the middle of a change are read again at the next poll.
pub async fn watch<const N: usize>(
    paths: [PathBuf; N],
    mut seen: Seen,
    interval: Duration,
    cancel: CancellationToken,
    mut apply: impl FnMut([Vec<u8>; N]),
) {
    let mut unreadable = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match read_all(&paths).await {
            Ok(contents) => {
                unreadable = false;
                let now = digest(&contents);
                if now != seen {
                    seen = now;
                    apply(contents);
                }
            }
            // Logged once, not at every poll.
            Err(reason) if !unreadable => {
                unreadable = true;
                tracing::warn!(reason, "cannot read a watched file; its last valid content stays in use");
            }
            Err(_) => {}
        }
    }
}
