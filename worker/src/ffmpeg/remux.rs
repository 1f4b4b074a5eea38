//! A rendition's picture and its sound in one plain MP4, nothing encoded again.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::rework::{Rework, beginning, input};
use super::{Ffmpeg, Limits, absolute};
use crate::failure::Ended;

/// What an index and a muxer need of memory for one sample; ffmpeg 5.1 took below 200 bytes.
const MEMORY_PER_SAMPLE_BYTES: u64 = 512;
/// What the program takes without any sample, its libraries and threads included.
const MEMORY_BYTES: u64 = 768 << 20;
/// Room in the file for the index, per sample: size, times and place take up to 36 bytes.
const INDEX_PER_SAMPLE_BYTES: u64 = 64;
/// Slowest disk that is waited for. Every byte is written, read again and written once more, to have the index in
/// front.
const BYTES_PER_SECOND_MIN: u64 = 10 << 20;

/// What to copy into one file.
pub(crate) struct Remux {
    /// Whole files of one track each, the picture first.
    pub(crate) inputs: Vec<PathBuf>,
    /// The directory to work in. Nothing else is written to.
    pub(crate) directory: PathBuf,
    /// The name of the file.
    pub(crate) name: String,
    /// Bytes of all inputs.
    pub(crate) bytes: u64,
    /// Samples of all inputs.
    pub(crate) samples: u64,
}

impl Remux {
    fn arguments(&self, inputs: &[PathBuf]) -> Vec<OsString> {
        let mut all = beginning();
        all.extend(inputs.iter().flat_map(|path| input(path, &[])));
        all.extend((0..inputs.len()).flat_map(|index| ["-map".into(), format!("{index}:0").into()]));
        all.extend(
            ["-c", "copy", "-map_metadata", "-1", "-map_chapters", "-1"].into_iter().map(OsString::from),
        );
        // Bit-exact: no word about who made it when.
        all.extend(["-fflags", "+bitexact", "-movflags", "+faststart"].into_iter().map(OsString::from));
        // For the brand alone: some players ask for it before they take a file of sound.
        let format = if self.name.ends_with(".m4a") { "ipod" } else { "mp4" };
        all.extend([OsString::from("-f"), format.into(), self.name.clone().into()]);
        all
    }
}

impl Ffmpeg {
    /// Copies tracks into one file with its index in front. Times are kept as they are, so what begins together in
    /// the inputs does so in the file.
    ///
    /// # Errors
    /// Cancelled, or a failure; then part of the file may be left.
    pub(crate) async fn remux(&self, remux: &Remux, cancel: &CancellationToken) -> Result<Duration, Ended> {
        let directory = absolute(&remux.directory)?;
        let inputs = remux.inputs.iter().map(|path| absolute(path)).collect::<Result<Vec<_>, _>>()?;
        let seconds = remux.bytes / BYTES_PER_SECOND_MIN;
        let limits = Limits {
            cpu_seconds: 60 + seconds,
            memory_bytes: MEMORY_BYTES + remux.samples.saturating_mul(MEMORY_PER_SAMPLE_BYTES),
            file_bytes: (1 << 20) + remux.bytes + remux.samples.saturating_mul(INDEX_PER_SAMPLE_BYTES),
            read: inputs.clone(),
            write: vec![directory.clone()],
            report: false,
        };
        let arguments = remux.arguments(&inputs);
        let patience = Duration::from_secs(seconds);
        let exit = self.0.rework(Rework { arguments, limits, directory, patience }, cancel).await?;
        Ok(exit.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_stand_before_every_input() {
        let inputs: Vec<PathBuf> = vec!["/w/picture".into(), "/w/sound".into()];
        let (directory, name) = ("/w".into(), "360p.mp4".to_owned());
        let remux = Remux { inputs: inputs.clone(), directory, name, bytes: 1, samples: 1 };
        let text: Vec<String> =
            remux.arguments(&inputs).iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let text = text.join(" ");
        for part in text.split(" -i file:/w/").take(2) {
            assert!(part.contains("-protocol_whitelist file -format_whitelist mov,"), "{part}");
        }
        assert!(text.contains("-map 0:0 -map 1:0 -c copy -map_metadata -1"), "{text}");
        assert!(text.ends_with("+faststart -f mp4 360p.mp4"), "{text}");
    }
}
