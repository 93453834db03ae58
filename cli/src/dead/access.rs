//! The broker's address and the user: from the access Secret, from flags, or both.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use wirepost_rabbitmq::{Address, BrokerTls, Endpoint, TlsFiles};

/// Above the size of any Secret.
const MAX_BYTES: u64 = 2 << 20;

/// Which business's dead letters, and how to reach them.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The business's access Secret: the folder where a pod has it mounted, a file from
    /// `kubectl get secret NAME -o yaml`, or - for stdin.
    #[arg(long, env = "WIREPOST_ACCESS", value_name = "PATH")]
    access: Option<PathBuf>,
    /// The broker, instead of the Secret's: amqp(s)://user:password@host:5672/vhost.
    #[arg(long, env = "WIREPOST_AMQP", hide_env_values = true, value_name = "URI")]
    amqp: Option<String>,
    /// Another address of the broker, such as a port-forward; everything else comes from the Secret or --amqp.
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<String>,
    /// The business, if the Secret does not contain it.
    #[arg(long, short)]
    business: Option<String>,
    /// CA certificates (PEM) for the broker's certificate. Default: those of the operating system.
    #[arg(long, env = "WIREPOST_AMQP_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// A business, and the broker with the credentials of its user.
pub(super) struct Target {
    pub(super) business: String,
    pub(super) endpoint: Endpoint,
}

/// The parsed arguments.
pub(super) struct Access {
    pub(super) target: Target,
    /// Full names of the business's queues, if the Secret contains them.
    pub(super) queues: Vec<String>,
}

impl Args {
    /// # Errors
    /// Something is missing or can't be read. The message contains no password.
    pub(super) fn read(self) -> anyhow::Result<Access> {
        let Self { access, amqp, at, business, ca_file } = self;
        let secret = access.as_deref().map(entries).transpose()?.unwrap_or_default();
        let business = business.or_else(|| secret.get("business-type").cloned()).context(
            "the business is missing: give --access (the access Secret contains it), or --business and --amqp",
        )?;
        let uri = amqp.or_else(|| secret.get("uri").cloned()).context(
            "the broker's address is missing: give --access (the access Secret contains it), or --amqp amqp://user:password@host:5672/vhost",
        )?;
        let mut address: Address = uri.parse().context("the broker's address")?;
        if let Some(at) = at {
            let (host, port) = at.rsplit_once(':').context("--at needs HOST:PORT")?;
            let port = port.parse().with_context(|| format!("--at {at}: {port:?} is not a port"))?;
            address = address.at(host.trim_matches(['[', ']']), port);
        }
        let endpoint =
            Endpoint::new(address, Some(&BrokerTls::new(TlsFiles { ca: ca_file, client: None })), "wirepost dead")?;
        let queues =
            secret.iter().filter(|(key, _)| key.starts_with("queue.")).map(|(_, queue)| queue.clone()).collect();
        Ok(Access { target: Target { business, endpoint }, queues })
    }
}

/// A Secret as `kubectl` prints it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

fn entries(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let named = |what: &str| format!("{what} {}", path.display());
    let entries = if path.is_dir() {
        folder(path).with_context(|| named("cannot read the Secret in"))?
    } else if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).context("cannot read stdin")?;
        object(&text).context("stdin is not the access Secret; pipe `kubectl get secret NAME -o yaml` into it")?
    } else {
        let text = std::fs::read_to_string(path).with_context(|| named("cannot read"))?;
        object(&text).with_context(|| {
            format!("{} is not a Secret as `kubectl get secret NAME -o yaml` prints it", path.display())
        })?
    };
    ensure!(
        entries.contains_key("uri"),
        "{} has no entry `uri`: it is not the access Secret of a WsBusiness (spec.access.secretName); `kubectl get secret NAME -o yaml` prints it",
        path.display()
    );
    Ok(entries)
}

/// A mounted Secret: one file for each entry.
fn folder(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut entries = BTreeMap::new();
    for file in std::fs::read_dir(path)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        // The volume's own links begin with dots.
        if !name.starts_with('.') && file.path().is_file() {
            let text = std::fs::read_to_string(file.path()).with_context(|| format!("entry {name}"))?;
            entries.insert(name, text.trim_end_matches(['\r', '\n']).to_owned());
        }
    }
    Ok(entries)
}

fn object(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    // JSON is YAML. The parser's message may quote a value, which is secret.
    let Ok(Secret { data, string_data }) = serde_yaml::from_str(text) else { bail!("it has no `data`") };
    let mut entries = string_data;
    for (key, value) in data {
        let bytes = BASE64_STANDARD.decode(value.trim()).map_err(|_| anyhow!("data.{key} is not base64"))?;
        entries.insert(key, String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(access: Option<&Path>) -> Args {
        Args { access: access.map(Path::to_owned), amqp: None, at: None, business: None, ca_file: None }
    }

    #[test]
    fn the_secret_is_read_as_a_pod_mounts_it_and_as_kubectl_prints_it() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [
            ("uri", "amqp://u:p@rabbit:5672/v\n"),
            ("business-type", "pay"),
            ("queue.orders", "wirepost.pay.q.orders"),
        ];
        for (name, value) in entries {
            std::fs::write(folder.path().join(name), value).unwrap();
        }
        let data: Vec<_> =
            entries.iter().map(|(name, value)| format!("  {name}: {}", BASE64_STANDARD.encode(value.trim()))).collect();
        let file = folder.path().join(".secret.yaml");
        std::fs::write(&file, format!("kind: Secret\ndata:\n{}\n", data.join("\n"))).unwrap();
        for path in [folder.path(), &file] {
            let access = args(Some(path)).read().unwrap();
            assert_eq!(access.target.business, "pay");
            assert_eq!(access.target.endpoint.address().host_and_port(), "rabbit:5672");
            assert_eq!(access.queues, ["wirepost.pay.q.orders"]);
        }
        let elsewhere = Args { at: Some("[::1]:15".into()), ..args(Some(&file)) }.read().unwrap();
        let address = elsewhere.target.endpoint.address();
        assert_eq!((address.host(), address.port()), ("::1", 15));
        assert_eq!(address.login().user, "u");
    }

    #[test]
    fn missing_arguments_are_named_and_passwords_are_not() {
        let message = |args: Args| format!("{:#}", args.read().err().unwrap());
        assert!(message(args(None)).contains("--access"));
        let named =
            |amqp: Option<&str>| Args { business: Some("pay".into()), amqp: amqp.map(Into::into), ..args(None) };
        assert!(message(named(None)).contains("--amqp"));
        assert!(!message(named(Some("amqp//u:secret@h"))).contains("secret"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "data: {password: c2VjcmV0}").unwrap();
        let said = message(args(Some(file.path())));
        assert!(said.contains("`uri`") && !said.contains("c2Vj"), "{said}");
    }
}
