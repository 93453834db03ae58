//! This crate on a real RabbitMQ.

mod apply;
mod plans;
mod rabbitmq_4_0;
mod support;
mod unrouted;
mod users;
