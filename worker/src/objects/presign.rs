//! URLs by which a client reads or writes one object past the workers, for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use http::header::{HeaderName, HeaderValue, IF_NONE_MATCH};
use millrace_wire::PoolId;
use object_store::signer::SignedUrlOptions;
use url::Url;

use super::connect::Kind;
use super::{Error, Objects, unavailable};

/// The longest that stores let a URL hold.
const HOLDS_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A `PUT` that a client may do once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPut {
    /// Where to.
    pub url: Url,
    /// What must be sent along: the signature covers it.
    pub headers: BTreeMap<String, String>,
}

impl Objects {
    /// Whether a pool's bucket lets clients read and write by URLs of its own.
    pub fn signs(&self, bucket: &PoolId) -> bool {
        self.bucket(bucket).is_ok_and(|bucket| bucket.cloud.is_some())
    }

    /// A URL to `GET` or `HEAD` an object. `saved_as` is the name of the file that a browser makes of it. `None` where the
    /// store has no such URLs. Whether the object is there is not asked.
    ///
    /// # Errors
    /// The credentials to sign with cannot be had.
    pub async fn sign_read(
        &self,
        method: Method,
        bucket: &PoolId,
        key: &str,
        holds: Duration,
        saved_as: Option<&str>,
    ) -> Result<Option<Url>, Error> {
        let saved =
            saved_as.map(|name| ("response-content-disposition", format!("attachment; filename=\"{name}\"")));
        let options = SignedUrlOptions::default().with_query(saved);
        self.sign(method, bucket, key, holds, &options).await
    }

    /// A URL to write an object with one `PUT`, if nothing is there then. `None` where the store has no such URLs.
    ///
    /// # Errors
    /// The credentials to sign with cannot be had.
    pub async fn sign_put(
        &self,
        bucket: &PoolId,
        key: &str,
        holds: Duration,
    ) -> Result<Option<SignedPut>, Error> {
        let (mut options, mut headers) = (SignedUrlOptions::default(), BTreeMap::new());
        if let Some(cloud) = self.bucket(bucket)?.cloud.as_deref().filter(|cloud| cloud.conditional) {
            let (name, value) = match cloud.kind {
                Kind::S3 => (IF_NONE_MATCH, "*"),
                Kind::Gcs => (HeaderName::from_static("x-goog-if-generation-match"), "0"),
            };
            headers.insert(name.to_string(), value.to_owned());
            options = options.with_signed_header(name, HeaderValue::from_static(value));
        }
        let url = self.sign(Method::PUT, bucket, key, holds, &options).await?;
        Ok(url.map(|url| SignedPut { url, headers }))
    }

    /// A URL to write one part, numbered from 1, of an upload that was begun.
    ///
    /// # Errors
    /// The credentials to sign with cannot be had.
    pub async fn sign_part(
        &self,
        bucket: &PoolId,
        key: &str,
        id: &str,
        number: u32,
        holds: Duration,
    ) -> Result<Option<Url>, Error> {
        let query = [("partNumber", number.to_string()), ("uploadId", id.to_owned())];
        let options = SignedUrlOptions::default().with_query(query);
        self.sign(Method::PUT, bucket, key, holds, &options).await
    }

    async fn sign(
        &self,
        method: Method,
        bucket: &PoolId,
        key: &str,
        holds: Duration,
        options: &SignedUrlOptions,
    ) -> Result<Option<Url>, Error> {
        let bucket = self.bucket(bucket)?;
        let Some(cloud) = &bucket.cloud else { return Ok(None) };
        let path = bucket.path(key);
        let signed = cloud.public.signed_url_opts(method, &path, holds.min(HOLDS_MAX), options);
        signed.await.map(Some).map_err(unavailable("sign a URL of an"))
    }
}
