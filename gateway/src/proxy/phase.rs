//! A phase of Pingora's in which nothing is waited for.

use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::task::Poll;

use pingora::Result;

/// What Pingora wants of a phase.
pub(super) type Phase<'a, T = Result<()>> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A phase that is over. One that went well has no size, so a box of it takes no memory.
pub(super) fn phase<'a>(result: Result<()>) -> Phase<'a> {
    match result {
        Ok(()) => Box::pin(poll_fn(|_| Poll::Ready(Ok(())))),
        Err(error) => Box::pin(ready(Err(error))),
    }
}

/// The phase that asks whether a request goes to a worker: it does.
pub(super) fn goes<'a>() -> Phase<'a, Result<bool>> {
    Box::pin(poll_fn(|_| Poll::Ready(Ok(true))))
}

/// A phase that cannot fail, and is over.
pub(super) fn over<'a>() -> Phase<'a, ()> {
    Box::pin(poll_fn(|_| Poll::Ready(())))
}
