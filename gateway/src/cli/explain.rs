//! `explain`: a decision as a table.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use millrace_gateway::admin::explain::Supposed;
use millrace_gateway::decisions::Explained;
use millrace_gateway::route::explain::{Pool, Reason, Terms, Why};
use millrace_gateway::status;
use millrace_wire::spec::Priority;
use reqwest::Method;

use super::{Ask, Request};

/// Why a job goes where.
#[derive(Debug, Args)]
#[command(
    after_help = "Each line of the table is a pool or, indented, a worker, with the reason why it is no candidate \
    or its F: the seconds until the job is done there, waiting counted twice.\n\n  \
    F = 2 x WAIT + 2 x AGE + JOB + TRIP + EGRESS + FAILING\n\n\
    WAIT until a slot is free; AGE of its report, when not fresh; JOB the work at its speed; TRIP to it and back; EGRESS \
    the price of moving the input, as the waiting that the money would buy; FAILING a penalty for failures. A pool's K \
    is slots x speed x weight x ramp; its SHARE of such jobs is by max(K x free share, 5 % of K) x exp(-(F - least F) / \
    10 s). The choice is random by shares, and so is the line `goes to` for a job that nobody sent.\n\n\
    Examples:\n  millrace-gateway explain --input-pool aws --duration-hint 10m\n  \
    millrace-gateway explain --spec job.json\n  millrace-gateway explain --request-id my-job-7\n\n\
    Exit codes: 0 done, 1 no answer, 2 wrong usage, no usable spec or no such decision."
)]
pub(crate) struct Explain {
    /// A decision that was made: the job's id, or the X-Request-Id of the client's request. The last 1,000 are kept.
    #[arg(long, value_name = "ID", conflicts_with_all = ["spec", "input_pool", "priority", "duration_hint"])]
    request_id: Option<String>,
    /// A job spec as a client would post it; - reads standard input. Without, a job of which nothing is known.
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Suppose that the input lies in this pool.
    #[arg(long, value_name = "POOL")]
    input_pool: Option<String>,
    /// Suppose this class.
    #[arg(long, value_name = "CLASS")]
    priority: Option<Class>,
    /// Suppose that the input is that long, like 90s or 10m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration_hint: Option<std::time::Duration>,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Class {
    Live,
    Normal,
    Batch,
}

impl Explain {
    pub(crate) async fn run(self) -> ExitCode {
        if let Some(id) = &self.request_id {
            let url = format!("{}/decisions/", self.ask.admin);
            // Encodes what a path cannot carry.
            let url = reqwest::Url::parse(&url).ok().and_then(|mut url| {
                url.path_segments_mut().ok()?.pop_if_empty().push(id);
                Some(url)
            });
            let Some(url) = url else { return crate::failed(2, &format!("--request-id {id:?} is no id")) };
            let all = |explained: &Vec<Explained>| explained.iter().map(table).collect::<Vec<_>>().join("\n");
            let path = url.as_str().strip_prefix(self.ask.admin.as_str()).unwrap_or(url.path()).to_owned();
            return super::show(&self.ask, &path, all).await;
        }
        let spec = match self.spec.as_deref().map(read).transpose() {
            Ok(spec) => spec,
            Err(message) => return crate::failed(2, &message),
        };
        let supposed = Supposed {
            spec,
            input_pool: self.input_pool,
            priority: self.priority.map(|class| match class {
                Class::Live => Priority::Live,
                Class::Normal => Priority::Normal,
                Class::Batch => Priority::Batch,
            }),
            duration_hint_s: self.duration_hint.map(|hint| u32::try_from(hint.as_secs()).unwrap_or(u32::MAX)),
        };
        let body = Some(serde_json::to_value(supposed).expect("a request is plain data"));
        match self.ask.send(Request { method: Method::POST, path: "/explain", body, if_match: None }).await {
            Ok(answer) => self.ask.print(answer, table),
            Err(failed) => self.ask.fail(&failed),
        }
    }
}

fn read(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let name = path.display();
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| format!("{name}: cannot be read: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{name}: is no JSON object: {error}"))
}

/// A decision as text: the job, where it goes, and the table.
fn table(explained: &Explained) -> String {
    let job = &explained.job;
    let mut text = String::new();
    if let Some(id) = &explained.job_id {
        text += &format!("job {id}, decided {}, tries before: {}\n", explained.at, explained.tries);
    }
    let lies =
        job.input_pool.as_ref().map_or_else(|| "nobody knows where".to_owned(), |pool| format!("in {pool}"));
    text += &format!(
        "a {} job of {:.1} reference-seconds; its input of {:.3} GB lies {lies}\n",
        job.priority.as_str(),
        job.work_s,
        job.input_gb
    );
    if let Some(chosen) = &explained.chosen {
        let worker = chosen.worker.as_ref().map(|worker| format!(" {worker}")).unwrap_or_default();
        let why = match chosen.reason {
            Reason::Only => "nothing else could take it",
            Reason::Least => "the best place",
            Reason::Spread => "its turn by shares; another place is a little better",
            Reason::Retry => "another worker had failed or refused it",
        };
        text += &format!("goes to {}{worker} {}: {why}\n", chosen.pool, chosen.address);
        let steal: Vec<String> = chosen.steal.iter().map(|(pool, s)| format!("{pool} {s:.1} s")).collect();
        if !steal.is_empty() {
            text += &format!("may be taken over, once it has waited so long, by {}\n", steal.join(", "));
        }
    }
    if let Some(nowhere) = &explained.refused {
        let why = match nowhere.why {
            Why::Saturated => "every slot and queue is full",
            Why::Exhausted => "all that is left was tried, or may not be tried",
            Why::Draining => "all that is healthy is being drained",
            Why::Unhealthy => "nothing is healthy",
        };
        let after = nowhere.retry_after_s.map(|s| format!("; try again after {s} s")).unwrap_or_default();
        text += &format!("goes nowhere: {why}{after}\n");
    }
    let head = [
        "POOL / WORKER",
        "VERDICT",
        "F s",
        "WAIT",
        "AGE",
        "JOB",
        "TRIP",
        "EGRESS",
        "FAILING",
        "FREE",
        "K",
        "SHARE",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for pool in &explained.pools {
        rows.extend(lines(pool));
    }
    text + &status::columns(&rows, 2)
}

fn lines(pool: &Pool) -> Vec<[String; 12]> {
    let cells = |name: String, verdict: String, terms: Option<&Terms>, rest: [String; 3]| {
        let number =
            |of: fn(&Terms) -> f64| terms.map(|terms| format!("{:.2}", of(terms))).unwrap_or_default();
        let [free, k, share] = rest;
        let (f, wait, age) = (number(Terms::f_s), number(|t| t.wait_s), number(|t| t.age_s));
        let (job, trip) = (number(|t| t.job_s), number(|t| t.round_trip_s));
        let (egress, failing) = (number(|t| t.egress_s), number(|t| t.failing_s));
        [name, verdict, f, wait, age, job, trip, egress, failing, free, k, share]
    };
    let verdict = |rejected: Option<String>, is_least: bool| match rejected {
        Some(why) => format!("no: {}", why.replace('_', " ")),
        None if is_least => "least".to_owned(),
        None => "yes".to_owned(),
    };
    let usable = pool.capacity > 0.0;
    let rest = [
        format!("{:.0} %", pool.free_share * 100.0),
        format!("{:.2}", pool.k),
        format!("{:.1} %", pool.share * 100.0),
    ];
    let of_pool = verdict(pool.rejected.map(word), pool.is_least);
    let mut rows = vec![cells(pool.pool.to_string(), of_pool, Some(&pool.terms).filter(|_| usable), rest)];
    for worker in &pool.workers {
        let name = worker.worker.as_ref().map_or("?", |worker| worker.as_str());
        let free =
            worker.terms.map(|_| format!("{:.0}/{:.0}", worker.free, worker.slots)).unwrap_or_default();
        let of_worker = verdict(worker.rejected.map(word), false);
        let name = format!("  {name} {}", worker.address);
        rows.push(cells(name, of_worker, worker.terms.as_ref(), [free, String::new(), String::new()]));
    }
    rows
}

/// An enum's name as it stands in JSON.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
