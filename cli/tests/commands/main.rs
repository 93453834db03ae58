//! The real binary.

mod check;
mod dead;
mod describe;
mod dev;
mod diff;
mod diff_cluster;
mod listen;
mod playground;
mod rabbit;
mod support;
