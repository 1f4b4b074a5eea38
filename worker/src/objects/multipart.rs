//! Uploads in parts: what the library has no call for, sent as requests that it signs.
//!
//! The library completes an upload whatever is there already, and cannot say which parts have arrived. Both are one
//! plain request of the S3 dialect, which Google's XML API speaks too.

use std::time::Duration;

use http::header::{HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use millrace_wire::PoolId;
use object_store::ObjectStoreExt as _;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::signer::SignedUrlOptions;
use serde::Deserialize;

use super::connect::{Bucket, Cloud, Kind};
use super::{Error, Meta, Objects, tells_of_expiry, unavailable};

/// How long such a request may take to arrive.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// How often one is sent at most.
const TRIES: u32 = 5;
/// Before the second; doubles.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Pages of parts that are asked for at most; each has a thousand.
const PAGES_MAX: usize = 11;

/// A part that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Bytes.
    pub bytes: u64,
    /// As the store gave it; empty where its list does not say.
    pub etag: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListPartsResult {
    #[serde(default)]
    is_truncated: bool,
    next_part_number_marker: Option<u32>,
    #[serde(default)]
    part: Vec<ListedPart>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedPart {
    part_number: u32,
    size: u64,
    #[serde(default, rename = "ETag")]
    etag: String,
}

impl Objects {
    /// Begins an upload in parts; `None` where the store has none. Returns its id.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn begin_parts(&self, bucket: &PoolId, key: &str) -> Result<Option<String>, Error> {
        let bucket = self.bucket(bucket)?;
        let Some(cloud) = &bucket.cloud else { return Ok(None) };
        let id = cloud.parts.0.create_multipart(&bucket.path(key)).await;
        id.map(Some).map_err(unavailable("begin"))
    }

    /// The parts that have arrived, in order.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such upload, or it is complete. Or the store does not work.
    pub async fn parts(&self, bucket: &PoolId, key: &str, id: &str) -> Result<Vec<Part>, Error> {
        let bucket = self.bucket(bucket)?;
        let cloud = bucket.cloud.as_deref().ok_or(Error::NotFound)?;
        let (path, mut marker, mut parts) = (bucket.path(key), 0, Vec::new());
        for _ in 0..PAGES_MAX {
            let query = [("part-number-marker", marker.to_string()), ("uploadId", id.to_owned())];
            let options = SignedUrlOptions::default().with_query(query);
            let answer = cloud.send(Method::GET, &path, &options, "list the parts of", String::new()).await?;
            let text = answer.checked("list the parts of")?;
            let page: ListPartsResult = quick_xml::de::from_str(&text)
                .map_err(|error| Error::Unavailable { verb: "list the parts of", source: Box::new(error) })?;
            let part =
                |part: ListedPart| Part { number: part.part_number, bytes: part.size, etag: part.etag };
            parts.extend(page.part.into_iter().map(part));
            match page.next_part_number_marker.filter(|next| page.is_truncated && *next > marker) {
                Some(next) => marker = next,
                None => break,
            }
        }
        parts.sort_by_key(|part| part.number);
        Ok(parts)
    }

    /// Makes one object of the parts with these ETags, in order from the first, if nothing of that key is there.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotFound`]: no such upload, or a part that did not arrive; or the store does not work.
    pub async fn complete_parts(
        &self,
        bucket: &PoolId,
        key: &str,
        id: &str,
        etags: &[String],
    ) -> Result<Meta, Error> {
        let place = self.bucket(bucket)?;
        let cloud = place.cloud.as_deref().ok_or(Error::NotFound)?;
        place.complete(cloud, &place.path(key), id, etags).await?;
        self.head(bucket, key).await
    }

    /// Forgets an upload and its parts; one that is unknown or complete is no error.
    ///
    /// # Errors
    /// The store does not work.
    pub async fn abort_parts(&self, bucket: &PoolId, key: &str, id: &str) -> Result<(), Error> {
        let bucket = self.bucket(bucket)?;
        let Some(cloud) = &bucket.cloud else { return Ok(()) };
        match cloud
            .parts
            .0
            .abort_multipart(&bucket.path(key), &id.to_owned())
            .await
            .map_err(unavailable("abort"))
        {
            Err(Error::NotFound) => Ok(()),
            done => done,
        }
    }
}

impl Bucket {
    /// See [`Objects::complete_parts`].
    pub(super) async fn complete(
        &self,
        cloud: &Cloud,
        path: &Path,
        id: &str,
        etags: &[String],
    ) -> Result<(), Error> {
        if cloud.kind == Kind::Gcs || !cloud.conditional {
            let parts = etags.iter().map(|etag| PartId { content_id: etag.clone() }).collect();
            let done = cloud.parts.0.complete_multipart(path, &id.to_owned(), parts).await;
            return done.map(|_| ()).map_err(unavailable("complete"));
        }
        let options = SignedUrlOptions::default()
            .with_query([("uploadId", id)])
            .with_signed_header(IF_NONE_MATCH, HeaderValue::from_static("*"));
        let mut body = String::from("<CompleteMultipartUpload>");
        for (number, etag) in (1..).zip(etags) {
            let etag = quick_xml::escape::escape(etag.as_str());
            body += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        body += "</CompleteMultipartUpload>";
        let answer = cloud.send(Method::POST, path, &options, "complete", body).await?;
        match answer.status {
            StatusCode::PRECONDITION_FAILED => Err(Error::Exists),
            // The answer to an earlier try can have been lost: only this upload's parts could have become the object.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN if answer.tries > 1 => {
                self.store.head(path).await.map(|_| ()).map_err(unavailable("complete"))
            }
            _ => answer.checked("complete").map(|_| ()),
        }
    }
}

/// What came back, whatever its status.
struct Answer {
    status: StatusCode,
    text: String,
    tries: u32,
}

impl Answer {
    /// The text of a success.
    fn checked(self, verb: &'static str) -> Result<String, Error> {
        let refused =
            |status: StatusCode, text: &str| -> super::BoxError { format!("{status}: {text}").into() };
        match self.status {
            status if status.is_success() => Ok(self.text),
            StatusCode::NOT_FOUND => Err(Error::NotFound),
            status
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status)
                    || tells_of_expiry(&self.text) =>
            {
                Err(Error::Denied { verb, source: refused(status, &self.text) })
            }
            StatusCode::BAD_REQUEST if self.text.contains("<Code>InvalidPart") => Err(Error::NotFound),
            status => Err(Error::Unavailable { verb, source: refused(status, &self.text) }),
        }
    }
}

impl Cloud {
    /// Sends a signed request until it has an answer that another try would not change.
    async fn send(
        &self,
        method: Method,
        path: &Path,
        options: &SignedUrlOptions,
        verb: &'static str,
        body: String,
    ) -> Result<Answer, Error> {
        let mut wait = TRY_AGAIN_AFTER;
        for tries in 1.. {
            let signed = self.own.signed_url_opts(method.clone(), path, SIGNED_FOR, options).await;
            let request = self.http.request(method.clone(), signed.map_err(unavailable(verb))?);
            let request = request.headers(options.signed_headers.clone()).body(body.clone());
            let exchange = async {
                let answer = request.send().await?;
                let status = answer.status();
                answer.text().await.map(|text| Answer { status, text, tries })
            };
            match exchange.await {
                // A 200 can hold a failure: the status goes out before the store knows. A 409 is another complete on its way.
                Ok(answer) if tries == TRIES || !answer.may_change() => return Ok(answer),
                Err(error) if tries == TRIES => {
                    return Err(Error::Unavailable { verb, source: Box::new(error.without_url()) });
                }
                _ => {}
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        unreachable!("the last try returns")
    }
}

impl Answer {
    fn may_change(&self) -> bool {
        self.status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT]
                .contains(&self.status)
            || self.status.is_success() && self.text.contains("<Error>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_parts_is_read_as_stores_write_it() {
        let text = "<?xml version=\"1.0\"?><ListPartsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket>\
            <NextPartNumberMarker>2</NextPartNumberMarker><IsTruncated>true</IsTruncated>\
            <Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag><Size>5</Size></Part>\
            <Part><PartNumber>2</PartNumber><Size>6</Size></Part><Owner><ID>x</ID></Owner></ListPartsResult>";
        let page: ListPartsResult = quick_xml::de::from_str(text).unwrap();
        assert_eq!((page.is_truncated, page.next_part_number_marker), (true, Some(2)));
        let parts: Vec<_> = page.part.iter().map(|p| (p.part_number, p.size, p.etag.as_str())).collect();
        assert_eq!(parts, [(1, 5, "\"a\""), (2, 6, "")]);
        let none: ListPartsResult =
            quick_xml::de::from_str("<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>")
                .unwrap();
        assert!(none.part.is_empty() && !none.is_truncated);
    }
}
