//! Reading TOML so that an error names the file, the line, the key, what it got and what it wants.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A configuration file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The file.
    pub file: PathBuf,
    /// 1-based line and column, when the error has a place.
    pub at: Option<(usize, usize)>,
    /// The key at fault, when one is.
    pub key: Option<String>,
    /// What it got and what it wants.
    pub message: String,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    /// `FILE:LINE:COLUMN: key: message`, as compilers write it, so that editors jump there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        match &self.key {
            Some(key) => write!(f, ": {key}: {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}

/// A text file's name and content, so that later validation can point into it.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    text: String,
}

impl File {
    /// Reads the file.
    ///
    /// # Errors
    /// Without a place: the file is missing, unreadable or no UTF-8.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error {
            file: path.to_owned(),
            at: None,
            key: None,
            message: format!("cannot be read: {error}"),
        })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// A file that is already in memory.
    pub fn from_text(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses into the file's raw shape.
    ///
    /// # Errors
    /// With the place of the syntax error, the wrong type or the unknown key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|error| Error {
            file: self.path.clone(),
            at: error.span().map(|span| self.place(span.start)),
            key: error.span().and_then(|span| self.key_at(span.start)),
            message: error.message().replace('\n', " "),
        })
    }

    /// An error of validation about the value at `span` (bytes, from [`toml::Spanned`]).
    pub fn error_at(&self, span: Range<usize>, key: impl Into<String>, message: impl Into<String>) -> Error {
        Error {
            file: self.path.clone(),
            at: Some(self.place(span.start)),
            key: Some(key.into()),
            message: message.into(),
        }
    }

    /// An error of validation about the whole file.
    pub fn error(&self, key: impl Into<String>, message: impl Into<String>) -> Error {
        Error { file: self.path.clone(), at: None, key: Some(key.into()), message: message.into() }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// The `key` of the `key = value` line at `offset`, for errors that come without one.
    fn key_at(&self, offset: usize) -> Option<String> {
        let (line, _) = self.place(offset);
        let (key, _) = self.text.lines().nth(line - 1)?.split_once('=')?;
        Some(key.trim().trim_matches('"').to_owned()).filter(|key| !key.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        #[expect(dead_code, reason = "only its type matters here")]
        port: u16,
    }

    fn shown(text: &str) -> String {
        File::from_text("routing.toml", text).parse::<Shape>().unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        let wrong_type = shown("# hello\nport = \"x\"\n");
        assert!(wrong_type.starts_with("routing.toml:2:8: port: invalid type: string"), "{wrong_type}");
        let unknown = shown("port = 1\ncolour = 2\n");
        assert!(unknown.starts_with("routing.toml:2:1: colour: unknown field `colour`"), "{unknown}");
        let syntax = shown("port = [\n");
        assert!(syntax.starts_with("routing.toml:"), "{syntax}");
    }
}
