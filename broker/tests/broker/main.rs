//! The RabbitMQ side on a real one.

mod faults;
mod rabbit;
mod support;
mod windows;
