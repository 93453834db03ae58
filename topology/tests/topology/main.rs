//! This crate on a real RabbitMQ.

mod apply;
mod bytes;
mod destroys;
mod keeper;
mod kept;
mod plans;
mod rabbitmq_4_0;
mod replicas;
mod support;
mod unrouted;
mod users;
