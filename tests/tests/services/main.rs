//! The servers that all other tests stand on: what they promise to a test.

mod kubernetes;
mod rabbitmq;
