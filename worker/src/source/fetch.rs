//! Bringing a URL's bytes into a local file, within limits.
//!
//! ffmpeg is never given a URL. The address that was checked is the one that is connected to: names are resolved by
//! a resolver that drops refused addresses, so that no second look-up can give another answer. Every hop of a
//! redirect is checked the same way; the environment's proxies are ignored, since a proxy would connect unchecked.

use std::error::Error as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use millrace_wire::job::FailureCode;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, LOCATION};
use reqwest::{Client, Response};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use super::address::{Allowed, Refused};
use super::resolve::Resolver;
use crate::failure::{Ended, Failure};

/// How often a fetch says how far it is, at most.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Limits of fetching.
#[derive(Debug, Clone)]
pub struct FetchSettings {
    /// Networks that are allowed although they are not public.
    pub allow_private: Vec<IpNet>,
    /// Largest source, in bytes.
    pub bytes_max: u64,
    /// For all of it, redirects included.
    pub total_timeout: Duration,
    /// For one connection, name look-up included.
    pub connect_timeout: Duration,
    /// Without a byte for this long, it is given up.
    pub stall_timeout: Duration,
    /// Most redirects that are followed.
    pub redirects_max: u32,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            allow_private: Vec::new(),
            bytes_max: 32 << 30,
            total_timeout: Duration::from_secs(2 * 3600),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            redirects_max: 5,
        }
    }
}

/// A source that was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Its size.
    pub bytes: u64,
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all, by the server's `Content-Length`.
    pub announced: Option<u64>,
}

/// Who is told of it.
pub type Report<'a> = &'a (dyn Fn(Arrived) + Send + Sync);

/// Fetches sources.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: Client,
    allowed: Allowed,
    settings: FetchSettings,
}

impl Fetcher {
    /// A fetcher with these limits.
    ///
    /// # Errors
    /// When the TLS stack cannot be set up.
    pub fn new(settings: FetchSettings) -> Result<Self, reqwest::Error> {
        // Installed already by main; in tests and tools this is the first call. An error means only that.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let allowed = Allowed::new(settings.allow_private.clone());
        let client = Client::builder()
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(std::sync::Arc::new(Resolver::system(allowed.clone())))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, allowed, settings })
    }

    /// Fetches `url` into the file `into`, which appears only when all of it is there. `report` is told how far it is: at
    /// the start, at the end, and five times a second at most between.
    ///
    /// # Errors
    /// Cancelled, or a failure whose detail a client may read.
    pub async fn fetch(
        &self,
        url: &str,
        into: &Path,
        report: Report<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Ended> {
        let part = PartFile::beside(into);
        let whole = async {
            let response = self.follow(url).await?;
            self.save(response, &part.0, into, report).await
        };
        let total = self.settings.total_timeout;
        let fetched = tokio::select! {
            () = cancel.cancelled() => return Err(Ended::Cancelled),
            fetched = tokio::time::timeout(total, whole) => fetched,
        };
        let late = || {
            let detail = format!("the source did not arrive within {} s", total.as_secs());
            Failure::new(FailureCode::SourceTimeout, detail)
        };
        let fetched = fetched.unwrap_or_else(|_| Err(late()));
        fetched.map_err(|failure| {
            let log = format!("fetch {}: {}", redact(url), failure.log);
            failure.log(log).into()
        })
    }

    /// The first answer that is no redirect.
    async fn follow(&self, url: &str) -> Result<Response, Failure> {
        let mut url = Url::parse(url).map_err(|error| {
            Failure::new(FailureCode::SourceNotFound, "the source's URL cannot be read").log(error)
        })?;
        for hop in 0..=self.settings.redirects_max {
            self.check(&url, hop)?;
            let request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity").send();
            let answer =
                tokio::time::timeout(self.settings.stall_timeout + self.settings.connect_timeout, request);
            let response = answer.await.map_err(|_| stalled())?.map_err(|error| broken(&error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(refused_by_server(status.as_u16()));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or_else(|| {
                let detail =
                    format!("the source's server answered {} without saying where to", status.as_u16());
                Failure::new(FailureCode::SourceRedirects, detail)
            })?;
        }
        let detail = format!("the source redirects more than {} times", self.settings.redirects_max);
        Err(Failure::new(FailureCode::SourceRedirects, detail))
    }

    /// Names are checked when they are resolved; an address in the URL itself never is resolved, so here.
    fn check(&self, url: &Url, hop: u32) -> Result<(), Failure> {
        if !matches!(url.scheme(), "http" | "https") {
            let code = if hop == 0 { FailureCode::SourceNotFound } else { FailureCode::SourceRedirects };
            return Err(Failure::new(code, "the source's URL leads to something that is not http or https"));
        }
        let address = match url.host() {
            Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
            _ => return Ok(()),
        };
        self.allowed.check(address).map_err(address_refused)
    }

    async fn save(
        &self,
        mut response: Response,
        part: &Path,
        into: &Path,
        report: Report<'_>,
    ) -> Result<Fetched, Failure> {
        let announced = response.headers().get(CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let too_large = || {
            let detail = format!("the source has more than {} bytes", self.settings.bytes_max);
            Failure::new(FailureCode::SourceTooLarge, detail)
        };
        if announced.is_some_and(|bytes| bytes > self.settings.bytes_max) {
            return Err(too_large());
        }
        let failed = |error: std::io::Error| Failure::scratch("write the source", &error);
        let file = tokio::fs::File::create(part).await.map_err(failed)?;
        let mut file = tokio::io::BufWriter::with_capacity(256 * 1024, file);
        let mut bytes = 0_u64;
        report(Arrived { bytes, announced });
        let mut reported = Instant::now();
        loop {
            let chunk = tokio::time::timeout(self.settings.stall_timeout, response.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| stalled())?.map_err(|error| broken(&error))? else { break };
            bytes += chunk.len() as u64;
            if bytes > self.settings.bytes_max {
                return Err(too_large());
            }
            file.write_all(&chunk).await.map_err(failed)?;
            if reported.elapsed() >= REPORT_EVERY {
                report(Arrived { bytes, announced });
                reported = Instant::now();
            }
        }
        if let Some(announced) = announced.filter(|announced| *announced != bytes) {
            let detail = format!("the source's server sent {bytes} of {announced} bytes");
            return Err(Failure::new(FailureCode::SourceUnreachable, detail));
        }
        if bytes == 0 {
            return Err(Failure::new(FailureCode::SourceEmpty, "the source has zero bytes"));
        }
        file.flush().await.map_err(failed)?;
        tokio::fs::rename(part, into).await.map_err(failed)?;
        report(Arrived { bytes, announced });
        Ok(Fetched { bytes })
    }
}

/// An unfinished file; gone when this is dropped, however the fetch ended.
struct PartFile(PathBuf);

impl PartFile {
    fn beside(into: &Path) -> Self {
        let mut name = into.as_os_str().to_owned();
        name.push(".part");
        Self(name.into())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; any other failure leaves a file in the job's own directory.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn address_refused(refused: Refused) -> Failure {
    let remedy = match refused.reason {
        "private" | "loopback" => {
            "; an operator can allow a network with the worker's --allow-private-sources"
        }
        _ => "",
    };
    let detail = format!("the source's URL leads to an address that is refused: {}{remedy}", refused.reason);
    Failure::new(FailureCode::SourceAddressRefused, detail).log(refused)
}

fn stalled() -> Failure {
    Failure::new(FailureCode::SourceTimeout, "the source's server stopped sending")
}

fn refused_by_server(status: u16) -> Failure {
    let code = match status {
        408 | 425 | 429 | 500.. => FailureCode::SourceUnavailable,
        _ => FailureCode::SourceNotFound,
    };
    Failure::new(code, format!("the source's server answered {status}"))
}

/// A request or a body that broke. The URL is left out: it may carry a credential.
fn broken(error: &reqwest::Error) -> Failure {
    let mut reasons = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return address_refused(refused.clone());
        }
        reasons.push(cause.to_string());
        next = cause.source();
    }
    let detail = match (error.is_timeout(), error.is_connect()) {
        (true, _) => "the source's server did not answer in time",
        (_, true) => "the source's server could not be reached",
        _ => "the connection to the source's server broke",
    };
    Failure::new(FailureCode::SourceUnreachable, detail).log(reasons.join(": "))
}

/// Scheme, host and path: what follows, and what stands before the host, may be a credential.
fn redact(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| "an unreadable URL".to_owned(),
        |url| format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or("?"), url.path()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_url_has_no_credentials() {
        assert_eq!(
            redact("https://user:secret@host.example:8443/v.mp4?sig=secret#x"),
            "https://host.example/v.mp4"
        );
        assert_eq!(redact("secret"), "an unreadable URL");
    }

    #[test]
    fn odd_spellings_of_an_address_are_that_address() {
        let fetcher = Fetcher::new(FetchSettings::default()).unwrap();
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://017700000001/",
            "http://[::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://169.254.169.254/latest/",
            "http://0/",
        ] {
            let failure = fetcher.check(&Url::parse(url).unwrap(), 0).unwrap_err();
            assert_eq!(failure.code, FailureCode::SourceAddressRefused, "{url}");
        }
        assert!(fetcher.check(&Url::parse("http://example.com/").unwrap(), 0).is_ok());
        let failure = fetcher.check(&Url::parse("file:///etc/passwd").unwrap(), 1).unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceRedirects);
    }
}
