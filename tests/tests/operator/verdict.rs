//! `wirepost check` says of a file what `kubectl apply` says, whatever the file looks like; the table is `cases.yaml`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;
use wirepost_testing::cluster::Cluster;
use wirepost_testing::kubectl::{Kubectl, Outcome};
use wirepost_testing::process::binary;

/// Programs at once: kubectl is a large one.
const AT_ONCE: usize = 3;

#[derive(Deserialize)]
struct Table {
    good: String,
    cases: Vec<Document>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    case: String,
    old: Option<String>,
    new: Option<String>,
    file: Option<String>,
    #[serde(default, rename = "as")]
    written: Written,
    is: Verdict,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Written {
    #[default]
    Utf8,
    Utf8Bom,
    Utf16le,
    Utf16be,
    Utf16leWithoutBom,
    Latin1,
    Crlf,
    Cr,
    NoNewline,
    Json,
    JsonBom,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Fine,
    Refused,
}

impl Verdict {
    /// 2: nothing could be checked.
    fn of(outcome: &Outcome) -> Result<Self> {
        match outcome.status {
            0 => Ok(Self::Fine),
            1 => Ok(Self::Refused),
            _ => bail!("neither fine nor refused: {outcome:?}"),
        }
    }
}

impl Table {
    fn read() -> Result<Self> {
        Ok(serde_yaml::from_str(include_str!("verdict/cases.yaml"))?)
    }

    fn bytes(&self, case: &Document, namespace: &str) -> Result<Vec<u8>> {
        let bad = self.good.replace("clientTypes: [app]", "clientTypes: []");
        let bare: String = self.good.lines().skip(2).flat_map(|line| [line, "\n"]).collect();
        let mut text = match &case.file {
            Some(file) => file
                .replace("GOOD\n", &self.good)
                .replace("OTHER\n", &self.good.replace("name: pay", "name: other"))
                .replace("BAD\n", &bad),
            None => self.good.clone(),
        };
        for (item, content) in [("- ITEM\n", &self.good), ("- BADITEM\n", &bad), ("- BAREITEM\n", &bare)] {
            if let Some(at) = text.find(item) {
                let indent = " ".repeat(text[..at].chars().rev().take_while(|c| *c == ' ').count());
                let lines = content.lines().flat_map(|line| [&indent, "  ", line, "\n"]).collect::<String>();
                text = text.replacen(&format!("{indent}{item}"), &format!("{indent}-\n{lines}"), 1);
            }
        }
        if let (Some(old), Some(new)) = (&case.old, &case.new) {
            ensure!(text.contains(old.as_str()), "{}: the good file has no {old:?}", case.case);
            text = text.replace(old.as_str(), new);
        }
        write(&text.replace("NAMESPACE", namespace), case.written)
    }
}

fn write(text: &str, written: Written) -> Result<Vec<u8>> {
    let utf16 = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let bom = "\u{feff}";
    let json = || -> Result<String> { Ok(serde_json::to_string_pretty(&serde_yaml::from_str::<Value>(text)?)?) };
    Ok(match written {
        Written::Utf8 => text.into(),
        Written::Utf8Bom => format!("{bom}{text}").into(),
        Written::Utf16le => [&[0xff, 0xfe][..], &utf16(u16::to_le_bytes)].concat(),
        Written::Utf16be => [&[0xfe, 0xff][..], &utf16(u16::to_be_bytes)].concat(),
        Written::Utf16leWithoutBom => utf16(u16::to_le_bytes),
        Written::Latin1 => text.chars().map(u8::try_from).collect::<Result<_, _>>()?,
        Written::Crlf => text.replace('\n', "\r\n").into(),
        Written::Cr => text.replace('\n', "\r").into(),
        Written::NoNewline => text.trim_end().into(),
        Written::Json => json()?.into(),
        Written::JsonBom => format!("{bom}{}", json()?).into(),
    })
}

async fn check(file: &Path) -> Result<Outcome> {
    Ok(Command::new(binary("wirepost")?).arg("check").arg(file).output().await?.into())
}

#[tokio::test]
async fn check_says_what_kubectl_apply_says() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("verdict").await?;
    let kubectl = Kubectl::new(&cluster)?;
    let table = Table::read()?;
    let judge = async |(number, case): (usize, &Document)| -> Result<Option<String>> {
        let file = kubectl.file(&format!("{number}.yaml"), table.bytes(case, &namespace.name)?)?;
        let path = file.to_str().context("not a name")?;
        let apply = ["apply", "--dry-run=server", "--namespace", &namespace.name, "--filename", path];
        let (cluster, offline) = (kubectl.run(apply).await?, check(&file).await?);
        let verdicts = [Verdict::of(&cluster)?, Verdict::of(&offline)?];
        let as_meant = verdicts == [case.is; 2];
        Ok((!as_meant).then(|| {
            let (meant, [by_cluster, by_check]) = (case.is, verdicts);
            format!(
                "{}: meant to be {meant:?}\n  kubectl {by_cluster:?}: {}{}\n  check {by_check:?}: {}{}",
                case.case, cluster.stdout, cluster.stderr, offline.stdout, offline.stderr
            )
        }))
    };
    let results: Vec<_> =
        stream::iter(table.cases.iter().enumerate()).map(judge).buffer_unordered(AT_ONCE).collect().await;
    let wrong = results.into_iter().collect::<Result<Vec<_>>>()?;
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.cases.len(), wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn what_kubectl_get_exports_is_fine_for_both() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("verdict-export").await?;
    let kubectl = Kubectl::new(&cluster)?;
    let table = Table::read()?;
    let file = kubectl.file("good.yaml", &table.good)?;
    let place = ["--namespace", &namespace.name];
    let apply = async |file: &Path| kubectl.run(["apply", "-f", &file.to_string_lossy()].iter().chain(&place)).await;
    let applied = apply(&file).await?;
    ensure!(applied.status == 0, "{applied:?}");
    for (what, format) in [("wsb/pay", "yaml"), ("wsb/pay", "json"), ("wsb", "yaml"), ("wsb", "json")] {
        let get = ["get", what, "--output", format, "--show-managed-fields"];
        let exported = kubectl.run(get.iter().chain(&place)).await?;
        ensure!(exported.status == 0, "{exported:?}");
        let exported = kubectl.file(&format!("export.{format}"), exported.stdout)?;
        let (by_check, by_kubectl) = (check(&exported).await?, apply(&exported).await?);
        ensure!((by_check.status, by_kubectl.status) == (0, 0), "{what} as {format}: {by_check:?}\n{by_kubectl:?}");
    }
    Ok(())
}
