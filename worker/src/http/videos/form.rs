//! A video as a browser's form sends it: `multipart/form-data` with a `file`, and perhaps a `spec` and a `title`.
//!
//! Parts may come in any order, as forms have them. A spec that comes first is checked before a byte of the file is stored.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use millrace_wire::spec::{SPEC_BYTES_MAX, TITLE_LENGTH_MAX};
use millrace_wire::{Code, Problem};
use multer::{Field, Multipart};

use super::{Arriving, Refusal};

/// Bytes that may come before a part's header is complete, and in parts other than the file. The parser keeps them.
const AROUND_BYTES_MAX: i64 = 1 << 20;
/// Most parts.
const PARTS_MAX: usize = 16;
/// Longest title, in bytes.
const TITLE_BYTES_MAX: usize = TITLE_LENGTH_MAX * 4;

/// A body that ends with an error where it brings more than it may: what is not the file is kept in memory.
struct Metered {
    body: BodyDataStream,
    left: Arc<AtomicI64>,
    /// The last look brought a piece: the next one waits its turn, so that nothing piles up before who reads.
    rests: bool,
}

impl Stream for Metered {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rests) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = match self.body.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(piece))) => piece,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(std::io::Error::other(error)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        self.rests = true;
        let count = i64::try_from(piece.len()).unwrap_or(i64::MAX);
        if self.left.fetch_sub(count, Ordering::Relaxed) < count {
            return Poll::Ready(Some(Err(std::io::Error::other("too much around the file"))));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Receives a form. See [`super::create`].
pub(super) async fn receive(mut arriving: Arriving<'_>, body: Body) -> Result<Response, Refusal> {
    let kind = arriving.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| broken("it names no boundary"))?;
    let left = Arc::new(AtomicI64::new(AROUND_BYTES_MAX));
    let metered = Metered { body: body.into_data_stream(), left: Arc::clone(&left), rests: false };
    let mut form = Multipart::new(metered, boundary);
    let (mut spec, mut seen, mut stored, mut count) = (None, false, false, 0);
    let read = async {
        while let Some(field) = form.next_field().await.map_err(|error| broken(&error))? {
            count += 1;
            if count > PARTS_MAX {
                return Err(broken("it has too many parts"));
            }
            let once = |is: bool, name: &str| match is {
                true => Err(broken(format!("{name} is there twice"))),
                false => Ok(()),
            };
            match field.name() {
                Some("spec") => {
                    once(spec.is_some(), "spec")?;
                    spec = Some(small(field, "spec", SPEC_BYTES_MAX).await?);
                }
                Some("title") => {
                    once(arriving.said.title.is_some(), "title")?;
                    let text = small(field, "title", TITLE_BYTES_MAX).await?;
                    let text = String::from_utf8(text).map_err(|_| broken("title is no UTF-8"))?;
                    arriving.said.title = Some(text).filter(|text| !text.is_empty());
                }
                Some("file") => {
                    once(seen, "file")?;
                    // What is wrong with what came before the file is said before it is stored.
                    let asked = arriving.asked(spec.as_deref())?;
                    seen = true;
                    match arriving.known(&asked).await {
                        Ok(None) => {}
                        // It seems to be there; what comes behind the file will tell.
                        Ok(Some(_)) => {
                            let most = i64::try_from(arriving.app.upload_bytes_max).unwrap_or(i64::MAX);
                            left.store(most.saturating_add(AROUND_BYTES_MAX), Ordering::Relaxed);
                            pass_over(field).await?;
                            left.store(AROUND_BYTES_MAX, Ordering::Relaxed);
                            continue;
                        }
                        Err(conflict) if spec.is_some() => return Err(conflict),
                        // A spec that comes behind the file may make it the same.
                        Err(_) => {}
                    }
                    left.store(i64::MAX, Ordering::Relaxed);
                    arriving.store(field).await?;
                    left.store(AROUND_BYTES_MAX, Ordering::Relaxed);
                    stored = true;
                }
                name => {
                    let name: String = name.unwrap_or_default().chars().take(64).collect();
                    let detail =
                        format!("{name:?} is no part of this form; its parts are file, spec and title");
                    return Err(Problem::new(Code::UnknownField, detail).field(name).into());
                }
            }
        }
        if !seen {
            let detail = "the form has no part named file";
            return Err(Problem::new(Code::BadField, detail).field("file").into());
        }
        Ok(())
    };
    let read = read.await;
    match read.and_then(|()| arriving.asked(spec.as_deref())) {
        Ok(asked) if stored => arriving.accept(asked).await,
        Ok(asked) => match arriving.known(&asked).await? {
            Some(known) => arriving.answer(StatusCode::OK, known).await,
            None => Err(broken("its file was passed over for a video that is gone: post it again")),
        },
        Err(refused) => {
            if stored {
                arriving.forget().await;
            }
            Err(refused)
        }
    }
}

/// Reads a part to its end and keeps nothing of it.
async fn pass_over(mut field: Field<'_>) -> Result<(), Refusal> {
    while let Some(piece) = field.next().await {
        piece.map_err(|error| broken(&error))?;
    }
    Ok(())
}

fn broken(why: impl std::fmt::Display) -> Refusal {
    Problem::new(Code::BadRequest, format!("the form cannot be read: {why}")).into()
}

/// The whole of a small part.
async fn small(mut field: Field<'_>, name: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut whole = Vec::new();
    while let Some(piece) = field.next().await {
        whole.extend_from_slice(&piece.map_err(|error| broken(&error))?);
        if whole.len() > limit {
            let detail = format!("{name} has at most {limit} bytes");
            return Err(Problem::new(Code::SpecTooLarge, detail).field(name).into());
        }
    }
    Ok(whole)
}
