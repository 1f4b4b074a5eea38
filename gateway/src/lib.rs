//! The gateway: one endpoint in front of transcode workers that run in several clouds.
//!
//! A request meets the modules in this order: [`edge`] takes the connection, [`proxy`] translates Pingora's phases,
//! [`request`] says what is asked for, [`admission`] reads a submit and settles its id, [`dispatch`] leads it through
//! the workers, [`route`] chooses a pool and a worker from [`fleet`]'s snapshot, [`forward`] talks to the worker.
//! Beside that path: [`page`] is the web page at `/`, [`config`] is the routing file, [`reload`] swaps it, [`admin`] shows and steers, [`drain`] ends
//! the process without dropping a request, [`metrics`] counts, [`tls`] keeps the certificate, [`upstream`] what TLS to
//! workers takes, [`glance`] finds what is looked for in a header, [`limits`] bounds headers and slow uploads, [`trace`] gives requests their names, [`auth`] knows who
//! asks, [`rate`] how often, [`access_log`] writes a line of each, [`descriptors`] makes room for connections,
//! [`status`] is the operator's view from the command line.
//! Of the operator are [`overrides`] (what changes beside the file, for a while), [`audit`] (who changed what),
//! [`decisions`] (why a job went where) and [`diff`] (what a file would change).
//!
//! Invariants: `route` does no I/O and reads no clock; only `edge`, `tls`, `upstream`, `proxy`, `forward` and `serve` name Pingora;
//! nothing downstream of `config` sees raw input.

pub mod access_log;
pub mod admin;
pub mod admission;
pub mod audit;
pub mod auth;
pub mod config;
pub mod decisions;
pub mod descriptors;
pub mod diff;
pub mod dispatch;
pub mod drain;
pub mod edge;
pub mod error;
pub mod fleet;
pub mod forward;
pub mod glance;
pub mod limits;
pub mod metrics;
pub mod overrides;
pub mod page;
pub mod proxy;
pub mod rate;
pub mod reload;
pub mod request;
pub mod route;
pub mod status;
pub mod tls;
pub mod trace;
pub mod upstream;

mod serve;

use millrace_runtime::settle;

pub use serve::{Options, Ready, serve};
