//! The harness: a whole Millrace system of real binaries on loopback, and what drives it.
//!
//! System tests, the demo and the benchmarks all start the system the same way: real processes, real sockets,
//! real ffmpeg, ports given by the kernel. Rejected: running gateway and workers inside the test's own process. It
//! starts faster, but a `kill -9` is then no kill -9, and what a binary prints, leaks or leaves behind stays unseen.
//!
//! In the order in which a system comes to life: [`binaries`] finds the programs, [`process`] starts them (through
//! [`leash`], so that none outlives us), `data` is the directory it lives in, [`routing`] writes the gateway's file, [`system`] holds them together,
//! [`postgres`] is a database server for those that want one, [`client`] talks to them, [`procfs`] proves what they left
//! behind. [`clip`], [`media`], [`progress`] and [`table`] serve [`demo`] and [`up`]; [`object_server`] is an S3 store of
//! tests. [`worker`] measures one worker beside ffmpeg by hand, [`gateway`] the gateway beside the least that a proxy can be.
//! [`chaos`] kills everything at random and looks at what became of the jobs, [`partition`] cuts two clouds apart and loses
//! one for good.
//! [`simulate`] stands apart: it starts
//! nothing, and runs the gateway's routing code in virtual time.

pub mod binaries;
pub mod chaos;
pub mod client;
pub mod clip;
mod data;
pub mod demo;
pub mod gateway;
pub mod leash;
pub mod media;
pub mod nats;
pub mod object_server;
pub mod partition;
pub mod postgres;
pub mod process;
pub mod procfs;
pub mod progress;
pub mod ranges;
pub mod routing;
pub mod simulate;
pub mod surroundings;
pub mod system;
pub mod table;
pub mod up;
pub mod worker;

pub use client::{Answer, Client};
pub use system::System;

/// Makes ring the process's one crypto provider, as both binaries do; harmless when called again.
pub fn install_crypto() {
    // An error means that a provider is installed already, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
