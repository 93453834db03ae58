//! Any JSON as an issuer's keys: a token has to be checked with few of them.

use wirepost_core::key_set::{self, Algorithm, MAX_ALIKE, MAX_KEYS};

pub(crate) fn run(input: &[u8]) {
    let Ok(set) = serde_json::from_slice(input) else { return };
    let Ok(keys) = key_set::read(&set) else { return };
    assert!(keys.len() <= MAX_KEYS);
    let usable: Vec<_> = keys.iter().flatten().collect();
    for name in ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"] {
        let algorithm = Algorithm::named(name).expect("a name of the RFC");
        for key in &usable {
            let alike = usable.iter().filter(|other| other.id == key.id && other.is_for(algorithm)).count();
            assert!(alike <= MAX_ALIKE, "{alike} keys for one token");
        }
    }
}
