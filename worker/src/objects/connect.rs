//! From a place to something that can be asked: the only file that says how a cloud is reached.

use std::sync::Arc;
use std::time::Duration;

use millrace_wire::PoolId;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum as S3Checksum, S3ConditionalPut};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::credentials::FromFile;
use super::federation::{Federation, SignsAs};
use super::place::{Checksum, Gcs, Place, S3};
use super::{Error, local, unavailable};

/// For one connection, name look-up included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after its beginning a request is tried again.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// One pool's part of a store.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    /// None for a directory.
    pub(super) cloud: Option<Arc<Cloud>>,
    prefix: Path,
}

/// What only a cloud's store can do.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) kind: Kind,
    /// Its server and whose credentials it takes: what is equal in two of them can be copied between them by the server.
    pub(super) account: String,
    /// The bucket's own name.
    pub(super) bucket: String,
    /// Signs for clients.
    pub(super) public: Arc<dyn Signer>,
    /// Signs for the worker itself.
    pub(super) own: Arc<dyn Signer>,
    /// Writes parts without checksums of their own: clients' parts carry none.
    pub(super) parts: Parts,
    /// Whether a write can be told to happen only if nothing is there.
    pub(super) conditional: bool,
    /// Sends what the library has no call for.
    pub(super) http: reqwest::Client,
}

/// [`MultipartStore`] with a name in logs.
#[derive(Clone)]
pub(super) struct Parts(pub(super) Arc<dyn MultipartStore>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

/// Which dialect a cloud's store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    S3,
    Gcs,
}

impl Bucket {
    /// Where a key lies in the store.
    pub(super) fn path(&self, key: &str) -> Path {
        Path::from_iter(
            self.prefix.parts().map(|part| part.as_ref().to_owned()).chain(key.split('/').map(str::to_owned)),
        )
    }

    /// The part of one pool in a store that several share.
    pub(super) fn of_pool(&self, pool: &PoolId) -> Self {
        Self { prefix: self.prefix.clone().join(pool.as_str()), ..self.clone() }
    }

    /// Whether two are parts of one store, so that it can copy between them by itself.
    pub(super) fn shares_store(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store)
    }

    pub(super) fn open(place: &Place) -> Result<Self, Error> {
        match place {
            Place::Directory(root) => {
                std::fs::create_dir_all(root).map_err(local("create the objects directory"))?;
                let store = LocalFileSystem::new_with_prefix(root).map_err(unavailable("open"))?;
                let store = Arc::new(store.with_fsync(true).with_automatic_cleanup(true));
                Ok(Self { store, cloud: None, prefix: Path::default() })
            }
            Place::S3(place) => s3(place).map_err(unavailable("open")),
            Place::Gcs(place) => gcs(place).map_err(unavailable("open")),
        }
    }
}

fn patience() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: 4, retry_timeout: RETRY_FOR }
}

fn options(plain_http: bool, stall: Duration) -> ClientOptions {
    // Installed already by main; in tests and tools this is the first call. An error means only that.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(stall)
        .with_allow_http(plain_http)
}

fn client(stall: Duration) -> object_store::Result<reqwest::Client> {
    let built = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(stall).build();
    built.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
}

fn s3(place: &S3) -> object_store::Result<Bucket> {
    let build = |endpoint: Option<&url::Url>, checksum: Checksum| -> object_store::Result<AmazonS3> {
        // The environment first: credentials, region and endpoint as the platform and its tools name them.
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&place.bucket)
            .with_retry(patience())
            .with_disable_bulk_delete(!place.bulk_delete)
            .with_virtual_hosted_style_request(place.virtual_style)
            .with_client_options(options(endpoint.is_some_and(|url| url.scheme() == "http"), place.stall));
        if !place.conditional {
            builder = builder.with_conditional_put(S3ConditionalPut::Disabled);
        }
        if let Some(url) = endpoint {
            builder = builder.with_endpoint(address(url, place));
        }
        if let Some(region) = &place.region {
            builder = builder.with_region(region);
        }
        if let Some(file) = &place.credentials {
            builder = builder.with_credentials(Arc::new(FromFile::new(file.clone(), place.profile.clone())));
        }
        match checksum {
            Checksum::Sha256 => builder = builder.with_checksum_algorithm(S3Checksum::SHA256),
            Checksum::Crc64Nvme => builder = builder.with_checksum_algorithm(S3Checksum::CRC64NVME),
            Checksum::Off => {}
        }
        builder.build()
    };
    let inner = place.endpoint.as_ref();
    let plain = Arc::new(build(inner, Checksum::Off)?);
    let public: Arc<dyn Signer> = match &place.public_endpoint {
        Some(url) => Arc::new(build(Some(url), Checksum::Off)?),
        None => Arc::clone(&plain) as _,
    };
    let cloud = Cloud {
        kind: Kind::S3,
        account: format!("{:?} {:?} {:?}", place.endpoint, place.credentials, place.profile),
        bucket: place.bucket.clone(),
        public,
        own: Arc::clone(&plain) as _,
        parts: Parts(plain),
        conditional: place.conditional,
        http: client(place.stall)?,
    };
    Ok(Bucket {
        store: Arc::new(build(inner, place.checksum)?),
        cloud: Some(Arc::new(cloud)),
        prefix: Path::from(place.prefix.as_str()),
    })
}

/// An endpoint as the library wants it: with the bucket in the host's name where the style says so.
fn address(endpoint: &url::Url, place: &S3) -> String {
    let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = endpoint.host_str().unwrap_or_default();
    let bucket = if place.virtual_style { format!("{}.", place.bucket) } else { String::new() };
    format!("{}://{bucket}{host}{port}", endpoint.scheme())
}

fn gcs(place: &Gcs) -> object_store::Result<Bucket> {
    let plain_http = place.endpoint.as_ref().is_some_and(|url| url.scheme() == "http");
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&place.bucket)
        .with_retry(patience())
        .with_client_options(options(plain_http, place.stall));
    let http = client(place.stall)?;
    if let Some(file) = &place.credentials {
        let federation = Federation::read(file, &http).map_err(|what| {
            object_store::Error::Unauthenticated { path: String::new(), source: what.into() }
        })?;
        builder = match federation.map(Arc::new) {
            Some(federation) => builder
                .with_credentials(Arc::clone(&federation) as _)
                .with_signing_credentials(Arc::new(SignsAs(federation))),
            None => builder.with_service_account_path(file.display().to_string()),
        };
    }
    if let Some(url) = &place.endpoint {
        builder = builder.with_base_url(url.as_str().trim_end_matches('/'));
    }
    let store = Arc::new(builder.build()?);
    let cloud = Cloud {
        kind: Kind::Gcs,
        account: format!("{:?} {:?}", place.endpoint, place.credentials),
        bucket: place.bucket.clone(),
        public: Arc::clone(&store) as _,
        own: Arc::clone(&store) as _,
        parts: Parts(Arc::clone(&store) as _),
        conditional: true,
        http,
    };
    Ok(Bucket { store, cloud: Some(Arc::new(cloud)), prefix: Path::from(place.prefix.as_str()) })
}

#[cfg(test)]
mod tests {
    use super::super::place::Places;
    use super::*;

    fn place(text: &str) -> S3 {
        match Places::parse(text).unwrap().rest {
            Some(Place::S3(place)) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_endpoint_has_the_bucket_where_the_style_says() {
        for (text, wanted) in [
            ("s3://b?endpoint=http://minio:9000", "http://minio:9000"),
            ("s3://b?endpoint=https://r2.example&style=virtual", "https://b.r2.example"),
            ("s3://b?endpoint=http://[::1]:9000", "http://[::1]:9000"),
        ] {
            let place = place(text);
            assert_eq!(address(place.endpoint.as_ref().unwrap(), &place), wanted);
        }
    }

    #[test]
    fn a_key_lies_below_the_prefix_and_the_pools_folder() {
        let bucket =
            Bucket::open(&Place::S3(place("s3://b/a/c?endpoint=http://h&credentials=/none"))).unwrap();
        assert_eq!(bucket.path("uploads/k/v.mp4").as_ref(), "a/c/uploads/k/v.mp4");
        assert_eq!(bucket.of_pool(&"gcp".parse().unwrap()).path("x").as_ref(), "a/c/gcp/x");
    }
}
