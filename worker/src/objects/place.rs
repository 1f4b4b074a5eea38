//! Where each pool's bytes lie, as the setting says it.
//!
//! One place for all pools (each has a folder of its own there), places for single pools, or both:
//! `s3://main,gcp=gs://other`. What belongs to one place stands in its URL's query, so that two pools can lie in two
//! clouds; secrets never stand there, only the file that holds them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use millrace_wire::PoolId;
use url::Url;

/// How long a request may stand still where nobody says otherwise. There is no limit on a whole one.
const STALL: Duration = Duration::from_secs(60);
/// What it may be told.
const STALL_LIMITS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// One place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket that speaks S3.
    S3(S3),
    /// A bucket of Google's.
    Gcs(Gcs),
}

/// A bucket that speaks S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// What every key begins with; empty or without slashes at its ends.
    pub prefix: String,
    /// `region`, else `AWS_REGION`, else what the library has.
    pub region: Option<String>,
    /// `endpoint`: a store other than Amazon's, `http(s)://HOST[:PORT]`.
    pub endpoint: Option<Url>,
    /// `public_endpoint`: the same store as clients reach it, for presigned URLs.
    pub public_endpoint: Option<Url>,
    /// `style=virtual`: the bucket is part of the host's name. The default without `endpoint`.
    pub virtual_style: bool,
    /// `credentials`: a file as the AWS tools write it, instead of the platform's own means.
    pub credentials: Option<PathBuf>,
    /// `profile`: which section of it.
    pub profile: Option<String>,
    /// `conditional=off`: the store knows no conditional writes.
    pub conditional: bool,
    /// `bulk_delete=off`: the store cannot delete many objects in one request.
    pub bulk_delete: bool,
    /// `checksum`: what is sent with every write.
    pub checksum: Checksum,
    /// `stall`: without a byte for so long a request is given up, and tried again.
    pub stall: Duration,
}

/// What is sent with every write, for the store to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256, which the signature needs anyway.
    Sha256,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// Nothing beside the signature.
    Off,
}

/// A bucket of Google's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gcs {
    /// Its name.
    pub bucket: String,
    /// What every key begins with; empty or without slashes at its ends.
    pub prefix: String,
    /// `credentials`: a key file, or one that describes an external account, instead of the platform's own means.
    pub credentials: Option<PathBuf>,
    /// `endpoint`: another address of the XML API.
    pub endpoint: Option<Url>,
    /// `stall`: without a byte for so long a request is given up, and tried again.
    pub stall: Duration,
}

/// All places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// For pools that have none of their own; each has a folder there.
    pub rest: Option<Place>,
    /// Each of one pool alone.
    pub own: BTreeMap<PoolId, Place>,
}

impl Places {
    /// One directory for all pools.
    pub fn directory(root: impl Into<PathBuf>) -> Self {
        Self { rest: Some(Place::Directory(root.into())), own: BTreeMap::new() }
    }

    /// Whether what lies in one pool's place survives the loss of the other's.
    ///
    /// # Errors
    /// What is in the way.
    pub fn two_clouds(&self, one: &PoolId, other: &PoolId) -> Result<(), String> {
        let (Some(first), Some(second)) = (self.own.get(one), self.own.get(other)) else {
            return Err(format!(
                "{one} and {other} must each have a place of their own, as in {one}=s3://…,{other}=gs://…"
            ));
        };
        match (first, second) {
            (Place::Directory(_), _) | (_, Place::Directory(_)) => {
                Err("a directory is lost with its machine; both must be buckets".to_owned())
            }
            (first, second) if first == second => Err(format!("{one} and {other} have the same bucket")),
            _ => Ok(()),
        }
    }

    /// Reads `PLACE`, `POOL=PLACE` or several of them with commas between.
    ///
    /// # Errors
    /// What is wrong and what would be right; never a query, which may be long.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut places = Self { rest: None, own: BTreeMap::new() };
        for entry in text.split(',').map(str::trim) {
            let pool = entry.split_once('=').and_then(|(name, place)| Some((name.parse().ok()?, place)));
            let doubled = match pool {
                Some((pool, place)) => places.own.insert(pool, Place::parse(place)?).is_some(),
                None => places.rest.replace(Place::parse(entry)?).is_some(),
            };
            if doubled {
                return Err(format!("{} is the second place for the same pools", shown(entry)));
            }
        }
        Ok(places)
    }
}

/// An entry without its query.
fn shown(entry: &str) -> String {
    format!("{:?}", entry.split('?').next().unwrap_or_default())
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let refuse = |what: &str| Err(format!("{}: {what}", shown(text)));
        if text.is_empty() {
            return refuse("a place is missing");
        }
        if !text.contains("://") {
            return Ok(Self::Directory(text.into()));
        }
        let Ok(url) = Url::parse(text) else { return refuse("it cannot be read as a URL") };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("a secret has no place in it; name a file with ?credentials=");
        }
        let mut query = BTreeMap::new();
        for (key, value) in url.query_pairs() {
            if query.insert(key.clone().into_owned(), value.into_owned()).is_some() {
                return refuse(&format!("{key} is there twice"));
            }
        }
        let place = match url.scheme() {
            "file" => match url.to_file_path() {
                Ok(path) => Self::Directory(path),
                Err(()) => return refuse("it must be file:///ABSOLUTE/PATH"),
            },
            "s3" => Self::S3(S3::read(&url, &mut query).map_err(|what| format!("{}: {what}", shown(text)))?),
            "gs" => {
                Self::Gcs(Gcs::read(&url, &mut query).map_err(|what| format!("{}: {what}", shown(text)))?)
            }
            _ => return refuse("it must be a directory, or a URL of file://, s3:// or gs://"),
        };
        match query.keys().next() {
            Some(unknown) => refuse(&format!("it knows no {unknown}")),
            None => Ok(place),
        }
    }
}

type Query = BTreeMap<String, String>;

fn bucket(url: &Url) -> Result<(String, String), String> {
    let name = url.host_str().filter(|name| !name.is_empty() && url.port().is_none());
    let prefix = url.path().trim_matches('/').to_owned();
    if prefix.split('/').any(|part| part.is_empty()) && !prefix.is_empty() || prefix.contains('%') {
        return Err("its prefix must be plain names with single slashes between".to_owned());
    }
    Ok((name.ok_or("a bucket's name must follow the two slashes")?.to_owned(), prefix))
}

fn endpoint(query: &mut Query, key: &str) -> Result<Option<Url>, String> {
    let Some(text) = query.remove(key) else { return Ok(None) };
    let plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.path() == "/"
            && url.query().is_none()
    };
    let url = Url::parse(&text).ok().filter(plain);
    url.map(Some).ok_or_else(|| format!("{key} must be http(s)://HOST[:PORT]"))
}

fn stall(query: &mut Query) -> Result<Duration, String> {
    let Some(text) = query.remove("stall") else { return Ok(STALL) };
    let time = humantime::parse_duration(&text).ok().filter(|time| STALL_LIMITS.contains(time));
    time.ok_or_else(|| "stall must be a time from 1s to 1h".to_owned())
}

/// One of two words.
fn either(query: &mut Query, key: &str, yes: &str, no: &str, default: bool) -> Result<bool, String> {
    match query.remove(key) {
        None => Ok(default),
        Some(word) if word == yes => Ok(true),
        Some(word) if word == no => Ok(false),
        Some(_) => Err(format!("{key} must be {yes} or {no}")),
    }
}

impl S3 {
    fn read(url: &Url, query: &mut Query) -> Result<Self, String> {
        let (bucket, prefix) = bucket(url)?;
        let endpoint_url = endpoint(query, "endpoint")?;
        let checksum = match query.remove("checksum").as_deref() {
            None | Some("sha256") => Checksum::Sha256,
            Some("crc64nvme") => Checksum::Crc64Nvme,
            Some("off") => Checksum::Off,
            Some(_) => return Err("checksum must be sha256, crc64nvme or off".to_owned()),
        };
        Ok(Self {
            bucket,
            prefix,
            region: query.remove("region"),
            virtual_style: either(query, "style", "virtual", "path", endpoint_url.is_none())?,
            public_endpoint: endpoint(query, "public_endpoint")?,
            endpoint: endpoint_url,
            credentials: query.remove("credentials").map(PathBuf::from),
            profile: query.remove("profile"),
            conditional: either(query, "conditional", "on", "off", true)?,
            bulk_delete: either(query, "bulk_delete", "on", "off", true)?,
            checksum,
            stall: stall(query)?,
        })
    }
}

impl Gcs {
    fn read(url: &Url, query: &mut Query) -> Result<Self, String> {
        let (bucket, prefix) = bucket(url)?;
        let credentials = query.remove("credentials").map(PathBuf::from);
        Ok(Self { bucket, prefix, credentials, endpoint: endpoint(query, "endpoint")?, stall: stall(query)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(text: &str) -> S3 {
        match Places::parse(text).unwrap().rest {
            Some(Place::S3(place)) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_directory_is_a_path_or_a_url() {
        for text in ["/data/objects", "file:///data/objects"] {
            assert_eq!(Places::parse(text).unwrap(), Places::directory("/data/objects"));
        }
        assert_eq!(Places::parse(".millrace/a=b").unwrap(), Places::directory(".millrace/a=b"));
    }

    #[test]
    fn a_bucket_of_amazons_has_its_name_in_the_host_and_any_other_in_the_path() {
        let amazon = s3("s3://videos/a/b/?region=eu-west-1");
        assert_eq!((amazon.bucket.as_str(), amazon.prefix.as_str()), ("videos", "a/b"));
        assert_eq!(amazon.region.as_deref(), Some("eu-west-1"));
        assert!(amazon.virtual_style && amazon.conditional && amazon.bulk_delete);
        let minio = s3("s3://videos?endpoint=http://minio:9000&conditional=off&checksum=off");
        assert!(!minio.virtual_style && !minio.conditional && minio.prefix.is_empty());
        assert_eq!(minio.checksum, Checksum::Off);
        assert_eq!((minio.stall, s3("s3://b?stall=5s").stall.as_secs()), (STALL, 5));
        assert!(s3("s3://videos?endpoint=http://minio:9000&style=virtual").virtual_style);
    }

    #[test]
    fn pools_have_places_of_their_own_and_the_rest_has_one() {
        let text = "aws=s3://a?region=us-east-1&credentials=/k, gcp=gs://b/p?credentials=/g.json,/rest";
        let places = Places::parse(text).unwrap();
        assert_eq!(places.rest, Some(Place::Directory("/rest".into())));
        let Some(Place::Gcs(gcs)) = places.own.get(&"gcp".parse().unwrap()) else { panic!("{places:?}") };
        assert_eq!((gcs.bucket.as_str(), gcs.prefix.as_str()), ("b", "p"));
        assert_eq!(places.own.len(), 2);
    }

    #[test]
    fn what_is_no_place_is_refused_with_a_reason_and_without_its_query() {
        for (text, names) in [
            ("", "a place is missing"),
            ("/a,/b", "second place"),
            ("aws=/a,aws=/b", "second place"),
            ("aws=", "a place is missing"),
            ("ftp://h/x", "must be a directory"),
            ("s3://", "cannot be read|bucket's name"),
            ("s3://b:1/x", "bucket's name"),
            ("s3://b//x//y", "single slashes"),
            ("s3://b?colour=blue", "knows no colour"),
            ("s3://b?style=round", "style must be virtual or path"),
            ("s3://b?stall=10ms", "stall must be a time from 1s to 1h"),
            ("gs://b?stall=soon", "stall must be a time"),
            ("s3://b?endpoint=minio:9000", "endpoint must be http(s)://"),
            ("s3://b?endpoint=http://minio/x", "endpoint must be http(s)://"),
            ("s3://b?region=a&region=b", "region is there twice"),
            ("s3://key:secret@b", "a secret has no place"),
            ("gs://b?region=a", "knows no region"),
            ("file://host/x", "file:///ABSOLUTE"),
        ] {
            let error = Places::parse(text).unwrap_err();
            assert!(names.split('|').any(|one| error.contains(one)), "{text}: {error}");
            assert!(!error.contains("blue"), "{error}");
        }
    }
}
