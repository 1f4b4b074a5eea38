//! What the command line asks a running gateway: one request to its admin listener, its answer as text or JSON.

pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod steer;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millrace_gateway::audit::{ACTOR, Entry};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long the gateway may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to ask, and how to show the answer.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// The gateway's admin listener: IP:PORT or a URL.
    #[arg(long, value_name = "URL", env = "MILLRACE_ADMIN", default_value = "127.0.0.1:8081", value_parser = base)]
    pub(crate) admin: String,
    /// A file that holds an operator's key, for a gateway that asks for one; or the key itself in MILLRACE_ADMIN_KEY.
    #[arg(long, value_name = "FILE", env = "MILLRACE_ADMIN_KEY_FILE")]
    pub(crate) key_file: Option<std::path::PathBuf>,
    /// Print the JSON instead.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A request's method, path and what goes with it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Option<Value>,
    pub(crate) if_match: Option<&'a str>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    /// 1 failed, 2 wrong usage.
    pub(crate) code: u8,
    message: String,
    problem: Option<Value>,
}

fn base(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match reqwest::Url::parse(&url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => {
            Ok(url.trim_end_matches('/').to_owned())
        }
        _ => Err("it wants IP:PORT like 127.0.0.1:8081, or a URL".to_owned()),
    }
}

/// Who runs this, for the gateway's audit log.
fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("USER").or_else(|_| std::env::var("LOGNAME")) {
        Ok(name) => format!("{name} (uid {uid})"),
        Err(_) => format!("uid {uid}"),
    }
}

impl Ask {
    /// The operator's key, if one was given. Never by a flag: others on the machine see those.
    fn key(&self) -> Result<Option<String>, Failed> {
        let Some(file) = &self.key_file else { return Ok(std::env::var("MILLRACE_ADMIN_KEY").ok()) };
        let read = std::fs::read_to_string(file).map_err(|error| error.to_string());
        match read.map(|text| text.trim().to_owned()) {
            Ok(key) if key.bytes().all(|c| c.is_ascii_graphic()) && !key.is_empty() => Ok(Some(key)),
            Ok(_) => Err("it holds no key: one word is wanted".to_owned()),
            Err(error) => Err(error),
        }
        .map_err(|why| Failed {
            code: 2,
            message: format!("--key-file {}: {why}", file.display()),
            problem: None,
        })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// No answer, or a problem.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Value, Failed> {
        let failed = |error: reqwest::Error| Failed {
            code: 1,
            message: format!("no gateway answers at {}: {}", self.admin, cause(&error)),
            problem: None,
        };
        let mut client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
        if self.admin.starts_with("http://") {
            // The system's certificates are for nothing there, and there may be none.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(failed)?;
        let mut builder = client.request(request.method, format!("{}{}", self.admin, request.path));
        builder = builder.header(ACTOR, user().replace(|c: char| !c.is_ascii_graphic() && c != ' ', "?"));
        if let Some(key) = self.key()? {
            builder = builder.bearer_auth(key);
        }
        if let Some(if_match) = request.if_match {
            builder = builder.header(reqwest::header::IF_MATCH, if_match);
        }
        if let Some(body) = &request.body {
            builder = builder.json(body);
        }
        let response = builder.send().await.map_err(failed)?;
        let status = response.status();
        let text = response.text().await.map_err(failed)?;
        let read = serde_json::from_str::<Value>(&text);
        match read {
            Ok(answer) if status.is_success() => Ok(answer),
            Ok(problem) => {
                let mut detail = problem["detail"].as_str().unwrap_or(&text).to_owned();
                if status == reqwest::StatusCode::UNAUTHORIZED {
                    detail += "; give an operator's by --key-file or MILLRACE_ADMIN_KEY";
                }
                let code = if matches!(status.as_u16(), 400 | 404 | 409 | 413 | 422) { 2 } else { 1 };
                Err(Failed { code, message: detail, problem: Some(problem) })
            }
            Err(_) => {
                let message =
                    format!("what answers at {} is no gateway's admin listener ({status})", self.admin);
                Err(Failed { code: 1, message, problem: None })
            }
        }
    }

    /// Prints an answer, as it came or as text.
    pub(crate) fn print<T: DeserializeOwned>(
        &self,
        answer: Value,
        text: impl FnOnce(&T) -> String,
    ) -> ExitCode {
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&answer).expect("JSON that was read is written again")
            );
            return ExitCode::SUCCESS;
        }
        match serde_json::from_value::<T>(answer) {
            Ok(answer) => {
                print!("{}", text(&answer));
                ExitCode::SUCCESS
            }
            Err(error) => {
                let message =
                    format!("the answer of {} is of another version of the gateway: {error}", self.admin);
                self.fail(&Failed { code: 1, message, problem: None })
            }
        }
    }

    /// Says why there is no answer.
    pub(crate) fn fail(&self, failed: &Failed) -> ExitCode {
        if let Some(problem) = failed.problem.as_ref().filter(|_| self.json) {
            println!(
                "{}",
                serde_json::to_string_pretty(problem).expect("JSON that was read is written again")
            );
        }
        crate::failed(failed.code, &failed.message)
    }
}

/// The innermost cause: reqwest's own message says only that it could not send.
fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Gets a path and prints the answer.
pub(crate) async fn show<T: DeserializeOwned>(
    ask: &Ask,
    path: &str,
    text: impl FnOnce(&T) -> String,
) -> ExitCode {
    match ask.send(Request { method: Method::GET, path, body: None, if_match: None }).await {
        Ok(answer) => ask.print(answer, text),
        Err(failed) => ask.fail(&failed),
    }
}

/// A line per change, and one more for what it changed.
pub(crate) fn audit_lines(entries: &Vec<Entry>) -> String {
    let mut text = String::new();
    for entry in entries {
        let peer = entry.by.peer.map(|peer| format!(" from {peer}")).unwrap_or_default();
        let Entry { at, action, target, .. } = entry;
        text += &format!("{at}  {action} {target} by {}{peer}\n", entry.by.name);
        match &entry.refused {
            Some(why) => text += &format!("    refused: {why}\n"),
            None => text += &format!("    {} -> {}\n", entry.before, entry.after),
        }
    }
    if text.is_empty() { "nothing was changed since the start\n".to_owned() } else { text }
}
