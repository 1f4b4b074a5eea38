//! `[auth]`: where the API keys are. Without it nobody is asked for one.

use std::path::PathBuf;

use millrace_runtime::config::{Error, File};
use serde::Deserialize;
use toml::Spanned;

/// Whom the gateway serves. Changing it needs a restart, so that no reload opens or shuts the door by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The file of keys; [`crate::auth::load`] says what is in it.
    pub keys: PathBuf,
}

/// The section as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    keys: Spanned<PathBuf>,
}

impl RawAuth {
    pub(super) fn validate(self, file: &File) -> Result<Auth, Error> {
        if self.keys.get_ref().as_os_str().is_empty() {
            return Err(file.error_at(
                self.keys.span(),
                "auth.keys",
                "it is empty; it wants the path of a file",
            ));
        }
        let beside = file.path().parent().map(|folder| folder.join(self.keys.get_ref()));
        Ok(Auth { keys: beside.unwrap_or_else(|| self.keys.into_inner()) })
    }
}
