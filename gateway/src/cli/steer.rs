//! `drain`, `undrain`, `weight`, `overrides`.

use std::process::ExitCode;

use clap::Args;
use millrace_gateway::admin::steer::{Asked, Listed};
use millrace_gateway::fleet::steer::Steered;
use millrace_gateway::overrides::Record;
use millrace_gateway::status::{self, sentence};
use reqwest::Method;

use super::{Ask, Request};

/// What every change takes.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// For how long, like 30m or "2h 15m". Then what the routing file says is in force again, by itself.
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Change only if the overrides are still as this ETag says (`overrides --json` shows it); else exit code 1.
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

/// Drains or undrains.
#[derive(Debug, Args)]
#[command(
    after_help = "The change is an override: it is in force for the next job, survives reloads of the routing file \
    (by the pool's name or the worker's address), and ends with --ttl, with `overrides --remove TARGET`, or with the \
    gateway. Restarting the gateway returns to the routing file; put there what must last.\n\n\
    Examples:\n  millrace-gateway drain gcp --ttl 30m\n  millrace-gateway drain 10.0.3.7:9001\n  \
    millrace-gateway undrain gcp\n\n\
    Exit codes: 0 done, 1 no answer or changed meanwhile, 2 wrong usage or no such target."
)]
pub(crate) struct Drain {
    /// A pool's name, a worker's address (IP:PORT) or a worker's own name.
    target: String,
    #[command(flatten)]
    change: Change,
}

/// Weighs a pool.
#[derive(Debug, Args)]
#[command(
    after_help = "The weight multiplies the pool's capacity when jobs are shared out: twice the weight, about twice \
    the jobs as long as its slots last. 0 gives it no new jobs. As for `drain`, the change is an override: it survives \
    reloads, and ends with --ttl, with `overrides --remove POOL`, or with the gateway.\n\n\
    Examples:\n  millrace-gateway weight aws 0.5 --ttl 30m\n\n\
    Exit codes: 0 done, 1 no answer or changed meanwhile, 2 wrong usage or no such pool."
)]
pub(crate) struct Weight {
    /// The pool's name.
    pool: String,
    /// The weight: 0 to 1,000,000.
    weight: f64,
    #[command(flatten)]
    change: Change,
}

/// Lists or removes.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done, 1 no answer or changed meanwhile, 2 wrong usage or no such target."
)]
pub(crate) struct Overrides {
    /// Remove every override of this pool or worker; what the routing file says is in force again.
    #[arg(long, value_name = "TARGET")]
    remove: Option<String>,
    /// Remove only if the overrides are still as this ETag says.
    #[arg(long, value_name = "ETAG", requires = "remove")]
    if_match: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

impl Drain {
    pub(crate) async fn run(self, path: &str) -> ExitCode {
        self.change.send(path, self.target, None).await
    }
}

impl Weight {
    pub(crate) async fn run(self) -> ExitCode {
        self.change.send("/weight", self.pool, Some(self.weight)).await
    }
}

impl Change {
    async fn send(self, path: &str, target: String, weight: Option<f64>) -> ExitCode {
        let body = serde_json::to_value(Asked { target, ttl: self.ttl, weight });
        let body = Some(body.expect("a request is plain data"));
        let request = Request { method: Method::POST, path, body, if_match: self.if_match.as_deref() };
        match self.ask.send(request).await {
            Ok(answer) => self.ask.print(answer, steered),
            Err(failed) => self.ask.fail(&failed),
        }
    }
}

impl Overrides {
    pub(crate) async fn run(self) -> ExitCode {
        let Some(target) = self.remove else {
            return super::show(&self.ask, "/overrides", listed).await;
        };
        // A name or an address has nothing else that a path could not carry; the gateway refuses what is neither.
        let path =
            format!("/overrides/{}", target.replace('%', "%25").replace('/', "%2F").replace('?', "%3F"));
        let if_match = self.if_match.as_deref();
        match self.ask.send(Request { method: Method::DELETE, path: &path, body: None, if_match }).await {
            Ok(answer) => self.ask.print(answer, steered),
            Err(failed) => self.ask.fail(&failed),
        }
    }
}

/// What a change did, as lines; a warning goes to standard error.
fn steered(steered: &Steered) -> String {
    let state = |value: &serde_json::Value| {
        let drain = match value["drain"].as_bool() {
            Some(true) => "takes no new jobs",
            Some(false) => "takes jobs",
            None => "is not there now",
        };
        let weight = value["weight"].as_f64().map(|weight| format!(", weight {weight}")).unwrap_or_default();
        format!("{drain}{weight}")
    };
    if let Some(warning) = &steered.warning {
        eprintln!("millrace-gateway: warning: {warning}");
    }
    let mut text =
        format!("{}: {} (before: {})\n", steered.target, state(&steered.after), state(&steered.before));
    let set: Vec<Record> = serde_json::from_value(steered.after["overrides"].clone()).unwrap_or_default();
    for set in &set {
        text += &format!("{}\n", sentence(set));
    }
    text
}

fn listed(listed: &Listed) -> String {
    if listed.overrides.is_empty() {
        return "no overrides: what the routing file says is in force\n".to_owned();
    }
    let mut rows = vec![["TARGET", "CHANGE", "UNTIL", "BY", "SINCE", "PRESENT"].map(str::to_owned)];
    for set in &listed.overrides {
        let change = set.weight.map_or_else(|| set.change.clone(), |weight| format!("weight {weight}"));
        let until = set.until.clone().unwrap_or_else(|| "removed".to_owned());
        let present = if set.present { "yes" } else { "no" }.to_owned();
        rows.push([set.target.clone(), change, until, set.by.name.clone(), set.since.clone(), present]);
    }
    status::columns(&rows, 6)
}
