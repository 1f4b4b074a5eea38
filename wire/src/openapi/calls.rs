//! The calls, one function each that exists for its description alone.
#![expect(dead_code, reason = "the attributes read the descriptions; nobody calls a call here")]

use super::{Health, JobSpec, UploadRequest};
use crate::copies::ReplicateRequest;
use crate::id::JobId;
use crate::job::{Job, JobPage, JobUpdate, State, UploadTicket};
use crate::video::{Video, VideoPage};

/// Submit a job.
///
/// It is accepted once it is in the job store: from then on it ends, whatever becomes of the worker, the pool or this
/// connection. Posting the same id and spec again answers 200 and the same job; another spec under that id is a 409.
#[utoipa::path(post, path = "/jobs", operation_id = "submitJob", tag = "jobs", request_body = JobSpec,
    params(("Idempotency-Key" = Option<JobId>, Header, description = "The same as `job_id`")),
    responses(
        (status = 202, description = "Accepted", body = Job, headers(("location" = String, description = "The job's path"))),
        (status = 200, description = "The same job, accepted before", body = Job),
    ))]
pub(super) fn submit() {}

/// Submit a job: the same as `POST /jobs`.
#[utoipa::path(post, path = "/process", operation_id = "process", tag = "jobs", request_body = JobSpec,
    params(("Idempotency-Key" = Option<JobId>, Header, description = "The same as `job_id`")),
    responses(
        (status = 202, description = "Accepted", body = Job, headers(("location" = String, description = "The job's path"))),
        (status = 200, description = "The same job, accepted before", body = Job),
    ))]
pub(super) fn process() {}

/// List jobs, the newest first.
#[utoipa::path(get, path = "/jobs", operation_id = "listJobs", tag = "jobs",
    params(
        ("status" = Option<State>, Query, description = "Only jobs in that state"),
        ("limit" = Option<u32>, Query, description = "At most so many; 50 when left out", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, format = "uuid", description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of jobs", body = JobPage)))]
pub(super) fn list() {}

/// Read a job.
#[utoipa::path(get, path = "/jobs/{job_id}", operation_id = "getJob", tag = "jobs",
    params(("job_id" = JobId, Path, description = "The job")),
    responses((status = 200, description = "The job as it stands", body = Job)))]
pub(super) fn read() {}

/// Cancel a job.
///
/// One that waits is cancelled at once (200); of one that runs the worker is told (202). What has ended stays as it is
/// (409). With `?outputs` it is another wish: the outputs of a job that succeeded are gone for everybody from then on.
#[utoipa::path(delete, path = "/jobs/{job_id}", operation_id = "cancelJob", tag = "jobs",
    params(
        ("job_id" = JobId, Path, description = "The job"),
        ("outputs" = Option<String>, Query, description = "Not the job, but its outputs; any value"),
    ),
    responses(
        (status = 200, description = "Cancelled; or its outputs are gone", body = Job),
        (status = 202, description = "Being cancelled", body = Job),
    ))]
pub(super) fn cancel() {}

/// Try a job again.
///
/// For one that is `dead`: a new series of attempts, as if it were new. For one that `failed` at what lies at its
/// `input_url` (a code that begins with `source_`), too: something else may lie there by now. Anything else is a 409, and so
/// is asking twice; but for a `dual` one whose outputs lie in a bucket that does not answer: it is made again from its
/// input's second copy. A 410 says that its upload was kept no longer.
#[utoipa::path(post, path = "/jobs/{job_id}/retry", operation_id = "retryJob", tag = "jobs",
    params(("job_id" = JobId, Path, description = "The job")),
    responses((status = 202, description = "It waits again", body = Job, headers(("location" = String, description = "The job's path")))))]
pub(super) fn retry() {}

/// Copy a job's outputs to other pools.
///
/// The job must have succeeded. The answer's `copies` say where each copy stands; asking again for the same pools changes
/// nothing. Reads are served from the nearest copy, and from another where its bucket does not answer.
#[utoipa::path(post, path = "/jobs/{job_id}/replicate", operation_id = "replicateJob", tag = "jobs",
    request_body = ReplicateRequest,
    params(("job_id" = JobId, Path, description = "The job")),
    responses((status = 202, description = "They are, or will be, copied", body = Job)))]
pub(super) fn replicate() {}

/// Follow a job by Server-Sent Events.
///
/// `event: state` and `event: progress`, each with a `JobUpdate` as its data, and `event: end` with the last one; then the
/// stream ends. Reconnecting with `Last-Event-ID` goes on from there; at the end of a job that answers 204.
#[utoipa::path(get, path = "/jobs/{job_id}/events", operation_id = "followJob", tag = "jobs",
    params(
        ("job_id" = JobId, Path, description = "The job"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event that was seen"),
    ),
    responses(
        (status = 200, description = "Events until the job ends", body = JobUpdate, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended, and its last event was seen"),
    ))]
pub(super) fn follow() {}

/// Ask for a URL to upload to.
///
/// `PUT` the bytes to `upload_url` with `headers`, once, then submit a job with `input_path`. The URL is its own
/// permission. A ticket with `parts` is another way: `PUT` each part to its URL, then `POST` to `upload_url`.
#[utoipa::path(post, path = "/upload/request", operation_id = "requestUpload", tag = "uploads", request_body = UploadRequest,
    responses((status = 200, description = "Where to put the bytes", body = UploadTicket)))]
pub(super) fn upload() {}

/// Post a video: the file and what is to become of it, in one call.
///
/// The body is the file itself, or a form. What is asked of the job stands in the query or in the form's `spec`; the input
/// is the file. A body that breaks off leaves nothing. Posting again with the same id and spec answers 200 and the video
/// that is there.
#[utoipa::path(post, path = "/videos", operation_id = "postVideo", tag = "videos",
    params(
        ("Idempotency-Key" = Option<JobId>, Header, description = "The same as `job_id`"),
        ("job_id" = Option<JobId>, Query, description = "The job's public name, and the video's"),
        ("title" = Option<String>, Query, description = "What people call it", min_length = 1, max_length = 256),
        ("filename" = Option<String>, Query, description = "The file's name", min_length = 1, max_length = 512),
        ("spec" = Option<String>, Query, description = "A `VideoSpec` as JSON, where the body is the file"),
    ),
    responses(
        (status = 202, description = "Its job is accepted", body = Video, headers(("location" = String, description = "The video's path"))),
        (status = 200, description = "The same video, posted before", body = Video),
    ))]
pub(super) fn post_video() {}

/// Find videos, the newest first.
///
/// `q` is words: each must be in a video's title or labels, and the last one may be the beginning of one. Without it all are
/// listed.
#[utoipa::path(get, path = "/videos", operation_id = "findVideos", tag = "videos",
    params(
        ("q" = Option<String>, Query, description = "Words to find; at most 32", max_length = 256),
        ("limit" = Option<u32>, Query, description = "At most so many; 50 when left out", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, format = "uuid", description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of videos", body = VideoPage)))]
pub(super) fn find_videos() {}

/// Read a video: where it stands and, once it is there, its length, its size, its renditions and its pictures.
#[utoipa::path(get, path = "/videos/{video_id}", operation_id = "getVideo", tag = "videos",
    params(("video_id" = JobId, Path, description = "The video")),
    responses((status = 200, description = "The video", body = Video)))]
pub(super) fn video() {}

/// The result of a job in one download.
#[utoipa::path(get, path = "/download/{job_id}", operation_id = "download", tag = "media",
    params(
        ("job_id" = JobId, Path, description = "The job"),
        ("rendition" = Option<String>, Query, description = "Of which rendition, like `720p`; the highest when left out"),
    ),
    responses(
        (status = 307, description = "Where it is", headers(("location" = String))),
    ))]
pub(super) fn download() {}

/// A file of a finished job.
///
/// Answers with a URL that holds its permission for a while, and to which everything in a manifest is relative: players
/// need no key. Ranges, ETags and CORS are served there.
#[utoipa::path(get, path = "/media/{job_id}/{name}", operation_id = "media", tag = "media",
    params(
        ("job_id" = JobId, Path, description = "The job"),
        ("name" = String, Path, description = "Like `master.m3u8`, `manifest.mpd`, `720p.mp4`, `poster.jpg`"),
    ),
    responses((status = 307, description = "The same file with a token in its path", headers(("location" = String)))))]
pub(super) fn media() {}

/// Whether the gateway runs.
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "health", security(()),
    responses((status = 200, description = "It does", body = Health)))]
pub(super) fn livez() {}

/// Whether a job would find a worker.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "health", security(()),
    responses(
        (status = 200, description = "It would", body = Health),
        (status = 503, description = "It would not, and why", body = Health),
    ))]
pub(super) fn readyz() {}

/// The same as `/readyz`.
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "health", security(()),
    responses(
        (status = 200, description = "It would", body = Health),
        (status = 503, description = "It would not, and why", body = Health),
    ))]
pub(super) fn health() {}
