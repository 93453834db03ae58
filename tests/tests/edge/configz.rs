//! `/configz` for who waits for a change: tags, long polls and their bounds.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::{ETAG, IF_NONE_MATCH};
use serde_json::Value;
use tokio::task::JoinHandle;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::setup::{PAYMENTS, Setup};

/// Waits that an edge keeps at the same time.
const WAITERS: usize = 16;

async fn get(edge: &Edge, query: &str, tag: &str) -> Result<(u16, String, Value)> {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE * 2).build()?;
    let answer = http.get(format!("http://{}/configz{query}", edge.admin)).header(IF_NONE_MATCH, tag).send().await?;
    let status = answer.status().as_u16();
    let tag = answer.headers().get(ETAG).context("no ETag")?.to_str()?.to_owned();
    let body = answer.bytes().await?;
    Ok((status, tag, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? }))
}

fn wait(edge: &Edge, tag: &str) -> Result<JoinHandle<Result<reqwest::Response, reqwest::Error>>> {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE * 2).build()?;
    let request = http.get(format!("http://{}/configz?wait=30", edge.admin)).header(IF_NONE_MATCH, tag);
    Ok(tokio::spawn(request.send()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_stands_for_what_is_loaded_and_a_wait_ends_with_the_change() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let (status, tag, body) = get(&edge, "", "\"another\"").await?;
    assert_eq!((status, &body["edge"]), (200, &"e1".into()));
    assert_eq!(get(&edge, "", &tag).await?, (304, tag.clone(), Value::Null));
    assert_eq!(get(&edge, "?wait=1", &format!("\"x\", {tag}")).await?.0, 304, "nothing changes meanwhile");
    // What changes on its own is not in the tag.
    eventually("the broker is up", PATIENCE, || async { Ok(get(&edge, "", "").await?.2["broker"] == "up") }).await?;
    assert_eq!(get(&edge, "", "").await?.1, tag);

    let waiting = wait(&edge, &tag)?;
    setup.reconfigure("payments", |config| config.generation += 1)?;
    let changed = waiting.await??;
    assert_eq!(changed.status().as_u16(), 200);
    assert_ne!(changed.headers()[ETAG], tag);
    // Who asks with an old tag does not wait.
    assert_eq!(get(&edge, "?wait=30", &tag).await?.0, 200);
    // No number is no wait.
    assert_eq!(edge.admin("/configz?wait=soon").await?.0, 400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_are_bounded_in_number_and_end_with_the_edge() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let tag = get(&edge, "", "").await?.1;
    let waiting = (0..WAITERS).map(|_| wait(&edge, &tag)).collect::<Result<Vec<_>>>()?;
    // As soon as all of them wait, the next one does not.
    eventually("the seventeenth is answered at once", PATIENCE, || async {
        let answer = tokio::time::timeout(Duration::from_secs(1), get(&edge, "?wait=30", &tag)).await;
        Ok(answer.is_ok_and(|answer| answer.is_ok_and(|(status, ..)| status == 304)))
    })
    .await?;
    edge.sigterm()?;
    assert!(edge.exited(PATIENCE).await?.success());
    for waiting in waiting {
        assert_eq!(waiting.await??.status().as_u16(), 304);
    }
    Ok(())
}
