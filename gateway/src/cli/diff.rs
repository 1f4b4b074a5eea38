//! `diff`: what a routing file would change in a running gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use millrace_gateway::admin::diff::{Changes, Wanted};
use reqwest::Method;

use super::{Ask, Request};

/// Compares.
#[derive(Debug, Args)]
#[command(
    after_help = "The gateway compares the file with the one that is in force, and with its own rules: a file that \
    it would refuse is refused here with file, line, column and key. Nothing is changed. Keys that say what is the \
    default already are no change. Overrides stay in force over either file, and are named below the changes.\n\n\
    + and - pools and endpoints that come and go, ~ other values. What is marked `needs a restart` makes a running \
    gateway refuse the file.\n\n\
    Exit codes, as those of diff(1): 0 no change, 1 changes, 2 trouble (no answer, wrong usage, an unusable file)."
)]
pub(crate) struct Diff {
    /// The routing file (TOML).
    file: PathBuf,
    #[command(flatten)]
    ask: Ask,
}

impl Diff {
    pub(crate) async fn run(self) -> ExitCode {
        let file = self.file.display().to_string();
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) => return crate::failed(2, &format!("{file}: cannot be read: {error}")),
        };
        let body = Some(serde_json::to_value(Wanted { file, text }).expect("a request is plain data"));
        let answer = match self
            .ask
            .send(Request { method: Method::POST, path: "/diff", body, if_match: None })
            .await
        {
            Ok(answer) => answer,
            Err(mut failed) => {
                failed.code = 2;
                return self.ask.fail(&failed);
            }
        };
        let changed = answer["changes"].as_array().is_some_and(|changes| !changes.is_empty());
        match self.ask.print(answer, lines) {
            printed if printed != ExitCode::SUCCESS => ExitCode::from(2),
            _ if changed => ExitCode::from(1),
            same => same,
        }
    }
}

fn lines(told: &Changes) -> String {
    let mut text: String = told.changes.iter().map(|change| change.line() + "\n").collect();
    for set in &told.overridden {
        text += &format!("overridden, whatever the file says: {set}\n");
    }
    text
}
