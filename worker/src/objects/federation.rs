//! Google's workload identity federation: a pod of another cloud shows its own cluster's token, and gets an access token
//! of Google's for an hour. No key lies anywhere.
//!
//! The file is what `gcloud iam workload-identity-pools create-cred-config` writes (`external_account`, AIP-4117), with a
//! token that lies in a file, as Kubernetes projects it. The library reads no such files. AWS's signed requests as a
//! source were left out: a pod on EKS has a token of its cluster's issuer anyway.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::client::CredentialProvider;
use object_store::gcp::{GcpCredential, GcpSigningCredential};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

/// What a token is for. Signing URLs is no part of the object store's own scopes.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// A token is renewed so long before its end, or when half of its time is over where that is later.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Longest answer of a token service that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest that one question to a token service may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The file.
#[derive(Debug, Clone, Deserialize)]
struct External {
    audience: String,
    subject_token_type: String,
    token_url: url::Url,
    service_account_impersonation_url: Option<url::Url>,
    credential_source: Source,
}

/// Where the pod's own token lies.
#[derive(Debug, Clone, Deserialize)]
struct Source {
    file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
}

/// How the token's file looks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Format {
    #[default]
    Text,
    Json {
        subject_token_field_name: String,
    },
}

/// Gives access tokens, and says in whose name URLs are signed.
#[derive(Debug)]
pub(super) struct Federation {
    external: External,
    token_file: PathBuf,
    http: reqwest::Client,
    last: Mutex<Option<(Instant, Arc<GcpCredential>)>>,
}

impl Federation {
    /// Reads the file, if it describes such an identity; `None` when it is of another kind.
    ///
    /// # Errors
    /// Names the file and what is wrong in it.
    pub(super) fn read(path: &Path, http: &reqwest::Client) -> Result<Option<Self>, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let text = std::fs::read(path).map_err(|error| wrong(&error))?;
        let kind: serde_json::Value = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if kind["type"] != "external_account" {
            return Ok(None);
        }
        let external: External = serde_json::from_value(kind).map_err(|error| wrong(&error))?;
        let Some(token_file) = external.credential_source.file.clone() else {
            return Err(wrong(
                &"credential_source must name a file with the token that Kubernetes projects; other sources are not read",
            ));
        };
        let urls = [Some(&external.token_url), external.service_account_impersonation_url.as_ref()];
        for url in urls.into_iter().flatten() {
            let here = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
            if url.scheme() != "https" && !here {
                return Err(wrong(&format_args!("{url} must be https: a token is sent there")));
            }
        }
        Ok(Some(Self { external, token_file, http: http.clone(), last: Mutex::default() }))
    }

    /// The service account that URLs are signed as: it stands in the URL by which it is acted for.
    fn email(&self) -> Option<String> {
        let path = self.external.service_account_impersonation_url.as_ref()?.path();
        let (_, account) = path.rsplit_once("/serviceAccounts/")?;
        Some(account.split_once(':')?.0.to_owned())
    }

    async fn subject_token(&self) -> Result<String, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", self.token_file.display());
        // Read each time: the kubelet replaces it.
        let text = tokio::fs::read_to_string(&self.token_file).await.map_err(|error| wrong(&error))?;
        match &self.external.credential_source.format {
            Format::Text => Ok(text.trim().to_owned()),
            Format::Json { subject_token_field_name: name } => {
                let fields: serde_json::Value =
                    serde_json::from_str(&text).map_err(|_| wrong(&"it is no JSON"))?;
                let token = fields[name].as_str();
                token.map(str::to_owned).ok_or_else(|| wrong(&format_args!("there is no text {name}")))
            }
        }
    }

    /// A new access token, and how long it holds.
    async fn exchange(&self) -> Result<(String, Duration), String> {
        #[derive(Deserialize)]
        struct Exchanged {
            access_token: String,
            #[serde(default)]
            expires_in: u64,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Impersonated {
            access_token: String,
            expire_time: jiff::Timestamp,
        }
        let subject = self.subject_token().await?;
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
            .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
            .append_pair("audience", &self.external.audience)
            .append_pair("scope", SCOPE)
            .append_pair("subject_token_type", &self.external.subject_token_type)
            .append_pair("subject_token", &subject)
            .finish();
        let asked = self.http.post(self.external.token_url.clone());
        let asked = asked.header("content-type", "application/x-www-form-urlencoded").body(form);
        let federated: Exchanged = answer("the exchange of the pod's token", asked).await?;
        let Some(url) = &self.external.service_account_impersonation_url else {
            return Ok((federated.access_token, Duration::from_secs(federated.expires_in)));
        };
        let asked = self.http.post(url.clone()).bearer_auth(&federated.access_token);
        let asked = asked.json(&serde_json::json!({ "scope": [SCOPE] }));
        let acting: Impersonated = answer("acting for the service account", asked).await?;
        let left = acting.expire_time.duration_since(jiff::Timestamp::now());
        Ok((acting.access_token, left.try_into().unwrap_or_default()))
    }
}

/// Asks a token service; its answer's body may hold a token and is never part of an error, but Google's own words are.
async fn answer<T: DeserializeOwned>(what: &str, asked: reqwest::RequestBuilder) -> Result<T, String> {
    let asked = async {
        let mut response = asked.send().await.map_err(|error| format!("{what}: {}", chain(&error)))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| format!("{what}: {}", chain(&error)))?
        {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("{what}: the answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| format!("{what}: the answer holds no token"));
        }
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = said["error_description"].as_str().or(said["error"]["message"].as_str());
        Err(format!("{what}: {status}: {}", words.unwrap_or("it says no more")))
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(format!("{what}: no answer in time")))
}

/// An error with what caused it: reqwest says no more than "error sending request" itself.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn unauthenticated(what: String) -> object_store::Error {
    object_store::Error::Unauthenticated { path: String::new(), source: what.into() }
}

#[async_trait]
impl CredentialProvider for Federation {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        // Held across the exchange, so that many requests at once cost one token.
        let mut last = self.last.lock().await;
        if let Some((_, credential)) = last.as_ref().filter(|(renew_at, _)| Instant::now() < *renew_at) {
            return Ok(Arc::clone(credential));
        }
        let (bearer, left) = self.exchange().await.map_err(unauthenticated)?;
        let credential = Arc::new(GcpCredential { bearer });
        let renew_after = left.saturating_sub(RENEW_BEFORE).max(left / 2);
        *last = Some((Instant::now() + renew_after, Arc::clone(&credential)));
        Ok(credential)
    }
}

/// The one in whose name URLs are signed; by a call of Google's, because there is no key.
#[derive(Debug)]
pub(super) struct SignsAs(pub(super) Arc<Federation>);

#[async_trait]
impl CredentialProvider for SignsAs {
    type Credential = GcpSigningCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpSigningCredential>> {
        let email = self.0.email().ok_or_else(|| {
            unauthenticated("without service_account_impersonation_url nobody's name signs URLs".to_owned())
        })?;
        Ok(Arc::new(GcpSigningCredential { email, private_key: None }))
    }
}

#[cfg(test)]
mod tests;
