//! Ids of connections and events.

use wirepost_runtime::clock;

/// A new id (UUIDv7). Its random part comes from this thread's generator: the library's own way costs system calls for
/// each id. Ids of one millisecond have no order.
pub fn new() -> String {
    with(rand::random())
}

/// A new id of a connection: the last 62 bits are those of its session.
pub fn of_session(session: u64) -> String {
    let mut random: [u8; 10] = rand::random();
    random[2..].copy_from_slice(&session.to_be_bytes());
    with(random)
}

fn with(random: [u8; 10]) -> String {
    let now = u64::try_from(clock::now_ms()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(now, &random).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_different_and_carry_the_time() {
        let before = clock::now_ms() as u64;
        let ids = [new(), new()];
        assert_ne!(ids[0], ids[1]);
        let id = uuid::Uuid::parse_str(&ids[0]).unwrap();
        assert_eq!(id.get_version_num(), 7);
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        let millis = seconds * 1000 + u64::from(nanos) / 1_000_000;
        assert!((before..=clock::now_ms() as u64).contains(&millis));
    }
}
