//! A phase of Pingora's in which nothing is waited for.

use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::Result;

/// What Pingora wants of a phase.
pub(super) type Phase<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A phase that went well. It has no size, so a box of it takes no memory.
struct Well;

impl Future for Well {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The phase that asks whether a request goes to a worker: it does.
pub(super) struct Goes;

impl Future for Goes {
    type Output = Result<bool>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<bool>> {
        Poll::Ready(Ok(true))
    }
}

/// A phase that cannot fail, and is over.
pub(super) struct Over;

impl Future for Over {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// A phase that is over.
pub(super) fn phase<'a>(result: Result<()>) -> Phase<'a> {
    match result {
        Ok(()) => Box::pin(Well),
        Err(error) => Box::pin(ready(Err(error))),
    }
}
