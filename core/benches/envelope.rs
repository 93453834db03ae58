//! What every message costs: reading the envelope once and writing it once with the edge's own fields.

use wirepost_core::Envelope;

fn main() {
    divan::main();
}

fn message(content_bytes: usize) -> Vec<u8> {
    let content = "x".repeat(content_bytes);
    format!(
        r#"{{"id":"0199c0de-0000-7000-8000-000000000001","messageType":"payment.completed","toUniqueId":"alice","timestamp":1790000000000,"content":{{"orderId":"4711","note":"{content}"}},"x-trace":"t-1"}}"#
    )
    .into_bytes()
}

#[divan::bench(args = [200, 4_000, 60_000])]
fn parse(bencher: divan::Bencher<'_, '_>, content_bytes: usize) {
    let bytes = message(content_bytes);
    bencher
        .counter(divan::counter::BytesCount::new(bytes.len()))
        .bench(|| Envelope::parse(divan::black_box(&bytes)).is_ok());
}

#[divan::bench(args = [200, 4_000, 60_000])]
fn parse_and_rewrite(bencher: divan::Bencher<'_, '_>, content_bytes: usize) {
    let bytes = message(content_bytes);
    bencher.counter(divan::counter::BytesCount::new(bytes.len())).bench(|| {
        let Ok(mut envelope) = Envelope::parse(divan::black_box(&bytes)) else { return 0 };
        envelope.business_type = Some("payments".into());
        let mut out = Vec::with_capacity(bytes.len() + 128);
        envelope.write_with_cursor("AQAAAAAAAAAAAAAAAAAAAAAAAABwYXltZW50cw", &mut out);
        out.len()
    });
}
