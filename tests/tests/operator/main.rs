//! Operators as processes, on a real API server and a real RabbitMQ; and the declaration itself on that API server.

mod access;
mod admin;
mod basics;
mod blips;
mod broker;
mod change;
mod classes;
mod conditions;
mod crd;
mod declarations;
mod deletion;
mod drift;
mod edges;
mod events_loop;
mod existing_queues;
mod gitops;
mod keys;
mod leader;
mod leftovers;
mod make_before_break;
mod others;
mod tasks;
mod upgrade;
mod verdict;
