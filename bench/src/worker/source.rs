//! A server on loopback that gives out one file, as the origin of a job's input would.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::stream;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// The server; dropping it ends it.
#[derive(Debug)]
pub struct Source {
    url: String,
    server: JoinHandle<()>,
}

impl Source {
    /// Serves `path`.
    ///
    /// # Errors
    /// Loopback gives no port.
    pub async fn serve(path: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on loopback")?;
        let url = format!("http://{}/clip", listener.local_addr().context("read the own address")?);
        let path = path.to_owned();
        let router = Router::new().route("/clip", get(move || give(path.clone())));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the clip's server ended: {error}");
            }
        });
        Ok(Self { url, server })
    }

    /// Where the file is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn give(path: PathBuf) -> Response {
    let open = async {
        let file = tokio::fs::File::open(&path).await?;
        let length = file.metadata().await?.len();
        Ok::<_, std::io::Error>((file, length))
    };
    let (file, length) = match open.await {
        Ok(opened) => opened,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let chunks = stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((chunk, file)))
    });
    let headers = [(CONTENT_TYPE, "video/mp4".to_owned()), (CONTENT_LENGTH, length.to_string())];
    (headers, Body::from_stream(chunks)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_whole_file_comes_and_its_length_before_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|n| n as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let source = Source::serve(file.path()).await.unwrap();
        let answer = crate::Client::new(source.url()).unwrap().get("/clip").await.unwrap();
        assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
        assert!(answer.success().unwrap().body == bytes);
    }
}
