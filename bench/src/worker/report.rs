//! The report: as tables for people, as JSON for machines, with the command beside every number.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::figures::{Quality, Round, Spread, Verdict};

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was encoded, and where it came from.
    pub clip: String,
    /// Its length.
    pub clip_seconds: f64,
    /// `ffmpeg version …`, as it says itself.
    pub ffmpeg: String,
    /// The worker's program.
    pub worker: String,
    /// Cores of this machine.
    pub cores: usize,
    /// The machine's load over the last minute, before and after: how much to believe the wall times.
    pub load_average: [Option<f64>; 2],
    /// CPU seconds that the worker uses in a second without work. Nowhere subtracted.
    pub worker_idle_cpu_per_s: f64,
    /// What was run.
    pub commands: Commands,
    /// All that was measured.
    pub rounds: Vec<Round>,
    /// The renditions' quality.
    pub quality: Vec<Quality>,
    /// The limits.
    pub verdicts: Vec<Verdict>,
}

/// What was run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Commands {
    /// One ffmpeg by hand.
    pub ladder: String,
    /// One for each rendition.
    pub separate: Vec<String>,
    /// The worker's own, as its process showed it.
    pub encode_task: String,
    /// The body of `POST /process`.
    pub job: String,
    /// The body of `POST /process`.
    pub job_mp4: String,
    /// How quality was measured.
    pub ssim: String,
}

impl Report {
    /// The limits that do not hold.
    pub fn broken(&self) -> Vec<&str> {
        self.verdicts.iter().filter(|verdict| !verdict.holds).map(|verdict| verdict.what.as_str()).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let load =
            self.load_average.map(|load| load.map_or("unknown".to_owned(), |load| format!("{load:.1}")));
        let commands = &self.commands;
        let mut lines = vec![
            format!("clip: {}, {:.1} s", self.clip, self.clip_seconds),
            format!(
                "{}, {} cores, load average {} before and {} after, medians of {} rounds",
                self.ffmpeg,
                self.cores,
                load[0],
                load[1],
                self.rounds.len()
            ),
            self.costs(),
            self.limits(),
            self.qualities(),
            self.estimate(),
            // What the kernel counts in ticks of 10 ms, over five seconds.
            format!(
                "a worker without work uses {:.3} CPU seconds in a second (give or take 0.002), which is not subtracted",
                self.worker_idle_cpu_per_s
            ),
            String::new(),
            "commands".to_owned(),
            format!("  ladder       {}", commands.ladder),
        ];
        let separate = commands.separate.iter().enumerate();
        lines.extend(separate.map(|(index, command)| format!("  separate {}   {command}", index + 1)));
        lines.push(format!("  encode task  {}", commands.encode_task));
        lines.push(format!("  whole job    POST /process {} to {}", commands.job, self.worker));
        lines.push(format!("  with mp4     POST /process {}", commands.job_mp4));
        lines.push(format!("  SSIM         {}", commands.ssim));
        lines.join("\n")
    }

    fn costs(&self) -> String {
        type Of = fn(&Round) -> f64;
        let rows: [(&str, Of, Option<Of>); 10] = [
            ("ladder: one ffmpeg by hand", |r| r.ladder.cpu_s, Some(|r| r.ladder.wall_s)),
            ("separate: one per rendition", |r| r.separate.cpu_s, Some(|r| r.separate.wall_s)),
            ("encode task: the worker's ffmpeg", |r| r.job.encode_cpu_s, None),
            ("whole job", |r| r.job.cpu_s, Some(|r| r.job.wall_s)),
            ("  of it the worker itself", |r| r.job.worker_cpu_s, None),
            ("  of it all but worker and encode", |r| r.job.other_cpu_s, None),
            ("whole job with mp4", |r| r.job_mp4.cpu_s, Some(|r| r.job_mp4.wall_s)),
            ("  of it the worker itself", |r| r.job_mp4.worker_cpu_s, None),
            ("  of it the encode", |r| r.job_mp4.encode_cpu_s, None),
            ("  of it all but worker and encode", |r| r.job_mp4.other_cpu_s, None),
        ];
        let of = |of: Of| Spread::of(self.rounds.iter().map(of));
        let ladder = of(|r| r.ladder.cpu_s).median;
        let mut table = new_table(["CPU seconds", "median", "min", "max", "÷ ladder", "wall"]);
        for (name, cpu, wall) in rows {
            let cpu = of(cpu);
            table.add_row([
                name.to_owned(),
                format!("{:.2}", cpu.median),
                format!("{:.2}", cpu.min),
                format!("{:.2}", cpu.max),
                format!("{:.3}", cpu.median / ladder),
                wall.map_or(String::new(), |wall| format!("{:.1} s", of(wall).median)),
            ]);
        }
        table.to_string()
    }

    fn limits(&self) -> String {
        let mut table = new_table(["limit", "found", "of single rounds", "wanted", "holds"]);
        for verdict in &self.verdicts {
            // A loss of SSIM is a few millionths.
            let digits = if verdict.what.starts_with("SSIM") { 6 } else { 3 };
            let range = |spread: Spread| format!("{:.3} to {:.3}", spread.min, spread.max);
            table.add_row([
                verdict.what.clone(),
                format!("{:.digits$}", verdict.found),
                verdict.rounds.map_or("the same each time".to_owned(), range),
                verdict.limit.clone(),
                if verdict.holds { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        table.to_string()
    }

    fn qualities(&self) -> String {
        let mut table = new_table(["rendition", "SSIM", "separate", "bytes", "separate"]);
        for quality in &self.quality {
            table.add_row([
                quality.rendition.clone(),
                format!("{:.6}", quality.ssim),
                format!("{:.6}", quality.ssim_separate),
                quality.bytes.to_string(),
                quality.bytes_separate.to_string(),
            ]);
        }
        table.to_string()
    }

    fn estimate(&self) -> String {
        let median = |of: fn(&Round) -> f64| Spread::of(self.rounds.iter().map(of)).median;
        let (estimate, encode) = (median(|r| r.job.estimate_s), median(|r| r.job.encode_cpu_s));
        let said = Spread::of(self.rounds.iter().filter_map(|r| r.job.encode_said_cpu_s)).median;
        format!(
            "the worker had estimated {estimate:.1} reference-seconds: {:.2} × the encode's CPU time, which by its own \
             account is {said:.2} s",
            estimate / encode
        )
    }
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::figures::tests::{quality, round};
    use crate::worker::figures::{cpu_verdicts, quality_verdicts};

    #[test]
    fn a_report_shows_every_figure_every_command_and_what_is_broken() {
        let rounds = vec![round(10.0, 12.0, 10.2, 11.9)];
        let quality = vec![quality(0.98, 1000)];
        let report = Report {
            clip: "a clip".into(),
            clip_seconds: 10.0,
            ffmpeg: "ffmpeg version 5.1".into(),
            worker: "worker".into(),
            cores: 2,
            load_average: [Some(1.0), None],
            worker_idle_cpu_per_s: 0.001,
            commands: Commands {
                ladder: "ffmpeg ladder".into(),
                separate: vec!["ffmpeg one".into(), "ffmpeg two".into()],
                encode_task: "ffmpeg task".into(),
                job: "{}".into(),
                job_mp4: "{}".into(),
                ssim: "ffmpeg ssim".into(),
            },
            verdicts: [cpu_verdicts(&rounds), quality_verdicts(&quality)].concat(),
            rounds,
            quality,
        };
        assert_eq!(report.broken(), ["whole job ÷ ladder"]);
        let text = report.text();
        for part in
            ["11.90", "1.190", "NO", "720p", "ffmpeg two", "ffmpeg ssim", "9.0 reference-seconds", "unknown"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
