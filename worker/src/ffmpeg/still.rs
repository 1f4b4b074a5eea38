//! Stills of a finished rendition: sheets of small tiles, and one large picture that stands for the whole.
//!
//! Only keyframes are decoded: a few in a hundred frames, and of those everything that is needed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::rework::{Rework, beginning, input};
use super::{Ffmpeg, Limits, absolute};
use crate::failure::Ended;

/// The poster, if there is a keyframe that is not black.
pub(crate) const BRIGHT: &str = "bright.jpg";
/// The poster otherwise.
pub(crate) const ANY: &str = "any.jpg";
/// Most keyframes that the poster is chosen from; the filter holds that many.
const CANDIDATES_MAX: u64 = 24;

/// What the program, a decoder of the largest picture and the held candidates take.
const MEMORY_BYTES: u64 = 2 << 30;
/// No sheet and no poster is as large.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// CPU time that one keyframe may take, in milliseconds, and that is waited for. 1080 lines take 20.
const KEYFRAME_MS_MAX: u64 = 2000;

/// The name of a sheet; `number` counts from 1.
pub(crate) fn sheet_name(number: usize) -> String {
    format!("sprite_{number:03}.jpg")
}

/// What to make.
pub(crate) struct Stills {
    /// A track's initialisation segment and the segments that hold the tiles.
    pub(crate) tiles_from: PathBuf,
    /// Seconds from one tile's keyframe to the next at least; keyframes between are left out.
    pub(crate) apart_s: f64,
    /// Width and height of a tile, even.
    pub(crate) tile: (u32, u32),
    /// Columns and rows of a sheet.
    pub(crate) grid: (u32, u32),
    /// A track's initialisation segment and the segments from which the poster is chosen.
    pub(crate) poster_from: PathBuf,
    /// Width and height of the poster, even.
    pub(crate) poster: (u32, u32),
    /// Keyframes to decode, of both together.
    pub(crate) keyframes: u64,
    /// The directory to work in. Nothing else is written to.
    pub(crate) directory: PathBuf,
}

impl Stills {
    fn filters(&self) -> String {
        // JPEG is full range and BT.601, whoever reads it; the renditions are neither.
        let scale = |(width, height): (u32, u32), how: &str| {
            format!(
                "scale={width}:{height}:flags={how}:in_color_matrix=bt709:in_range=tv:out_color_matrix=bt601:\
                 out_range=pc,format=yuvj420p,setsar=1"
            )
        };
        let (tile, poster) = (scale(self.tile, "area"), scale(self.poster, "bicubic"));
        let ((columns, rows), apart) = (self.grid, self.apart_s);
        format!(
            "[0:0]select='isnan(prev_selected_t)+gte(t-prev_selected_t\\,{apart:.6})',{tile},\
             tile={columns}x{rows}[tiles];\
             [1:0]blackframe=0,{poster},split[all][some];[all]thumbnail={CANDIDATES_MAX}[any];\
             [some]metadata=select:key=lavfi.blackframe.pblack:value=90:function=less,\
             thumbnail={CANDIDATES_MAX}[bright]"
        )
    }

    fn arguments(&self, tiles_from: &Path, poster_from: &Path) -> Vec<OsString> {
        let mut all = beginning();
        for path in [tiles_from, poster_from] {
            all.extend(input(path, &["-threads", "1", "-skip_frame", "nokey"]));
        }
        let mut add = |words: &[&str]| all.extend(words.iter().map(OsString::from));
        add(&["-filter_complex_threads", "1", "-filter_complex", &self.filters()]);
        let mut output = |label: &str, quality: &str, how: &[&str], name: &str| {
            add(&["-map", label, "-map_metadata", "-1", "-fps_mode", "passthrough", "-c:v", "mjpeg"]);
            add(&["-threads", "1", "-q:v", quality, "-flags:v", "+bitexact", "-f", "image2"]);
            add(how);
            add(&[name]);
        };
        output("[tiles]", "5", &[], "sprite_%03d.jpg");
        // The second is empty when every candidate is black; ffmpeg then writes no file and is content.
        output("[any]", "3", &["-frames:v", "1", "-update", "1"], ANY);
        output("[bright]", "3", &["-frames:v", "1", "-update", "1"], BRIGHT);
        all
    }
}

impl Ffmpeg {
    /// Makes the sheets, [`ANY`] and maybe [`BRIGHT`] in the stills' directory; gives the CPU time.
    ///
    /// # Errors
    /// Cancelled, or a failure; then some of the files may be left.
    pub(crate) async fn stills(
        &self,
        stills: &Stills,
        cancel: &CancellationToken,
    ) -> Result<Duration, Ended> {
        let directory = absolute(&stills.directory)?;
        let (tiles_from, poster_from) = (absolute(&stills.tiles_from)?, absolute(&stills.poster_from)?);
        let patience = Duration::from_millis(stills.keyframes.saturating_mul(KEYFRAME_MS_MAX));
        let limits = Limits {
            cpu_seconds: 60 + patience.as_secs(),
            memory_bytes: MEMORY_BYTES,
            file_bytes: FILE_BYTES_MAX,
            read: vec![tiles_from.clone(), poster_from.clone()],
            write: vec![directory.clone()],
            report: false,
        };
        let arguments = stills.arguments(&tiles_from, &poster_from);
        let exit = self.0.rework(Rework { arguments, limits, directory, patience }, cancel).await?;
        Ok(exit.cpu)
    }
}
