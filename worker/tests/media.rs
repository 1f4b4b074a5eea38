//! From a file to a stream that plays, with real ffmpeg: fetch, probe, plan, encode, package.
//!
//! Clips are made by ffmpeg's own sources when the test runs. ffmpeg, ffprobe, bash and perl must be installed.

#[cfg(test)]
mod media {
    mod clip;
    mod cuts;
    mod damaged;
    mod fetching;
    mod leftovers;
    mod odd;
    mod played;
    mod progressive;
    mod ranges;
    mod sandbox;
    mod sound;
    mod sync;
    mod thumbnails;
}
