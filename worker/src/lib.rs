//! The worker: fetches a source, probes it, plans a ladder, runs ffmpeg in a cage, and packages what came of it.
//!
//! In the order of a job: [`source`] brings the input here and says what it is, [`ladder`] decides what to make of
//! it, [`ffmpeg`] makes it, [`package`] verifies the result and writes the playlists. [`failure`] is how any of them
//! says why it could not.

pub mod failure;
pub mod ffmpeg;
pub mod ladder;
pub mod package;
pub mod source;
