//! Changes inputs at random, for where no engine runs: without the guidance of coverage, changing what was kept finds more than making up
//! new bytes.

use rand::{Rng, RngExt, seq::IndexedRandom};

/// Largest input.
const LONGEST: usize = 4 << 10;
/// Most changes of one input.
const CHANGES: u32 = 6;
/// Numbers at which something ends.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// An input made of `kept` ones.
pub fn mutated(kept: &[Vec<u8>], rng: &mut impl Rng) -> Vec<u8> {
    let mut input = kept.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..=CHANGES) {
        change(&mut input, kept, rng);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, kept: &[Vec<u8>], rng: &mut impl Rng) {
    let at = rng.random_range(0..=input.len());
    let some = |rng: &mut _| some(input.len() - at, rng);
    match rng.random_range(0..8) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 => input.insert(at, rng.random()),
        3 => {
            let end = at + some(rng);
            input.drain(at..end);
        }
        4 => {
            let piece = input[at..at + some(rng)].to_vec();
            let to = rng.random_range(0..=input.len());
            input.splice(to..to, piece);
        }
        5 => {
            let number = EDGES.choose(rng).copied().unwrap_or_default().to_be_bytes();
            let bytes = 1 << rng.random_range(0..4);
            for (byte, edge) in input.iter_mut().skip(at).zip(&number[8 - bytes..]) {
                *byte = *edge;
            }
        }
        // A piece of another one, over this one or into it.
        kind => {
            let Some(other) = kept.choose(rng) else { return };
            let from = rng.random_range(0..=other.len());
            let piece = &other[from..from + some_of(other.len() - from, rng)];
            let end = if kind == 6 { (at + piece.len()).min(input.len()) } else { at };
            input.splice(at..end, piece.iter().copied());
        }
    }
}

fn some(most: usize, rng: &mut impl Rng) -> usize {
    rng.random_range(0..=most.min(64))
}

fn some_of(most: usize, rng: &mut impl Rng) -> usize {
    rng.random_range(0..=most)
}
