use std::{
    collections::BTreeSet,
    env, fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// Longest time for one input, on a busy machine in a debug build.
const LONGEST: Duration = Duration::from_secs(20);

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn kept(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(corpus(name)).unwrap_or_else(|error| panic!("corpus/{name}: {error}"));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs a target; a failure names the input, and keeps it where `make fuzz` keeps what it finds.
fn run((name, target): &Target, input: &[u8], from: &str) {
    let begun = Instant::now();
    let failed = panic::catch_unwind(AssertUnwindSafe(|| target(input))).is_err();
    let long = begun.elapsed() > LONGEST;
    if failed || long {
        let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
        fs::create_dir_all(&found).unwrap();
        let file = found.join(format!("{name}-{}", from.replace(|c: char| !c.is_ascii_alphanumeric(), "-")));
        fs::write(&file, input).unwrap();
        panic!(
            "{name} {} with {from}: see above; the input is {}",
            if long { "hangs" } else { "fails" },
            file.display()
        );
    }
}

#[test]
fn every_kept_input_holds() {
    for target in TARGETS {
        let kept = kept(target.0);
        assert!(!kept.is_empty(), "{} has no input to begin with", target.0);
        for (path, input) in kept {
            run(target, &input, &path.file_name().unwrap().to_string_lossy());
        }
    }
}

#[test]
fn what_is_kept_belongs_to_a_target_and_is_small() {
    let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let folders = fs::read_dir(corpus("")).unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap());
    assert_eq!(folders.collect::<BTreeSet<_>>(), names);
    for (name, _) in TARGETS {
        let sizes: Vec<_> = kept(name).iter().map(|(_, input)| input.len()).collect();
        assert!(sizes.iter().sum::<usize>() <= 512 << 10, "{name}: `make fuzz-keep` keeps what covers most with least");
    }
}

/// `WIREPOST_FUZZ_SECONDS` for each target, a moment without it.
#[test]
fn changed_inputs_hold() {
    let seconds = env::var("WIREPOST_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.05);
    let seed = env::var("WIREPOST_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("WIREPOST_FUZZ_SEED={seed}");
    std::thread::scope(|scope| {
        // In two threads, as CI has processors.
        for half in [0, 1] {
            scope.spawn(move || {
                for target in TARGETS.iter().skip(half).step_by(2) {
                    let kept: Vec<_> = kept(target.0).into_iter().map(|(_, input)| input).collect();
                    let mut rng = StdRng::seed_from_u64(seed);
                    let (begun, mut inputs) = (Instant::now(), 0_u64);
                    while inputs == 0 || begun.elapsed() < Duration::from_secs_f64(seconds) {
                        let input = mutate::mutated(&kept, &mut rng);
                        run(target, &input, &format!("seed {seed} input {inputs}"));
                        inputs += 1;
                    }
                    println!("{}: {inputs} inputs", target.0);
                }
            });
        }
    });
}
