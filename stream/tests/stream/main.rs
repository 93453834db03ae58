//! This crate on a real RabbitMQ, and on a scripted one.

mod fake;
mod lost;
mod raw;
mod reading;
mod recovery;
mod rotation;
mod scripted;
mod support;
mod tls;
