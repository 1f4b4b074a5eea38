//! What could not be decoded, and what that means for a job.
//!
//! Counted by each run of ffmpeg, and judged once for the whole source: by the run that decoded all of it, or over the runs
//! that decoded a range each. Those decode a few frames twice, and what is lost there counts twice.

use millrace_wire::job::FailureCode;
use serde::{Deserialize, Serialize};

use super::log::{Decoded, Log};
use crate::failure::Failure;
use crate::ladder::Plan;

/// The share of the source's frames that may be lost.
const LOST_MAX: f64 = 0.01;

/// What one run of ffmpeg lost, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Damage {
    /// The picture.
    pub picture: Decoded,
    /// The sound.
    pub sound: Decoded,
    /// Frames that were decoded with holes.
    pub concealed: u64,
}

impl Damage {
    pub(super) fn of(log: &Log) -> Self {
        Self { picture: log.picture, sound: log.sound, concealed: log.concealed }
    }

    /// Adds what another run lost.
    pub fn add(&mut self, other: &Self) {
        self.picture.add(&other.picture);
        self.sound.add(&other.sound);
        self.concealed += other.concealed;
    }

    /// Frames of the source's picture that were lost; of sound alone its packets.
    pub fn lost(&self, plan: &Plan) -> u64 {
        Loss::of(plan, self).lost
    }

    /// What to tell of it where it is little.
    ///
    /// # Errors
    /// `source_damaged` where it is too much.
    pub fn judge(&self, plan: &Plan) -> Result<Vec<String>, Failure> {
        let loss = Loss::of(plan, self);
        if loss.too_much() {
            return Err(Failure::new(FailureCode::SourceDamaged, loss.describe()));
        }
        let mut warnings = Vec::new();
        if loss.lost > 0 {
            warnings.push(loss.describe());
        }
        if plan.picture.is_some() && self.concealed > 0 {
            warnings.push("parts of some frames of the source are damaged; they were patched".to_owned());
        }
        if plan.picture.is_some() && self.sound.lost > 0 {
            warnings.push("parts of the source's sound could not be decoded".to_owned());
        }
        Ok(warnings)
    }
}

/// What could not be decoded of the stream that the verdict is about: the picture, or the sound of sound alone.
struct Loss {
    lost: u64,
    of: u64,
    what: &'static str,
}

impl Loss {
    fn of(plan: &Plan, damage: &Damage) -> Self {
        let (of, decoded, what) = match (&plan.picture, &plan.audio) {
            (Some(picture), _) => (picture.source_frames, damage.picture, "frames"),
            (None, Some(audio)) => (audio.source_packets, damage.sound, "packets of sound"),
            (None, None) => (0, Decoded::default(), "frames"),
        };
        Self { lost: lost(of, decoded), of, what }
    }

    fn too_much(&self) -> bool {
        self.lost as f64 > self.of as f64 * LOST_MAX
    }

    fn describe(&self) -> String {
        format!("{} of the source's {} {} could not be decoded", self.lost, self.of, self.what)
    }
}

/// Packets that the decoder refused. Fewer frames than packets alone is no proof: VP8 has packets that are never
/// shown, and interlaced streams may have two per frame; but when half is missing something is.
fn lost(of: u64, seen: Decoded) -> u64 {
    let missing = of.saturating_sub(seen.decoded.unwrap_or(of));
    if seen.lost > 0 {
        seen.lost.max(missing).min(of)
    } else if missing > of / 2 + 1 {
        missing
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::tests::plan_of;

    #[test]
    fn what_ranges_lost_is_judged_together() {
        let plan = plan_of(640, 360, true);
        let range = |lost| Damage { picture: Decoded { lost, decoded: Some(160) }, ..Damage::default() };
        let both = |a: u64, b: u64| {
            let mut sum = range(a);
            sum.add(&range(b));
            sum.judge(&plan).map_err(|failure| failure.code)
        };
        assert_eq!(both(0, 0), Ok(Vec::new()));
        assert_eq!(both(1, 2).unwrap().len(), 1, "3 of 300");
        assert_eq!(both(2, 2), Err(FailureCode::SourceDamaged), "each by itself would be little");
        let mut little = range(0);
        little.picture.decoded = Some(100);
        assert_eq!(little.judge(&plan).map_err(|failure| failure.code), Err(FailureCode::SourceDamaged));
    }
}
