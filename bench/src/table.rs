//! The demo's table of finished jobs.

use anyhow::{Context as _, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use millrace_wire::job::Job;

/// One line of the table: a job that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its id.
    pub job: String,
    /// Where it ran.
    pub pool: String,
    /// Who ran it.
    pub worker: String,
    /// Seconds from accepted to started.
    pub waited_s: f64,
    /// Seconds from started to finished.
    pub wall_s: f64,
    /// Seconds of media over [`Self::wall_s`].
    pub realtime: f64,
    /// The names of its renditions.
    pub renditions: Vec<String>,
}

impl Row {
    /// Reads a succeeded job.
    ///
    /// # Errors
    /// A job without outputs, worker or times.
    pub fn of(job: &Job) -> Result<Self> {
        let time = |text: Option<&String>, what: &str| -> Result<jiff::Timestamp> {
            let text = text.with_context(|| format!("job {} has no {what}", job.job_id))?;
            text.parse().with_context(|| format!("read the {what} of job {}", job.job_id))
        };
        let created = time(Some(&job.created_at), "created_at")?;
        let started = time(job.started_at.as_ref(), "started_at")?;
        let finished = time(job.finished_at.as_ref(), "finished_at")?;
        let outputs = job.outputs.as_ref().with_context(|| format!("job {} has no outputs", job.job_id))?;
        let wall_s = finished.duration_since(started).as_secs_f64();
        Ok(Self {
            job: job.job_id.to_string(),
            pool: job.pool.to_string(),
            worker: job
                .worker
                .as_ref()
                .with_context(|| format!("job {} has no worker", job.job_id))?
                .to_string(),
            waited_s: started.duration_since(created).as_secs_f64(),
            wall_s,
            realtime: if wall_s > 0.0 { outputs.duration_s / wall_s } else { 0.0 },
            renditions: outputs.renditions.iter().map(|rendition| rendition.name.clone()).collect(),
        })
    }
}

/// The table as text.
pub fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["job", "pool", "worker", "waited", "wall", "realtime", "renditions"]);
    for row in rows {
        table.add_row([
            row.job.clone(),
            row.pool.clone(),
            row.worker.clone(),
            format!("{:.1} s", row.waited_s),
            format!("{:.1} s", row.wall_s),
            format!("{:.2} ×", row.realtime),
            row.renditions.join(" "),
        ]);
    }
    for column in table.column_iter_mut().skip(3).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn job(state: &str) -> Job {
        serde_json::from_value(serde_json::json!({
            "job_id": "bunny", "state": state, "progress": {"percent": 40.0, "speed": 0.5}, "priority": "normal",
            "phase": "encoding", "pool": "aws", "worker": "aws-1", "attempt": 1, "spec": {"input_path": "aws/up/1"},
            "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01.5Z",
            "finished_at": "2026-01-01T00:00:21.5Z", "links": {},
            "outputs": {"hls": "/media/bunny/master.m3u8", "duration_s": 30.0, "bytes": 1, "renditions": [
                {"name": "720p", "width": 1280, "height": 720, "bandwidth": 1, "average_bandwidth": 1,
                 "codecs": "avc1.64001f,mp4a.40.2", "frame_rate": 24.0, "url": "/media/bunny/720p.m3u8"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_row_counts_the_time_a_job_ran_apart_from_the_time_it_waited() {
        let row = Row::of(&job("succeeded")).unwrap();
        assert_eq!((row.waited_s, row.wall_s, row.realtime), (1.5, 20.0, 1.5));
        let table = render(&[row]);
        for part in ["job", "realtime", "bunny", "aws-1", "1.5 s", "20.0 s", "1.50 ×", "720p"] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
    }

    #[test]
    fn a_job_without_outputs_is_no_row() {
        let mut job = job("failed");
        job.outputs = None;
        assert!(Row::of(&job).unwrap_err().to_string().contains("no outputs"));
    }
}
