//! Are there enough open files for the sockets that this edge offers? Without a word at the start a person learns of it under load.

/// Beyond the sockets: connections to the broker, files, those that are being refused.
const SPARE: usize = 100;

/// What is wrong, where this process may open fewer files than `max_connections` sockets need. `limits`: the text of `/proc/self/limits`
/// (proc(5)); what can't be read there is taken for enough.
pub fn shortage(limits: &str, max_connections: usize) -> Option<String> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let soft: usize = line.split_whitespace().nth(3)?.parse().ok()?;
    let needed = max_connections + max_connections / 10 + SPARE;
    (soft < needed).then(|| {
        format!(
            "this process may open {soft} files, and {max_connections} sockets need {needed}: clients beyond that will hang; raise the limit of open files, or lower --max-connections"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_told_of_and_no_other() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\nMax processes             5                    5                    processes\nMax open files            {soft}                1048576              files\n"
            )
        };
        let text = shortage(&limits("1024"), 20_000).unwrap();
        assert!(text.contains("1024") && text.contains("22100"), "{text}");
        assert_eq!(shortage(&limits("22100"), 20_000), None);
        assert_eq!(shortage(&limits("unlimited"), 20_000), None);
        assert_eq!(shortage("", 20_000), None);
    }

    #[test]
    fn this_machine_s_own_text_is_understood() {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert!(shortage(&limits, usize::MAX / 2).is_some() || limits.contains("unlimited"), "{limits}");
    }
}
