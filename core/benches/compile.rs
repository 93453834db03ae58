//! Compiling all businesses of a large cluster: `cargo bench -p wirepost-core --bench compile`.

#![allow(clippy::expect_used)]

use serde_json::json;
use wirepost_core::{WsBusiness, compile, compile::compile_one};

fn main() {
    divan::main();
}

fn business(i: usize) -> WsBusiness {
    let routes: Vec<_> = (0..8)
        .map(|r| match r % 2 {
            0 => json!({
                "messageType": format!("order.{r}.*"),
                "sendType": "ClientToServer",
                "queue": {"name": format!("q{r}")},
                "schema": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "pattern": "^[a-z]+$"}}},
            }),
            _ => json!({"messageType": format!("news.{r}"), "sendType": "ServerToClient", "to": ["app"]}),
        })
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "wirepost.dev/v1alpha1",
        "kind": "WsBusiness",
        "metadata": {"name": format!("b{i}"), "namespace": "bench"},
        "spec": {"clientTypes": ["app", "h5"], "routes": routes},
    }))
    .expect("a business")
}

#[divan::bench]
fn one(bencher: divan::Bencher<'_, '_>) {
    let business = business(0);
    bencher.bench(|| compile_one(&business));
}

#[divan::bench(sample_count = 10)]
fn a_thousand(bencher: divan::Bencher<'_, '_>) {
    let all: Vec<_> = (0..1000).map(business).collect();
    bencher.bench(|| compile(&all));
}
