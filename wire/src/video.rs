//! What a client reads of a video: its job, seen by who wants to show it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::JobId;
use crate::job::{AudioRendition, Job, JobError, Progress, Rendition, State};

/// A video. Its id is its job's, and what it has comes with the job's success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Video {
    /// Its name, which is its job's.
    pub video_id: JobId,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Names and values of the client's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where its job stands.
    pub state: State,
    /// How far it is.
    pub progress: Progress,
    /// Length in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// Pixels of the highest rendition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels of the highest rendition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Bytes of all its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Path of its HLS multivariant playlist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hls: Option<String>,
    /// Path of its MPEG-DASH manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dash: Option<String>,
    /// Path of a still picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poster: Option<String>,
    /// Path of a WebVTT file that names the part of a sprite sheet for each moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnails: Option<String>,
    /// The highest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renditions: Vec<Rendition>,
    /// The sound, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<AudioRendition>,
    /// Why there is none of all that, or not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// RFC 3339, UTC: until when its files are kept, or since when they are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_until: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Paths on the same endpoint: `self`, `job`, `events`, and `download` once there is something.
    pub links: BTreeMap<String, String>,
}

impl From<Job> for Video {
    fn from(job: Job) -> Self {
        let there = job.outputs.is_some();
        let outputs = job.outputs.unwrap_or_default();
        let mut links = job.links;
        links.insert("job".to_owned(), format!("/jobs/{}", job.job_id));
        links.insert("self".to_owned(), format!("/videos/{}", job.job_id));
        Self {
            video_id: job.job_id,
            title: job.spec.title,
            labels: job.spec.labels,
            state: job.state,
            progress: job.progress,
            duration_s: there.then_some(outputs.duration_s),
            width: outputs.renditions.first().map(|top| top.width),
            height: outputs.renditions.first().map(|top| top.height),
            bytes: there.then_some(outputs.bytes),
            hls: outputs.hls,
            dash: outputs.dash,
            poster: outputs.poster,
            thumbnails: outputs.thumbnails,
            renditions: outputs.renditions,
            audio: outputs.audio,
            error: job.error,
            outputs_until: job.outputs_until,
            created_at: job.created_at,
            finished_at: job.finished_at,
            links,
        }
    }
}

/// One page of videos, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VideoPage {
    /// At most `limit` of them.
    pub videos: Vec<Video>,
    /// Pass it as `cursor` for the next page; none on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
