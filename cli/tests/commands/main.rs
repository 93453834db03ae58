//! The real binary.

mod check;
mod dead;
mod dev;
mod diff;
mod listen;
mod rabbit;
mod support;
