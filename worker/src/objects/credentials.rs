//! Credentials in a file, as the AWS tools write it. The library knows every other means of the platforms, but not this.
//!
//! Whoever renews credentials replaces the file, so it is read again when a request needs them and some time has passed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::aws::AwsCredential;
use object_store::client::CredentialProvider;

/// How long what was read counts.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Gives what stands in the file.
#[derive(Debug)]
pub(super) struct FromFile {
    path: PathBuf,
    profile: String,
    last: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl FromFile {
    pub(super) fn new(path: PathBuf, profile: Option<String>) -> Self {
        Self { path, profile: profile.unwrap_or_else(|| "default".to_owned()), last: Mutex::new(None) }
    }

    /// What stands in the file now.
    ///
    /// # Errors
    /// Names the file and what is missing in it; never a line of it.
    pub(super) async fn read(&self) -> Result<AwsCredential, String> {
        let text = tokio::fs::read_to_string(&self.path).await;
        let text = text.map_err(|error| format!("{} cannot be read: {error}", self.path.display()))?;
        parse(&text, &self.profile).map_err(|what| format!("{}: {what}", self.path.display()))
    }
}

#[async_trait]
impl CredentialProvider for FromFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, credential)) = last.filter(|(read, _)| read.elapsed() < READ_AGAIN_AFTER) {
            return Ok(credential);
        }
        let read = self.read().await;
        let credential = Arc::new(read.map_err(|what| object_store::Error::Unauthenticated {
            path: String::new(),
            source: what.into(),
        })?);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

fn parse(text: &str, profile: &str) -> Result<AwsCredential, String> {
    let (mut here, mut found) = (false, false);
    let (mut key_id, mut secret_key, mut token) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            here = name.trim() == profile;
            found |= here;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| here) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key_id = value,
                "aws_secret_access_key" => secret_key = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    if !found {
        return Err(format!("there is no section [{profile}]"));
    }
    let needed = |value: Option<String>, name: &str| value.ok_or(format!("[{profile}] has no {name}"));
    let key_id = needed(key_id, "aws_access_key_id")?;
    Ok(AwsCredential { key_id, secret_key: needed(secret_key, "aws_secret_access_key")?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# made by hand\n[default]\naws_access_key_id = A\naws_secret_access_key=S=\n\n\
                        [ other ]\naws_access_key_id=B\naws_secret_access_key=T\naws_session_token = X\nregion=r\n[half]\n";

    #[test]
    fn a_profile_is_a_section() {
        let default = parse(FILE, "default").unwrap();
        assert_eq!((default.key_id.as_str(), default.secret_key.as_str(), default.token), ("A", "S=", None));
        let other = parse(FILE, "other").unwrap();
        assert_eq!((other.key_id.as_str(), other.token.as_deref()), ("B", Some("X")));
        assert_eq!(parse(FILE, "half").unwrap_err(), "[half] has no aws_access_key_id");
        assert_eq!(parse(FILE, "none").unwrap_err(), "there is no section [none]");
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_named() {
        let missing = FromFile::new("/no/such/file".into(), None).get_credential().await.unwrap_err();
        assert!(missing.to_string().contains("/no/such/file"), "{missing}");
    }
}
