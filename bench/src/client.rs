//! A client of the API: thin, so that a test still sees every status and header.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::stream;
use millrace_wire::headers;
use millrace_wire::job::{Job, JobPage, UploadTicket};
use millrace_wire::problem::Problem;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Body, Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

/// Longest wait for one small answer. Uploads and media have none: they are as long as they are.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an upload that are read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// How often a job is read while somebody waits for it.
const JOB_POLL: Duration = Duration::from_millis(100);

/// One endpoint, spoken to as a client would.
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
    key: Option<HeaderValue>,
}

/// A whole answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header as text; `None` when it is missing or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The pool that answered.
    pub fn pool(&self) -> Option<&str> {
        self.header(headers::POOL)
    }

    /// The worker that answered.
    pub fn worker(&self) -> Option<&str> {
        self.header(headers::WORKER)
    }

    /// `Retry-After` in seconds.
    pub fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs)
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is something else; the error shows it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("read this {} answer: {}", self.status, self.text()))
    }

    /// The body as a job.
    ///
    /// # Errors
    /// It is none.
    pub fn job(&self) -> Result<Job> {
        self.json()
    }

    /// The body as a problem whose status is the answer's.
    ///
    /// # Errors
    /// It is none, or says another status than the answer's.
    pub fn problem(&self) -> Result<Problem> {
        let kind = self.header(CONTENT_TYPE.as_str()).unwrap_or("");
        if !kind.starts_with(millrace_wire::problem::CONTENT_TYPE) {
            bail!("a {} answer of type {kind:?} is no problem: {}", self.status, self.text());
        }
        let problem: Problem = self.json()?;
        if problem.status != self.status.as_u16() {
            bail!("the problem says {}, the answer {}", problem.status, self.status);
        }
        Ok(problem)
    }

    /// The same answer, if it is a success.
    ///
    /// # Errors
    /// With the status and the body otherwise.
    pub fn success(self) -> Result<Self> {
        if self.status.is_success() {
            return Ok(self);
        }
        bail!("{}: {}", self.status, self.text())
    }
}

impl Client {
    /// A client of `http://HOST:PORT`.
    ///
    /// # Errors
    /// A URL that cannot be read.
    pub fn new(base: &str) -> Result<Self> {
        crate::install_crypto();
        let base = Url::parse(base).with_context(|| format!("read the URL {base:?}"))?;
        // No proxy of the environment's: the system is on loopback.
        let http = reqwest::Client::builder().no_proxy().build().context("build the HTTP client")?;
        Ok(Self { base, http, key: None })
    }

    /// The same client with that API key in each request.
    ///
    /// # Panics
    /// When it is no plain word.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        let key = format!("Bearer {key}").parse().expect("keys are plain words");
        Self { key: Some(key), ..self.clone() }
    }

    /// The full URL of a path (or of a URL that already is one).
    ///
    /// # Errors
    /// A path that makes no URL.
    pub fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).with_context(|| format!("read the path {path:?}"))
    }

    /// Sends one request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: impl Into<Body>,
    ) -> Result<Answer> {
        headers.extend(self.key.clone().map(|key| (AUTHORIZATION, key)));
        let url = self.url(path)?;
        let what = format!("{method} {url}");
        let request = self.http.request(method, url).headers(headers).body(body);
        let exchange = async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            answer.bytes().await.map(|body| Answer { status, headers, body: body.to_vec() })
        };
        exchange.await.context(what)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let (mut headers, mut bytes) = (HeaderMap::new(), Vec::new());
        if let Some(body) = body {
            headers.insert(CONTENT_TYPE, "application/json".parse().expect("a legal header"));
            bytes = body.to_string().into_bytes();
        }
        let what = format!("{method} {path}");
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.send(method, path, headers, bytes)).await;
        answer.with_context(|| format!("{what}: no answer in {ANSWER_TIMEOUT:?}"))?
    }

    /// `GET` of any path, within the time for small answers.
    ///
    /// # Errors
    /// No answer came.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path, None).await
    }

    /// `POST` of JSON to any path.
    ///
    /// # Errors
    /// No answer came.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// `POST /process`, whatever it answers.
    ///
    /// # Errors
    /// No answer came.
    pub async fn process(&self, spec: &Value) -> Result<Answer> {
        self.post("/process", spec).await
    }

    /// `POST /process`; a refusal is an error.
    ///
    /// # Errors
    /// No answer, or another than 200 or 202.
    pub async fn submit(&self, spec: &Value) -> Result<Job> {
        self.process(spec).await?.success().context("submit a job")?.job()
    }

    /// `DELETE /jobs/{id}`, whatever it answers.
    ///
    /// # Errors
    /// No answer came.
    pub async fn cancel(&self, id: &str) -> Result<Answer> {
        self.ask(Method::DELETE, &format!("/jobs/{id}"), None).await
    }

    /// One job.
    ///
    /// # Errors
    /// No answer, or no such job.
    pub async fn job(&self, id: &str) -> Result<Job> {
        self.get(&format!("/jobs/{id}")).await?.success().with_context(|| format!("read job {id}"))?.job()
    }

    /// Every job, page by page, the newest first.
    ///
    /// # Errors
    /// A page that did not come.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        let (mut jobs, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut url = self.url("/jobs?limit=100")?;
            if let Some(cursor) = &cursor {
                url.query_pairs_mut().append_pair("cursor", cursor);
            }
            let page: JobPage = self.get(url.as_str()).await?.success().context("list jobs")?.json()?;
            jobs.extend(page.jobs);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(jobs);
            }
        }
    }

    /// Reads a job again and again until `condition` holds.
    ///
    /// # Errors
    /// A read failed, or `patience` was not enough; with the job as it was last.
    pub async fn wait_for(
        &self,
        id: &str,
        what: &str,
        patience: Duration,
        condition: impl Fn(&Job) -> bool,
    ) -> Result<Job> {
        let deadline = Instant::now() + patience;
        loop {
            let job = self.job(id).await?;
            if condition(&job) {
                return Ok(job);
            }
            if Instant::now() > deadline {
                let job = serde_json::to_string(&job).unwrap_or_default();
                bail!("job {id} was not {what} after {patience:?}; it is {job}");
            }
            tokio::time::sleep(JOB_POLL).await;
        }
    }

    /// Waits until a job has ended, however.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub async fn wait_final(&self, id: &str, patience: Duration) -> Result<Job> {
        self.wait_for(id, "done", patience, |job| job.state.is_final()).await
    }

    /// `POST /upload/request`.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn upload_ticket(&self, filename: &str, content_type: &str) -> Result<UploadTicket> {
        let body = serde_json::json!({ "filename": filename, "content_type": content_type });
        self.post("/upload/request", &body).await?.success().context("ask for an upload")?.json()
    }

    /// Uploads a file to a ticket's URL in chunks; `progress` hears how many bytes were handed over so far.
    ///
    /// # Errors
    /// The file cannot be read, or no answer came.
    pub async fn put_file(
        &self,
        ticket: &UploadTicket,
        content_type: &str,
        path: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Answer> {
        let open = || format!("open {}", path.display());
        let file = tokio::fs::File::open(path).await.with_context(open)?;
        let length = file.metadata().await.with_context(open)?.len();
        let chunks = stream::try_unfold((file, 0u64, progress), |(mut file, sent, progress)| async move {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = file.read(&mut chunk).await?;
            chunk.truncate(read);
            let sent = sent + read as u64;
            progress(sent);
            Ok::<_, std::io::Error>((read > 0).then_some((chunk, (file, sent, progress))))
        });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, length.into());
        headers.insert(CONTENT_TYPE, content_type.parse().context("read the content type")?);
        for (name, value) in &ticket.headers {
            let name: HeaderName = name.parse().context("read a header of the ticket")?;
            headers.insert(name, value.parse().context("read a header of the ticket")?);
        }
        self.send(Method::PUT, &ticket.upload_url, headers, Body::wrap_stream(chunks)).await
    }
}
