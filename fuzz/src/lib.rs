//! What reads bytes that somebody else wrote, fed with any bytes. A target takes an input and panics if a property does not hold: never only
//! "it does not crash", but that what was written is what is read, that two readers agree, that memory is bounded, that nobody's word is
//! taken for ours.
//!
//! The inputs that were worth keeping are in `corpus/TARGET/`. A test runs all of them, and changed ones for a while ([`mutate`]), wherever
//! the other unit tests run. `make fuzz` runs the same targets under libFuzzer, guided by coverage. `docs/development.md` says how.

pub mod input;
pub mod memory;
pub mod mutate;
mod targets;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("claims", targets::claims::run),
    ("configuration", targets::configuration::run),
    ("control", targets::control::run),
    ("cursor", targets::cursor::run),
    ("declaration", targets::declaration::run),
    ("envelope", targets::envelope::run),
    ("head", targets::head::run),
    ("inflate", targets::inflate::run),
    ("keys", targets::keys::run),
    ("pattern", targets::pattern::run),
    ("properties", targets::properties::run),
    ("seal", targets::seal::run),
    ("sections", targets::sections::run),
    ("splice", targets::splice::run),
    ("stream", targets::stream::run),
    ("ticket", targets::ticket::run),
    ("websocket", targets::websocket::run),
    ("yaml", targets::yaml::run),
];

/// The target of this name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

#[cfg(test)]
mod tests;
