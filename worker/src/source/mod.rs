//! The input: how it comes here ([`fetch`], [`stored`]) and stays for a while ([`kept`]), what its first bytes say ([`sniff`]), and what it really holds
//! ([`probe`]).
//!
//! Never the other way round: ffmpeg is given a local file that was fetched, checked and sniffed, and never a URL.

pub mod address;
pub mod fetch;
pub mod kept;
pub mod probe;
pub(crate) mod resolve;
pub mod scan;
pub mod sniff;
pub mod stored;
