//! The targets under libFuzzer; `make fuzz` builds and runs it. `WIREPOST_FUZZ` names the target, everything else is libFuzzer's own.

#![no_main]

use std::sync::LazyLock;

/// From the environment: libFuzzer takes the command line, and hands it to the processes that it starts.
static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("WIREPOST_FUZZ").unwrap_or_default();
    wirepost_fuzz::target(&name).unwrap_or_else(|| {
        let known: Vec<_> = wirepost_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("WIREPOST_FUZZ={name} is no target; they are {}", known.join(" "));
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET(input));
