//! AMQP topic patterns, matched as the broker's topic exchange does (AMQP 0-9-1, section 3.1.3.3): words separated by dots, `*` is one
//! word, `#` is any number of words, including none.

/// Whether `pattern` matches `key`. Runs in O(words of pattern x words of key), whatever the pattern: no exponential backtracking.
pub fn matches(pattern: &str, key: &str) -> bool {
    if !pattern.contains(['*', '#']) {
        return pattern == key;
    }
    let key: Vec<&str> = key.split('.').collect();
    // reachable[j]: the part of the pattern read so far matches the first j words of the key.
    let mut reachable = vec![false; key.len() + 1];
    reachable[0] = true;
    for word in pattern.split('.') {
        let mut next = vec![false; key.len() + 1];
        if word == "#" {
            let mut any = false;
            for (j, slot) in next.iter_mut().enumerate() {
                any |= reachable[j];
                *slot = any;
            }
        } else {
            for j in 0..key.len() {
                next[j + 1] = reachable[j] && (word == "*" || word == key[j]);
            }
        }
        reachable = next;
    }
    reachable[key.len()]
}

/// A message type that a pattern matches, for examples.
pub fn example(pattern: &str) -> String {
    let words = pattern.split('.').map(|word| if matches!(word, "*" | "#") { "example" } else { word });
    words.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn words_star_and_hash_match_as_the_broker_does() {
        for (pattern, key, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "a.b", true),
            ("#.c", "a.b.c", true),
            ("#.c", "c", true),
            ("*.#.c", "c", false),
            ("a.#.b.#.c", "a.x.b.y.z.c", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} on {key}");
        }
    }
}
