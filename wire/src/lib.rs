//! What crosses a boundary: the types that clients, gateway and workers agree on.
//!
//! This crate exists so that `gateway` never depends on `worker`. It knows serde and nothing of runtimes, sockets
//! or HTTP stacks; a type belongs here when two processes must read it the same way, and nowhere else.
//!
//! In the order of a request: [`id`] names things, [`spec`] is what a client asks for, [`load`] is what a worker
//! says about itself, [`steal`] is when another pool may take a job, [`job`] is what a client reads back, [`copies`]
//! where else its bytes lie and [`video`] the same for who shows it, [`problem`] is every error, [`headers`] are the names, and [`openapi`] describes it all.

pub mod copies;
pub mod headers;
pub mod id;
pub mod job;
pub mod load;
pub mod openapi;
pub mod problem;
pub mod spec;
pub mod steal;
pub mod video;

pub use id::{JobId, PoolId, WorkerId};
pub use load::LoadReport;
pub use problem::{Code, Problem};
pub use spec::{JobSpec, SpecHead};
