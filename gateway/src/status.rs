//! `millrace-gateway status`: a running gateway's pools, workers and overrides as tables.

use std::fmt::Write as _;

use crate::admin::status::{Pool, Source, Status, Worker};
use crate::overrides::Record;

/// The table: a line per pool and, below it, a line per worker; below all, a line per source, per pool that is spoken to
/// over TLS, and per override.
pub fn table(status: &Status) -> String {
    let mut rows = vec![
        ["POOL / WORKER", "STATE", "SHARE", "FREE", "RUN", "QUEUE", "WORK s", "WAIT s", "AGE s"]
            .map(str::to_owned),
    ];
    for pool in &status.pools {
        rows.push(pool_row(pool));
        rows.extend(pool.workers.iter().map(worker_row));
    }
    let mut text = columns(&rows, 2);
    for pool in &status.pools {
        if let Some(source) = &pool.source {
            text.push_str(&sourced(&pool.name, source));
        }
        if let Some(name) = &pool.tls {
            writeln!(text, "tls: {}, each worker known by {name}", pool.name)
                .expect("writing to a String cannot fail");
        }
    }
    for set in &status.overrides {
        text.push_str(&sentence(set));
        text.push('\n');
    }
    text
}

/// Rows as lines with aligned columns, the first `left` of them to the left.
pub fn columns<const COLUMNS: usize>(rows: &[[String; COLUMNS]], left: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if place < left { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") }
                .expect("writing to a String cannot fail");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Where a pool's workers come from, as a line.
fn sourced(pool: &str, source: &Source) -> String {
    let answered = match source.good_age_s {
        Some(age) => format!("good answer {age:.0} s ago"),
        None => "no good answer yet".to_owned(),
    };
    let error = source.error.as_ref().map_or(String::new(), |error| format!("; {error}"));
    let (name, endpoints) = (&source.name, source.endpoints);
    let s = if endpoints == 1 { "" } else { "s" };
    format!("source: {pool} from {name}: {endpoints} endpoint{s}, {answered}{error}\n")
}

/// An override as a sentence.
pub fn sentence(set: &Record) -> String {
    let change = match set.weight {
        Some(weight) => format!("weight {weight}"),
        None => set.change.clone(),
    };
    let until = match &set.until {
        Some(until) => format!("until {until}"),
        None => "until it is removed or the gateway ends".to_owned(),
    };
    let gone = if set.present { "" } else { " (not among the pools and workers now)" };
    format!("override: {} {change} by {} since {}, {until}{gone}", set.target, set.by.name, set.since)
}

fn pool_row(pool: &Pool) -> [String; 9] {
    let sum = |count: fn(&millrace_wire::LoadReport) -> u32| -> String {
        pool.workers.iter().filter_map(|worker| worker.report.as_ref()).map(count).sum::<u32>().to_string()
    };
    [
        format!("{} (weight {})", pool.name, pool.weight),
        pool.rejected.clone().unwrap_or_else(|| "ok".to_owned()),
        format!("{:.0} %", pool.share * 100.0),
        format!("{:.0} %", pool.headroom * 100.0),
        sum(|report| report.running),
        sum(|report| report.queued),
        String::new(),
        format!("{:.1}", pool.wait_s),
        String::new(),
    ]
}

fn worker_row(worker: &Worker) -> [String; 9] {
    let report = worker.report.as_ref();
    let name = report.map_or_else(|| "?".to_owned(), |report| report.worker.to_string());
    let state = match (&worker.rejected, worker.health.as_str()) {
        (None, _) => "ok".to_owned(),
        (Some(_), reason) if reason != "up" => format!("down: {reason}"),
        (Some(rejected), _) => rejected.clone(),
    };
    let of = |read: fn(&millrace_wire::LoadReport) -> String| report.map(read).unwrap_or_default();
    [
        format!("  {name} {}", worker.address),
        state,
        String::new(),
        of(|report| format!("{}/{}", report.slots.saturating_sub(report.running), report.slots)),
        of(|report| report.running.to_string()),
        of(|report| format!("{}/{}", report.queued, report.queue_max)),
        of(|report| format!("{:.1}", report.work_seconds)),
        String::new(),
        worker.report_age_s.map(|age| format!("{age:.1}")).unwrap_or_default(),
    ]
}
