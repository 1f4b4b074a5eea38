//! What every Millrace process does whatever its job: telemetry, shutdown, reading configuration, certificates, listening
//! sockets.
//!
//! Ignorant of jobs, pools and HTTP on purpose: a change here is a change to both binaries.

pub mod config;
pub mod listen;
pub mod settle;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
