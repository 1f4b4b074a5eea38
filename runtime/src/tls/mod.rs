//! TLS by certificates in files, for whoever serves and whoever connects: [`files`] reads and checks them before they
//! count, [`Followed`] sees when they change while the process runs.
//!
//! A whole configuration is exchanged, never a certificate in it: so no session of before is resumed past a changed CA.
//! One crypto provider (ring), TLS 1.2 and 1.3, no key to turn verification off.

pub mod files;
pub mod itself;

use std::path::Path;

use crate::settle::Settle;
pub use files::{Bad, Client, Clients, Connecting, Loaded, Pair, Server};

/// Files that make up one configuration.
pub trait Files: Clone + PartialEq {
    /// What they become.
    type Made;

    /// The files, by the keys that errors name them with.
    fn files(&self) -> Vec<(&'static str, &Path)>;

    /// Reads and checks what [`Self::files`] held, in their order.
    ///
    /// # Errors
    /// The first thing wrong.
    fn judge(&self, seen: &[Content]) -> Result<Loaded<Self::Made>, Bad>;

    /// Looks at the files once.
    ///
    /// # Errors
    /// The first thing wrong.
    fn load(&self) -> Result<Loaded<Self::Made>, Bad> {
        Seen::at(self).judge()
    }
}

/// What a file held; an unreadable one counts by its error.
pub type Content = Result<Vec<u8>, String>;

/// One look at files.
#[derive(PartialEq)]
pub struct Seen<F> {
    files: F,
    contents: Vec<Content>,
}

impl<F: Files> Seen<F> {
    /// Reads them, which may take as long as a network file system takes.
    pub fn at(files: &F) -> Self {
        let read = |(_, path): (_, &Path)| {
            std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let contents = files.files().into_iter().map(read).collect();
        Self { files: files.clone(), contents }
    }

    fn judge(&self) -> Result<Loaded<F::Made>, Bad> {
        self.files.judge(&self.contents)
    }
}

/// Files that are followed: what is in them counts once two looks have seen the same.
pub struct Followed<F>(Settle<Seen<F>>);

impl<F> std::fmt::Debug for Followed<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It holds private keys.
        f.debug_struct("Followed").finish_non_exhaustive()
    }
}

impl<F: Files> Followed<F> {
    /// Begins with what is in the files now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(files: &F) -> Result<(Self, Loaded<F::Made>), Bad> {
        let seen = Seen::at(files);
        let loaded = seen.judge()?;
        Ok((Self(Settle::new(seen)), loaded))
    }

    /// Takes another look in, perhaps at other files than before; answers when something new has stood for two looks.
    pub fn saw(&mut self, seen: Seen<F>) -> Option<Result<Loaded<F::Made>, Bad>> {
        // Certificate and key are two files, and one is written before the other.
        self.0.saw(seen).map(Seen::judge)
    }
}

impl Files for Server {
    type Made = rustls::ServerConfig;

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let own = [("certificate", self.own.certificate.as_path()), ("key", self.own.key.as_path())];
        own.into_iter().chain(self.client_ca.as_deref().map(|path| ("client_ca", path))).collect()
    }

    fn judge(&self, seen: &[Content]) -> Result<Loaded<Self::Made>, Bad> {
        files::server(self, seen)
    }
}

impl Files for Client {
    type Made = Connecting;

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let own = self
            .own
            .as_ref()
            .map(|own| [("certificate", own.certificate.as_path()), ("key", own.key.as_path())]);
        std::iter::once(("ca", self.ca.as_path())).chain(own.into_iter().flatten()).collect()
    }

    fn judge(&self, seen: &[Content]) -> Result<Loaded<Self::Made>, Bad> {
        files::client(self, seen)
    }
}
