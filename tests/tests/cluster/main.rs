//! The chart on a whole Kubernetes, where pods run. All of it is `#[ignore]`d: not every machine can hold a cluster.

mod autoscaling;
mod faults;
mod lifecycle;
mod rotation;
mod scale;
mod smoke;
mod upgrade;
