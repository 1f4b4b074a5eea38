//! How far the jobs are: a bar for each on a terminal, a line every few seconds elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use millrace_wire::job::{Job, State};

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(4);

/// Shows the progress of uploads and jobs on standard output.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    jobs: BTreeMap<String, (Option<ProgressBar>, Job)>,
    printed: Option<Instant>,
}

impl Progress {
    /// Bars on a terminal, lines elsewhere.
    pub fn new() -> Self {
        let bars = std::io::stdout()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout()));
        Self { bars, jobs: BTreeMap::new(), printed: None }
    }

    /// Prints a line above the bars.
    pub fn say(&self, line: &str) {
        match &self.bars {
            // An error means that the terminal is gone; the jobs go on without it.
            Some(bars) => drop(bars.println(line)),
            None => println!("{line}"),
        }
    }

    /// A bar for an upload of so many bytes; hidden where there is no terminal.
    pub fn upload(&self, what: &str, bytes: u64) -> ProgressBar {
        let Some(bars) = &self.bars else { return ProgressBar::hidden() };
        let style = ProgressStyle::with_template(
            "      {msg:22} {bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec}",
        );
        let bar = ProgressBar::new(bytes).with_style(style.expect("a legal template"));
        bars.add(bar).with_message(what.to_owned())
    }

    /// Shows how a job stands now. A job that has ended leaves one line and no bar.
    pub fn show(&mut self, job: &Job) {
        let id = job.job_id.to_string();
        let known = self.jobs.remove(&id);
        let ended_before = known.as_ref().is_some_and(|(_, job)| job.state.is_final());
        let mut bar = known.and_then(|(bar, _)| bar);
        if job.state.is_final() {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
            if !ended_before {
                self.say(&format!("      {}", line(job)));
            }
        } else if let Some(bars) = &self.bars {
            let bar = bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("      {prefix:12} {bar:20} {pos:>3} % {wide_msg}");
                bars.add(
                    ProgressBar::new(100)
                        .with_style(style.expect("a legal template"))
                        .with_prefix(id.clone()),
                )
            });
            bar.set_position(job.progress.percent as u64);
            bar.set_message(standing(job));
        }
        self.jobs.insert(id, (bar, job.clone()));
    }

    /// The jobs that were shown and have not ended.
    pub fn open(&self) -> Vec<String> {
        let open = self.jobs.iter().filter(|(_, (_, job))| !job.state.is_final());
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Prints where all jobs stand, where there are no bars and the last such line is a while ago.
    pub fn tick(&mut self) {
        let due = self.printed.is_none_or(|printed| printed.elapsed() >= LINE_INTERVAL);
        if self.bars.is_none() && due {
            self.printed = Some(Instant::now());
            println!("      {}", summary(self.jobs.values().map(|(_, job)| job)));
        }
    }

    /// Takes all bars away.
    pub fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn standing(job: &Job) -> String {
    let place = job.worker.as_ref().map_or_else(|| job.pool.to_string(), ToString::to_string);
    match (job.state, job.phase) {
        (State::Running, Some(phase)) => {
            let speed = job.progress.speed.map_or(String::new(), |speed| format!(", {speed:.2} × realtime"));
            format!("{} on {place}{speed}", phase.as_str())
        }
        (State::Queued, _) => format!("waits in {}", job.pool),
        (state, _) => format!("{} on {place}", state.as_str()),
    }
}

fn line(job: &Job) -> String {
    let error = job
        .error
        .as_ref()
        .map_or(String::new(), |error| format!(": {} ({})", error.code.as_str(), error.detail));
    format!("{:12} {}{error}", job.job_id.as_str(), standing(job))
}

fn summary<'a>(jobs: impl Iterator<Item = &'a Job>) -> String {
    let (mut waiting, mut ended, mut running) = (0, 0, Vec::new());
    for job in jobs {
        match job.state {
            State::Running => {
                running.push(format!("{} {:.0} % ({})", job.job_id, job.progress.percent, standing(job)))
            }
            state if state.is_final() => ended += 1,
            _ => waiting += 1,
        }
    }
    format!(
        "{ended} done, {waiting} waiting; {}",
        if running.is_empty() { "none runs".to_owned() } else { running.join("; ") }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::job;

    #[test]
    fn a_line_says_where_a_job_stands() {
        assert_eq!(standing(&job("running")), "encoding on aws-1, 0.50 × realtime");
        assert_eq!(standing(&job("queued")), "waits in aws");
        assert_eq!(line(&job("succeeded")), "bunny        succeeded on aws-1");
        let jobs = [job("running"), job("queued"), job("succeeded"), job("cancelled")];
        let wanted = "2 done, 1 waiting; bunny 40 % (encoding on aws-1, 0.50 × realtime)";
        assert_eq!(summary(jobs.iter()), wanted);
    }
}
