//! Prints the CustomResourceDefinition: `cargo run -q -p wirepost-core --example crd > crds/wsbusinesses.wirepost.dev.yaml`.

fn main() {
    print!("{}", wirepost_core::crd::yaml());
}
