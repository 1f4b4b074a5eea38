//! A submit before it is routed: its whole body, and the one id that makes every retry the same job.
//!
//! The body is read here, not streamed, for three reasons: the choice of a pool needs the spec's head; a retry on
//! another worker needs the whole body; and a client that sends slowly must not hold a worker's attention. It is
//! never rewritten: an assigned id travels in `Idempotency-Key`.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::HeaderMap;
use millrace_wire::spec::{Priority, SPEC_BYTES_MAX};
use millrace_wire::{Code, JobId, Problem, SpecHead, headers};

use crate::forward::fields;

/// How much of a body that is too large is read and thrown away, so that its sender gets to read the refusal instead
/// of a reset connection.
const OVERFLOW_BYTES_MAX: usize = 1 << 20;

/// A client's body, piece by piece.
pub trait Body {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Broken>> + Send;
}

/// The client went away in the middle of its body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client broke off in the middle of its body: {0}")]
pub struct Broken(pub String);

/// Why a submit is not routed.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// The client reads this. Boxed: it is large and rare.
    Problem(Box<Problem>),
    /// Nobody is left to read anything.
    Broken(Broken),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// A submit that may be routed.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// The job's id, whoever gave it.
    pub job_id: JobId,
    /// What routing reads.
    pub head: SpecHead,
}

/// How long the client says that its body is.
pub fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a whole body of at most [`SPEC_BYTES_MAX`] bytes within `deadline`. One that is announced as far too large is
/// refused before it comes.
///
/// # Errors
/// Too large, too slow, or broken off.
pub async fn read(
    body: &mut impl Body,
    announced: Option<u64>,
    deadline: Duration,
) -> Result<Bytes, Refused> {
    let too_large = || {
        let detail = format!("a job spec has at most {SPEC_BYTES_MAX} bytes");
        Refused::from(Problem::new(Code::SpecTooLarge, detail))
    };
    if announced.is_some_and(|length| length > (SPEC_BYTES_MAX + OVERFLOW_BYTES_MAX) as u64) {
        return Err(too_large());
    }
    let whole = async {
        // Most come in one piece, which need not be copied.
        let (mut first, mut read) = (Bytes::new(), BytesMut::new());
        let mut length = 0;
        while let Some(piece) = body.next().await.map_err(Refused::Broken)? {
            length += piece.len();
            if length > SPEC_BYTES_MAX + OVERFLOW_BYTES_MAX {
                break;
            }
            if length == piece.len() {
                first = piece;
            } else if length <= SPEC_BYTES_MAX {
                read.extend_from_slice(&std::mem::take(&mut first));
                read.extend_from_slice(&piece);
            }
        }
        match length {
            _ if length > SPEC_BYTES_MAX => Err(too_large()),
            _ if length == first.len() => Ok(first),
            _ => Ok(read.freeze()),
        }
    };
    let mut whole = pin!(whole);
    // Most bodies come with their header and need no timer. It would want a place of its own alignment in what holds every
    // request, so the others have theirs on the heap.
    if let Some(read) = whole.as_mut().now_or_never() {
        return read;
    }
    match Box::pin(tokio::time::timeout(deadline, whole)).await {
        Ok(read) => read,
        Err(_) => {
            let detail = format!("the body did not arrive within {}", humantime::format_duration(deadline));
            Err(Problem::new(Code::BodyTimeout, detail).into())
        }
    }
}

/// Reads a spec's head and settles the job's id: the body's, else `Idempotency-Key`, else a fresh one.
///
/// # Errors
/// A body that cannot be routed, an id that cannot be used, or two ids that differ.
pub fn admit(body: &[u8], headers: &HeaderMap) -> Result<Admitted, Box<Problem>> {
    let head = SpecHead::peek(body)?;
    let key = idempotency_key(headers)?;
    let job_id = match (&head.job_id, key) {
        (Some(id), Some(key)) if *id != key => {
            let detail = format!(
                "the body's job_id is {id}, Idempotency-Key is {key}; they mean the same, so send one"
            );
            return Err(Box::new(Problem::new(Code::JobIdMismatch, detail).field("job_id")));
        }
        (Some(id), _) => id.clone(),
        (None, Some(key)) => key,
        (None, None) => JobId::assign_from(&rand::random()),
    };
    Ok(Admitted { job_id, head })
}

/// What is known of a job whose input is the body: how large that is said to be, and the id if the client named one. None
/// is assigned here: the body, which is not read, may name it.
///
/// # Errors
/// An id that cannot be used.
pub fn unread(headers: &HeaderMap) -> Result<(Option<JobId>, SpecHead), Box<Problem>> {
    let head = SpecHead {
        job_id: idempotency_key(headers)?,
        priority: Priority::default(),
        input_pool: None,
        duration_hint_s: None,
        size_hint_bytes: announced(headers),
        heights: Vec::new(),
    };
    Ok((head.job_id.clone(), head))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<JobId>, Problem> {
    let bad = |detail: String| Problem::new(Code::BadJobId, detail).field(headers::IDEMPOTENCY_KEY);
    let mut values = headers.get_all(&fields::IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad("Idempotency-Key stands there twice".to_owned()));
    }
    let text = value.to_str().map_err(|_| bad("Idempotency-Key is not plain text".to_owned()))?;
    text.parse().map(Some).map_err(|error: millrace_wire::id::BadName| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<(Duration, Bytes)>);

    impl Body for Pieces {
        async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
            if self.0.is_empty() {
                return Ok(None);
            }
            let (wait, piece) = self.0.remove(0);
            tokio::time::sleep(wait).await;
            Ok(Some(piece))
        }
    }

    fn pieces(sizes: &[usize], wait: Duration) -> Pieces {
        Pieces(sizes.iter().map(|size| (wait, Bytes::from(vec![b'x'; *size]))).collect())
    }

    async fn refused(mut body: Pieces, announced: Option<u64>) -> Code {
        match read(&mut body, announced, Duration::from_secs(10)).await {
            Err(Refused::Problem(problem)) => problem.code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_whole_up_to_the_limit() {
        let (none, now) = (None, Duration::ZERO);
        for whole in [&[60_000, 5_536][..], &[0, 60_000, 0, 5_000, 536], &[65_536], &[65_536, 0]] {
            let read = read(&mut pieces(whole, now), none, Duration::from_secs(1)).await.unwrap();
            assert_eq!(read.len(), SPEC_BYTES_MAX, "{whole:?}");
        }
        let empty = read(&mut pieces(&[], now), none, Duration::from_secs(1)).await;
        assert_eq!(empty, Ok(Bytes::new()));
        assert_eq!(refused(pieces(&[60_000, 5_537], now), none).await, Code::SpecTooLarge);
        assert_eq!(refused(pieces(&[1 << 20, 1 << 20], now), none).await, Code::SpecTooLarge);
        let headers = HeaderMap::from_iter([(http::header::CONTENT_LENGTH, "99999999".parse().unwrap())]);
        let huge = announced(&headers);
        assert_eq!(refused(pieces(&[1], Duration::from_secs(3600)), huge).await, Code::SpecTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_cut_off_at_the_deadline() {
        let drip = pieces(&[1; 100], Duration::from_millis(900));
        assert_eq!(refused(drip, None).await, Code::BodyTimeout);
    }

    #[test]
    fn the_id_is_the_bodys_or_the_headers_or_fresh() {
        let with = |key: &str| {
            let name: http::HeaderName = headers::IDEMPOTENCY_KEY.parse().unwrap();
            HeaderMap::from_iter([(name, key.parse().unwrap())])
        };
        let named = br#"{"job_id":"a","input_url":"http://h/v"}"#;
        let plain = br#"{"input_url":"http://h/v"}"#;
        assert_eq!(admit(named, &HeaderMap::new()).unwrap().job_id.as_str(), "a");
        assert_eq!(admit(named, &with("a")).unwrap().job_id.as_str(), "a");
        assert_eq!(admit(plain, &with("b")).unwrap().job_id.as_str(), "b");
        assert_eq!(admit(plain, &HeaderMap::new()).unwrap().job_id.as_str().len(), 36);
        assert_eq!(admit(named, &with("b")).unwrap_err().code, Code::JobIdMismatch);
        assert_eq!(admit(plain, &with("../x")).unwrap_err().code, Code::BadJobId);
        assert_eq!(admit(b"{", &HeaderMap::new()).unwrap_err().code, Code::BadJson);
    }
}
